"""What a worker process of a measurement does: each role is one module with a `run`."""
