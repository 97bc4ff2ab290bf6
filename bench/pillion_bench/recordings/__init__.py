"""Recorded episodes: recording, file format, comparison, and the schedule of a replay."""
