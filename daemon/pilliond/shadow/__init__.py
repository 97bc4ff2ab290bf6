"""The shadow process: runs another version on a copy of the live rows and compares the answers.

A process of its own. Promises that it never sends an action and that its death changes nothing for clients.
"""
