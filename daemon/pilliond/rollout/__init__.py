"""Changing which version answers: staging, switching, arms, shadows, rollback, and what survives a restart.

Control plane. Promises one operation at a time, and that one that fails leaves the live version as it was.
"""
