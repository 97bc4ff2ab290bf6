"""Recorded episodes: how they are made, kept, compared and replayed in time."""
