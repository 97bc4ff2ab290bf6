"""Measures a Pillion daemon: load, replay of recorded episodes, comparison with peers, and baselines without a server."""
