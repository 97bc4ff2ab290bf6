"""The operator's commands: `pillion status`, `switch`, `canary`, `token` and the others.

They speak to a running daemon through its admin port only, with `admin_client.py`.
Imported lazily: `pillion --help` loads none of them.
"""
