"""HTTP on the admin port, for all endpoints alike: listeners, TLS, access, request limits, errors, OpenAPI.

It promises that no request is handled without the scope that it needs, and that every error is
`application/problem+json`. It knows neither policies nor versions.
"""
