"""KServe's inference protocol, version 2, below `/v2`, as one more client of the daemon's own data path.

It promises that `tritonclient[http]` works unchanged, and that a request here cannot disturb another client. No other room
of the daemon imports the client itself.
"""
