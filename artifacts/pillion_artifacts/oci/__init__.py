"""The OCI image layout on disk and on the wire: blobs, manifests, indexes."""
