"""The core of the data plane: sessions, routing and scheduling. Pure: no socket, no clock of its own, no sleep.

Decides which act is admitted, which version an episode leases, and which rows form a batch; the serving loop does it.
Hot path: measure before and after you change anything here.
"""
