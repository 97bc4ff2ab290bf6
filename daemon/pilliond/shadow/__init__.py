"""The shadow process: runs another version on a copy of the live rows and compares the answers.

A separate process. Promises: it never sends an action, and its death changes nothing for clients.
"""
