"""A peer's server: starts it in the peers' environment, waits until it listens, and stops it with all its processes."""

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

from pillion_bench.compare.systems import System, peers_python
from pillion_bench.errors import PeerError
from pillion_bench.limits import PEER_LOG_CHARACTERS_MAX, PEER_START_S_MAX, PEER_STOP_S_MAX
from pillion_bench.process.placement import CpuSet, pinned
from pillion_bench.shipped import peers_folder

_POLL_S: Final = 0.02


class PeerServer:
    """Owns a peer's server on a free port of 127.0.0.1 and all of its processes; a context manager.

    `model` has the bytes of the ONNX file, `output` the name of its action. Raises `PeerError`.
    """

    def __init__(self, system: System, model: bytes, output: str, cpus: CpuSet | None) -> None:
        self._system = system
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
        """The process id of the server, which may have child processes."""
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
        program = [str(peers_python()), str(peers_folder() / self._system.server)]
        options = ["--model", str(model), "--output", self._output, "--port", str(self._port)]
        with (folder / "server.log").open("wb") as log, pinned(self._cpus):
            self._process = subprocess.Popen(
                [*program, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**os.environ, "TMPDIR": str(folder)},
                # Its own process group: some servers have children that survive a SIGTERM to the first process.
                start_new_session=True,
            )

    def _wait_until_it_listens(self) -> None:
        give_up_s = time.monotonic() + PEER_START_S_MAX
        while not _accepts_connections(self._port):
            if self._process.poll() is not None:
                raise PeerError(f"the server exited with code {self._process.returncode}: {self._log_tail()}")
            if time.monotonic() > give_up_s:
                raise PeerError(f"the server did not listen within {PEER_START_S_MAX:g} s: {self._log_tail()}")
            time.sleep(_POLL_S)

    def _log_tail(self) -> str:
        text = Path(self._folder.name, "server.log").read_text(errors="replace")
        return " ".join(text.split())[-PEER_LOG_CHARACTERS_MAX:] or "it printed nothing"

    def _end(self) -> None:
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PEER_STOP_S_MAX)
        # Kills what ignored SIGTERM, child processes included.
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return  # no process of the group is left


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _accepts_connections(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
