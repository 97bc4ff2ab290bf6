"""Publishing: makes an artifact from a trained policy, without executing anything in its files.

Needs `pillion[publish]`. The daemon imports none of it.
"""
