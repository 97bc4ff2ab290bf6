"""What `make gpu` measures with real workers, each in a process of its own, behind an engine of the serving process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from pillion_protocol import TensorSpec
from pillion_worker.arena import OK
from tests.worker.support.policies import Policy
from tests.worker.support.torch_policies import TorchHost, policy
from tools.gpu_policies import Made

SWITCHES = 20
AFTER_SWITCH = 50
"""Batches after a switch that its p99 is taken of."""


def depth_gain(name: str, made: Made, rows: int, device: str, seconds: float) -> dict[str, Any]:
    """Rows per second of a worker that always has as many batches as it may, with one and with two at once."""
    served = served_policy(made)
    rows_s = {}
    for depth in (1, 2):
        with TorchHost(served, rows, device=device, depth=depth, spin_us=200) as host:
            host.start()
            rows_s[depth] = saturate([host], seconds)[0] * rows / seconds
    return {"policy": name, "rows": rows, "rows_s": rows_s, "gain": rows_s[2] / rows_s[1]}


def neighbours(small: Made, large: Made, device: str, runs: int) -> dict[str, float]:
    """The p99 of a small policy alone, and while the worker of a large one is always busy on the same device, in µs."""
    with (
        TorchHost(served_policy(small), 1, device=device, spin_us=200) as host,
        TorchHost(served_policy(large), 16, device=device, spin_us=200) as other,
    ):
        host.start()
        other.start()
        alone = p99_us(latencies(host, runs))
        beside = p99_us(latencies(host, runs, other))
    return {"alone_p99_us": alone, "beside_p99_us": beside, "ratio": beside / alone}


def switches(made: Made, device: str, runs: int) -> dict[str, Any]:
    """The p99 of the batches that follow a switch between two resident versions, and of as many others, in µs."""
    served = served_policy(made)
    with (
        TorchHost(served, 1, device=device, spin_us=200) as one,
        TorchHost(served, 1, device=device, spin_us=200) as two,
    ):
        hosts = [one.start(), two.start()]
        steady, after = [], []
        for number in range(SWITCHES):
            host = hosts[number % 2]
            after.append(p99_us(latencies(host, AFTER_SWITCH)))
            latencies(host, runs)
            steady.append(p99_us(latencies(host, AFTER_SWITCH)))
    steady_us, after_us = (float(np.median(each)) for each in (steady, after))
    noise_us = float(np.percentile(steady, 95))
    return {
        "steady_p99_us": steady_us,
        "steady_p99_us_at_most": noise_us,
        "after_switch_p99_us": after_us,
        "is_within_noise": after_us <= noise_us,
    }


def served_policy(made: Made) -> Policy:
    """The policy of a module, for a worker."""
    observation = [TensorSpec(each.name, each.dtype, each.shape) for each in made.inputs]
    return policy(made.program, observation, [TensorSpec("action", "float32", [made.width])])


def latencies(host: TorchHost, runs: int, other: TorchHost | None = None) -> list[int]:
    """How long each of these batches takes, one after the other, in ns; meanwhile `other` always has one."""
    taken = []
    for _ in range(runs):
        count = len(host.answers) + 1
        began_ns = time.perf_counter_ns()
        host.engine.submit(host.engine.free[0], host.engine._request.rows_max)
        while len(host.answers) < count:
            keep_busy([other] if other is not None else [])
            serve([host])
        taken.append(time.perf_counter_ns() - began_ns)
        assert host.answers[-1].outcome == OK, host.answers[-1].message
    return taken


def saturate(hosts: Sequence[TorchHost], seconds: float) -> list[int]:
    """Keeps workers busy for so long; returns how many batches each completed."""
    keep_busy(hosts)
    before = [len(host.answers) for host in hosts]
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        keep_busy(hosts)
    return [len(host.answers) - count for host, count in zip(hosts, before, strict=True)]


def keep_busy(hosts: Sequence[TorchHost]) -> None:
    """Takes what is completed, and submits to every memory that is free."""
    serve(hosts)
    for host in hosts:
        while host.engine.free:
            host.engine.submit(host.engine.free[0], host.engine._request.rows_max)


def serve(hosts: Sequence[TorchHost]) -> None:
    """Takes what is completed, without waiting."""
    for host in hosts:
        for descriptor, _ in host.poller.poll(0, 64):
            source = host.poller.sources.get(descriptor)
            if source is not None:
                source.receive()
        assert not host.losses, host.losses


def p99_us(taken_ns: Sequence[int]) -> float:
    """The p99 in µs."""
    return float(np.percentile(taken_ns, 99)) / 1_000
