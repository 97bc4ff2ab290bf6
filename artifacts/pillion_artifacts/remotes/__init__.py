"""Exchange of versions with archives, OCI registries and S3 buckets. Every byte is hashed on its way."""
