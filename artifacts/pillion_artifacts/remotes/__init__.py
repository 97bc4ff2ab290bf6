"""Where versions travel: one file, an OCI registry, an S3 bucket."""
