"""The operator's commands: `pillion status`, `switch`, `canary`, `token` and the others.

They talk to a running daemon only through its admin port, with `admin_client.py`; `token` edits the tokens file.
`pillion --help` imports none of them.
"""
