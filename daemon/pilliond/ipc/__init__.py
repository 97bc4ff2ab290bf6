"""What the daemon's processes say to each other: channels of messages, and pages of shared memory.

The only way between the control plane and the data plane. Nothing here acts on what it carries.
"""
