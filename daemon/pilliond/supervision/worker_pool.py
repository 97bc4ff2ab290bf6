"""The worker pool: starts a worker where the serving process needs one, ends the lost ones, and bounds their memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

from structlog.typing import FilteringBoundLogger

from pilliond.errors import SwitchError
from pilliond.ipc.control_channel import ControlMessage, GiveUp, NeedWorker, WorkerReady, WorkerStarted
from pilliond.ipc.device_status import device_status, engine_of_replica
from pilliond.ipc.loss_cause import LossCause
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.ipc.worker_process import with_exit_status
from pilliond.limits import WORKER_END_S_MAX, WORKER_LOOK_S
from pilliond.linux.process_group import kill_group
from pilliond.linux.spawner import Spawner
from pilliond.settings.schema import EngineSettings
from pilliond.supervision.worker_losses import WorkerLosses
from pilliond.supervision.worker_start import SHORTAGES, StartedWorker

State = Literal["loading", "ready", "lost", "out"]
"""Rule: LOADING → READY → LOST → LOADING …; LOADING → LOST; LOST → OUT, and back to LOADING by `retry`."""

_BYTES_PER_MB: Final = 1_000_000
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def resident_bytes_of(pid: int) -> int:
    """Returns the resident memory of a process, the shared pages that it uses included; 0 if there is no such process."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (FileNotFoundError, ProcessLookupError):
        return 0


class WorkerInfo:
    """What is known of one worker of a version. `settings` are those of the policy, with all devices."""

    def __init__(self, version: SealedVersion, settings: EngineSettings, replica: int = 0) -> None:
        self.version = version
        self.replica = replica
        """Which of the version's workers: the index of its device."""
        self.settings = settings.on_device(replica)
        """With the device and the CPUs of this one alone."""
        is_one_of_several = settings.worker_count(is_recurrent=bool(version.card.state)) > 1
        self.name = {"version": str(version), **({"replica": replica} if is_one_of_several else {})}
        """The fields of the log that say which worker it is."""
        self.losses = WorkerLosses()
        self.process: subprocess.Popen[bytes] | None = None
        self.state: State = "loading"
        self.reason = ""
        """Why it was lost last, or is out; empty while it was never lost."""
        self.restarts = 0
        """Workers started to replace a lost one."""
        self.too_large = ""
        """Why this worker was killed for its memory; empty: it was not."""
        self.is_ahead = False
        """Whether its first worker was started before the serving process asked for one."""
        self.started: StartedWorker | None = None
        """A process that was started for it before its version was there."""
        self.timer: asyncio.TimerHandle | None = None
        self.settled: asyncio.Future[str] | None = None
        """Where somebody waits until it is ready (empty) or out (the reason)."""

    @property
    def pid(self) -> int | None:
        """The process id of the worker; None while there is none."""
        return None if self.process is None else self.process.pid

    def settle(self, reason: str) -> None:
        """Tells whoever waits for it."""
        if self.settled is not None and not self.settled.done():
            self.settled.set_result(reason)


class WorkerPool:
    """Owns the worker processes, at most one for each device of a version. `tell` sends a control message to the serving process.

    Rule: the serving process asks for each worker, also for one that replaces a lost one. A worker that it has given up,
    or whose version it has unloaded, is killed here.
    """

    def __init__(
        self,
        spawner: Spawner,
        tell: Callable[[ControlMessage, Sequence[int]], None],
        log: FilteringBoundLogger,
        resident_bytes: Callable[[int], int] = resident_bytes_of,
    ) -> None:
        self._spawner = spawner
        self._tell = tell
        self._log = log
        self._resident_bytes = resident_bytes
        self._workers: dict[tuple[bytes, int], WorkerInfo] = {}
        """By the digest of the version and the number of the replica."""
        self._ending: list[subprocess.Popen[bytes]] = []
        """Killed workers that have not ended yet: the kernel may take long to release their memory."""
        self.losses: Counter[tuple[str, LossCause]] = Counter()
        """Workers lost since the daemon started, by policy and cause."""

    def find(self, digest: bytes, replica: int = 0) -> WorkerInfo | None:
        """Returns what is known of a version's worker; None if it runs inline."""
        return self._workers.get((digest, replica))

    def workers_of(self, digest: bytes) -> list[WorkerInfo]:
        """Returns what is known of each worker of a version, in the order of the devices; none if it runs inline."""
        return sorted((info for (of, _), info in self._workers.items() if of == digest), key=lambda info: info.replica)

    def why_out(self, digest: bytes) -> str:
        """Returns why a version is out; empty if it is not."""
        infos = self.workers_of(digest)
        return infos[0].reason if infos and all(info.state == "out" for info in infos) else ""

    def start_first(
        self, version: SealedVersion, settings: EngineSettings, started: StartedWorker | None = None
    ) -> None:
        """Starts the first worker of a version before the serving process asks for it, which it must do later.

        Takes over the process of `started`, if there is one.
        """
        info = self._workers[version.key, 0] = WorkerInfo(version, settings)
        info.is_ahead = True
        info.started = started
        self._start(info)

    def need(self, report: NeedWorker, version: SealedVersion, settings: EngineSettings) -> None:
        """Starts a worker for a version, at once or after a pause; or gives the version up."""
        info = self._workers.setdefault((report.digest, report.replica), WorkerInfo(version, settings, report.replica))
        is_there, info.is_ahead = info.is_ahead and not report.reason, False
        if is_there:
            return
        if not report.reason:
            self._start(info)
            return
        cause = LossCause.MEMORY if info.too_large else report.cause
        # Before it is killed here, if it still runs: the serving process sees only the end of its channel.
        reason, info.too_large = info.too_large or with_exit_status(report.reason, info.process), ""
        self._kill(info)
        self.losses[version.policy, cause] += 1
        is_refused = cause is LossCause.REFUSED
        delay_s = info.losses.lost(
            time.monotonic_ns(), report.batches, report.reruns, is_refused=is_refused, is_repeat=report.is_repeat
        )
        if delay_s is None:
            self._give_up(info, reason)
            return
        self._start_later(info, cause, reason, delay_s)

    def ready(self, report: WorkerReady) -> None:
        """Notes that a replacement serves."""
        info = self._workers.get((report.digest, report.replica))
        if info is not None:
            self._note_ready(info)

    def loaded(self, digest: bytes) -> None:
        """Notes that the workers of a version serve, but for those that are out. Does nothing for one that runs inline."""
        for info in self.workers_of(digest):
            if info.state != "out":
                self._note_ready(info)

    def _note_ready(self, info: WorkerInfo) -> None:
        info.state = "ready"
        device = device_status(engine_of_replica(info.version.engine, info.replica)).for_log()
        self._log.info("worker_ready", **info.name, pid=info.pid, restarts=info.restarts, **device)
        info.settle("")

    async def retry(self, digest: bytes) -> None:
        """Tries a version that is out again, and waits until it serves; raises `SwitchError` if it is out again.

        The losses begin anew. Of a version that serves, it tries the replicas that are out, and does not wait for them.
        """
        is_out = bool(self.why_out(digest))
        tried = [info for info in self.workers_of(digest) if info.state == "out"]
        for info in tried:
            info.losses = WorkerLosses()
            info.restarts += 1
            info.settled = asyncio.get_running_loop().create_future() if is_out else None
            self._start(info)
        if is_out:
            await self._wait_until_one_serves(tried)

    async def _wait_until_one_serves(self, tried: list[WorkerInfo]) -> None:
        """Waits until one of these workers is ready; raises `SwitchError` if none gets there."""
        load_s_max = tried[0].settings.load_s_max
        waiting = {info.settled for info in tried if info.settled is not None}
        reason = ""
        try:
            async with asyncio.timeout(load_s_max):
                while waiting:
                    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    reasons = [future.result() for future in done]
                    if "" in reasons:
                        return
                    reason = reasons[0]
        except TimeoutError:
            raise SwitchError(f"its worker did not serve within {load_s_max:g} s") from None
        finally:
            for info in tried:
                info.settled = None
        raise SwitchError(f"it is out again: {reason}")

    async def run(self) -> None:
        """Bounds the memory of the workers until it is cancelled."""
        while True:
            await asyncio.sleep(WORKER_LOOK_S)
            self.check_memory()
            self._reap()

    def check_memory(self) -> None:
        """Kills each worker with more resident memory than its settings allow; the serving process then asks for another."""
        for info in self._workers.values():
            if info.process is None or info.too_large:
                continue
            resident_bytes = self._resident_bytes(info.process.pid)
            if resident_bytes > info.settings.worker_memory_mb_max * _BYTES_PER_MB:
                most = f"engine.worker_memory_mb_max is {info.settings.worker_memory_mb_max}"
                info.too_large = f"it had {resident_bytes // _BYTES_PER_MB} MB of resident memory, {most}"
                kill_group(info.process)

    def end(self, digest: bytes) -> None:
        """Ends the workers of a version that is not loaded any more, if it has any."""
        for info in self.workers_of(digest):
            del self._workers[digest, info.replica]
            self._kill(info)
            info.settle("it was unloaded meanwhile")

    def close(self) -> None:
        """Ends every worker. Does not wait for the processes, see `wait_ended`."""
        for digest in {digest for digest, _ in self._workers}:
            self.end(digest)

    def wait_ended(self) -> None:
        """Waits until the killed workers have ended, for `WORKER_END_S_MAX` at most. May be called in a thread."""
        until_s = time.monotonic() + WORKER_END_S_MAX
        for process in list(self._ending):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until_s - time.monotonic()))

    def _start(self, info: WorkerInfo) -> None:
        self._kill(info)
        info.state = "loading"
        info.losses.started(time.monotonic_ns())
        try:
            self._start_one(info)
        except (BrokenPipeError, ConnectionResetError):
            # Without a serving process nobody needs the worker any more; `close` ends it.
            return
        except OSError as error:
            self._kill(info)
            reason = f"cannot start a worker: {error.strerror}"
            if error.errno in SHORTAGES:
                cause = LossCause.SHORTAGE
                self.losses[info.version.policy, cause] += 1
                self._start_later(info, cause, reason, info.losses.short(time.monotonic_ns()))
            else:
                self._give_up(info, reason)

    def _start_one(self, info: WorkerInfo) -> None:
        started, info.started = info.started or StartedWorker(self._spawner, info.settings), None
        info.process = started.process
        with started.end as serving_end:
            version = info.version
            self._tell(WorkerStarted(version.key, info.replica), [version.model_descriptor, serving_end.fileno()])

    def _start_later(self, info: WorkerInfo, cause: LossCause, reason: str, delay_s: float) -> None:
        info.state, info.reason = "lost", reason
        self._log.error("worker_lost", **info.name, cause=cause.value, reason=reason, restart_in_s=delay_s)
        info.restarts += 1
        info.timer = asyncio.get_running_loop().call_later(delay_s, self._start, info)

    def _give_up(self, info: WorkerInfo, reason: str) -> None:
        info.state, info.reason = "out", reason
        is_version_out = bool(self.why_out(info.version.key))
        if "replica" in info.name:
            self._log.error("replica_out", **info.name, reason=reason, losses=info.losses.losses)
        if is_version_out:
            self._log.error("version_out", version=str(info.version), reason=reason, losses=info.losses.losses)
        self._tell_out(info)
        info.settle(reason)

    def _tell_out(self, info: WorkerInfo) -> None:
        """Tells the serving process that a version is out; tries again until it reads: until then acts wait in vain."""
        info.timer = None
        try:
            self._tell(GiveUp(info.version.key, info.reason, info.replica), ())
        except (BrokenPipeError, ConnectionResetError):
            # Nobody is there to be told.
            return
        except OSError:
            # A serving process that does not read any more is killed, see `Watchdog`; `close` then ends the tries.
            info.timer = asyncio.get_running_loop().call_later(WORKER_LOOK_S, self._tell_out, info)

    def _kill(self, info: WorkerInfo) -> None:
        """Kills a worker, if there is one, and cancels what was to come. Does not wait for the process."""
        if info.timer is not None:
            info.timer.cancel()
            info.timer = None
        if info.process is not None:
            kill_group(info.process)
            self._ending.append(info.process)
            info.process = None
        self._reap()

    def _reap(self) -> None:
        self._ending = [process for process in self._ending if process.poll() is None]
