"""The admin port: what operators, Prometheus and KServe clients ask over HTTP, and `app.py`, which joins the parts.

Runs in the control process. It reads state and asks `rollout` to act; it never touches a data socket.
A new family of endpoints gets a folder here; what all of them share lies in `http`.
"""
