"""The store on disk: published versions, aliases, pins, routes, leases and the audit log.

Every change is a transaction: a reader, or whoever comes after a crash, sees it whole or not at all.
"""
