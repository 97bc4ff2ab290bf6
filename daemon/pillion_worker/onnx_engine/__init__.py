"""ONNX Runtime on a CUDA device: its providers, its CUDA graphs, and the TensorRT engines that are built while staging."""
