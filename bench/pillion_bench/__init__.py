"""Measures a Pillion daemon: load, replay of recorded episodes, and the floor below which no server comes."""
