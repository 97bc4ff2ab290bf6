"""KServe's inference protocol, version 2, below `/v2`: one more client of the daemon's own data path.

Promises that `tritonclient[http]` works unchanged, and that a request here cannot disturb another client.
The only room of the daemon that imports the client package.
"""
