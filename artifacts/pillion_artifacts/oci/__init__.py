"""The OCI image layout: blobs, manifests and indexes on disk, and what a remote must offer."""
