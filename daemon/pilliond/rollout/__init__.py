"""Changes which version answers: staging, switching, arms, shadows, rollback, and what survives a restart.

Control plane. Promises: one operation at a time, and an operation that fails leaves the live version as it was. The steps of an
operation and their order stand in `operation.py`; a new verb takes its steps from there.
"""
