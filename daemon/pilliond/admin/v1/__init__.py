"""The endpoints below `/v1`: policies and their versions, sessions, evaluation holds, the audit log.

Each handler checks the request, calls `rollout`, and returns the resulting state.
"""
