"""The staging process: verifies, loads and tries a version, confined and at a low priority, before it may serve.

A hang or a crash here does not affect the serving process.
"""
