"""`pillion bench compare`: Pillion, the baselines and the peers, measured alike."""
