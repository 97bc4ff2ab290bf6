"""The processes of a measurement: the daemon, the workers, and the CPUs that they are pinned to."""
