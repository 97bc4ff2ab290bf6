"""What a version takes of the memory of its CUDA devices, whatever library computes there. Standard library alone."""
