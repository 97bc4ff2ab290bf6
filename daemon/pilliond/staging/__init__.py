"""The staging process: verifies, loads and tries a version, confined and at the lowest priority, before it may serve.

What hangs or crashes here does so without the serving process noticing.
"""
