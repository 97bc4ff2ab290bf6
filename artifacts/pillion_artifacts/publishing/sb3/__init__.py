"""Zips of Stable-Baselines3 and sb3-contrib as a source; nothing in them is executed."""
