"""What an engine in a worker costs, and what it keeps away from everybody else."""
