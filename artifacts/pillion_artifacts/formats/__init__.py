"""Formats of model files, read without the framework that runs them: no file here is executed or unpickled."""
