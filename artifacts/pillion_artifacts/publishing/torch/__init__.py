"""torch modules, `torch.export` programs and TorchScript as a source."""
