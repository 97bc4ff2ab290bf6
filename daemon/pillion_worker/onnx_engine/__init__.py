"""ONNX Runtime on a CUDA device: its providers, and the TensorRT engines that are built while staging."""
