"""What the disk refuses is told, whichever thread it was told first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pillion_artifacts.limits import EARLY_SYNC_BYTES
from pillion_artifacts.store.early_sync import EarlySync


def test_an_early_sync_that_fails_fails_the_whole() -> None:
    reader, writer = os.pipe()
    file = os.open(os.devnull, os.O_RDWR)
    try:
        with EarlySync(writer) as disk:
            # A pipe cannot be synced; what it is a copy of by then can.
            disk.wrote(EARLY_SYNC_BYTES)
            assert disk._running is not None
            assert disk._running.exception() is not None
            os.dup2(os.open(__file__, os.O_RDONLY), writer)
            with pytest.raises(OSError, match="Invalid argument"):
                disk.sync()
    finally:
        for descriptor in (reader, writer, file):
            os.close(descriptor)


def test_a_small_file_starts_no_thread(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb", buffering=0) as file, EarlySync(file.fileno()) as disk:
        file.write(b"x")
        disk.wrote(EARLY_SYNC_BYTES - 1)
        assert disk._running is None
        disk.sync()
