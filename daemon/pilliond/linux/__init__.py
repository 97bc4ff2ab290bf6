"""Thin layers over Linux: epoll, timerfd, CPU priority, sandboxing, peer credentials, starting processes.

Nothing here knows what Pillion is.
"""
