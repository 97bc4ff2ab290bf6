"""The endpoints below `/v1`: policies and their versions, sessions, evaluation leases, the audit log.

Each module checks what was asked, calls `rollout`, and returns a description of the result.
"""
