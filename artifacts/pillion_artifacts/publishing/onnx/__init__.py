"""ONNX files as a source."""
