"""What the engine `torch` is made of. Only `engines/torch.py` imports it: the other modules need no torch."""
