"""Imports zips of Stable-Baselines3 and sb3-contrib. Nothing in them is executed."""
