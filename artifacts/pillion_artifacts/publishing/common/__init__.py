"""Shared by all importers: drafts, observations, parity with the source, an inert pickle reader."""
