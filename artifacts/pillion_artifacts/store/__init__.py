"""The store on disk: published versions, aliases, pins, routes, evaluation holds, daemon locks and the audit log.

Every change is one transaction (`transaction`): readers, and the next command after a crash, see all of it or nothing.
`Store` reads and publishes. The functions beside each small file (`aliases`, `pins`, `evaluation_holds`, `routes`) change it.
"""
