"""Imports torch modules, `torch.export` programs and TorchScript."""
