"""Imports ONNX files."""
