"""A peer's server: started in the peers' environment, waited for, and ended with all the processes that it has."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pillion_bench.compare.systems import Contestant, peers_python
from pillion_bench.errors import PeerError
from pillion_bench.process.placement import CpuSet, inherited
from pillion_bench.shipped import peers_folder

START_S_MAX: Final = 60.0
"""From the start to the first connection that is taken."""

STOP_S_MAX: Final = 5.0
"""From SIGTERM to the end; then whatever is left of it is killed."""

_LOOK_S: Final = 0.02
_LAST_WORDS: Final = 300


class PeerServer:
    """Owns a peer's server on a free port of 127.0.0.1 and all of its processes; a context manager.

    `model` holds the bytes of the ONNX file, `output` the name of the action in it.
    """

    def __init__(self, contestant: Contestant, model: bytes, output: str, cpus: CpuSet | None) -> None:
        self._contestant = contestant
        self._model = model
        self._output = output
        self._cpus = cpus
        self._port = 0
        self._folder: tempfile.TemporaryDirectory[str]
        self._process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        """`HOST:PORT`."""
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """The process that was started; it may have others."""
        return self._process.pid

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="pillion-bench-", ignore_cleanup_errors=True)
        self._start(Path(self._folder.name))
        try:
            self._wait_until_it_listens()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _start(self, folder: Path) -> None:
        model = folder / "model.onnx"
        model.write_bytes(self._model)
        self._port = _free_port()
        program = [str(peers_python()), str(peers_folder() / self._contestant.server)]
        options = ["--model", str(model), "--output", self._output, "--port", str(self._port)]
        with (folder / "server.log").open("wb") as log, inherited(self._cpus):
            self._process = subprocess.Popen(
                [*program, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**os.environ, "TMPDIR": str(folder)},
                # A group of its own: some of them have children that outlive a SIGTERM to the first.
                start_new_session=True,
            )

    def _wait_until_it_listens(self) -> None:
        give_up_s = time.monotonic() + START_S_MAX
        while not _is_taken(self._port):
            if self._process.poll() is not None:
                raise PeerError(f"the server ended with {self._process.returncode}: {self._last_words()}")
            if time.monotonic() > give_up_s:
                raise PeerError(f"the server did not listen within {START_S_MAX:g} s: {self._last_words()}")
            time.sleep(_LOOK_S)

    def _last_words(self) -> str:
        text = Path(self._folder.name, "server.log").read_text(errors="replace")
        return " ".join(text.split())[-_LAST_WORDS:] or "it said nothing"

    def _end(self) -> None:
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S_MAX)
        # Whoever is left did not heed it.
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return  # nobody of the group is left


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def _is_taken(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
