"""The daemon ends, in order or not: everything admitted is answered, and no process is left."""

from __future__ import annotations
