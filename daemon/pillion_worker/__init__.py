"""The inference worker: runs the batches of one policy version in a process of its own, beside the serving loop.

It promises: it starts on any Python from 3.9 on with nothing but numpy and the engine's own package; it dies with the
process that started it; and whatever its engine does, the daemon only sees a batch that failed or a worker that is gone.

`bootstrap.py` starts it with an interpreter that has nothing of ours.

`arena.py`, `doorbell.py` and `channel.py` are the three ways in which it talks; the serving process uses the same
modules for its side. Each engine is one file in `engines/`.
"""
