"""What is built of a model for one host: once, while a version is staged. A worker that serves only loads it."""
