"""HTTP on the admin port, whatever is asked: listeners, TLS, who may do what, request limits, errors, OpenAPI.

Promises that nothing is done for a caller without the scope for it, and that every error is `application/problem+json`.
Knows no version and no policy.
"""
