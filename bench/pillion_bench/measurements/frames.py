"""The cost of carrying an observation of a given size to the daemon, in a packet and in a slot.

The policies are made here: each takes that many bytes and returns the first, which takes almost no time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from pillion_artifacts import ModelCard, Store
from pillion_artifacts.card.layers import CARD_NAME, MODEL_NAME
from pillion_artifacts.card.model_card import TensorCard
from pillion_bench.exchange import Exchange
from pillion_bench.host import describe_host
from pillion_bench.limits import ANSWER_S_MAX
from pillion_bench.percentiles import Nanoseconds, nanoseconds, percentiles_us, relative_difference
from pillion_bench.process.daemon_process import DaemonProcess
from pillion_bench.process.placement import Placement
from pillion_bench.process.worker import Worker
from pillion_bench.roles.echo import EchoPlan, PingRequest, PingResult
from pillion_bench.roles.frame_driver import FramePlan, FrameRequest, FrameResult
from pillion_protocol.limits import SLOT_BYTES_MIN, TENSOR_BYTES_MAX

_OPSET: Final = 17
_IR_VERSION: Final = 9
_HEAD_BYTES: Final = 128
"""The messages of the ping-pong: about as long as the head of an act."""

_WITHOUT_SLOTS: Final = {"PILLION_LIMITS__SLOTS_MB_MAX": "0"}

SLOT, PACKET = "slot", "packet"


class FrameOptions(msgspec.Struct, frozen=True):
    """Sizes in bytes, and how long and how often each is measured."""

    sizes: list[int]
    seconds: float = 1.0
    repeat: int = 3

    def paths(self, size: int) -> list[str]:
        """Returns the paths that an observation of `size` bytes can take."""
        possible = {SLOT: size >= SLOT_BYTES_MIN, PACKET: size <= TENSOR_BYTES_MAX}
        return [path for path, is_possible in possible.items() if is_possible]

    @property
    def measurements(self) -> int:
        """The number of measurements of all sizes, paths and rounds."""
        return sum(len(self.paths(size)) for size in self.sizes) * self.repeat


class _Series:
    """All rounds of one size on one path."""

    def __init__(self) -> None:
        self.results: list[FrameResult] = []
        self.pings_ns: list[Nanoseconds] = []

    def row(self, size: int, path: str) -> dict[str, Any]:
        """Returns the row of the report."""
        rounds_ns = [nanoseconds(result.added_ns) for result in self.results]
        carrier_ns = np.concatenate(rounds_ns)
        copy_ns = np.concatenate([nanoseconds(result.copy_ns) for result in self.results])
        carrier_us = percentiles_us(carrier_ns)
        copy_us = percentiles_us(copy_ns)["p50"]
        ping_us = percentiles_us(np.concatenate(self.pings_ns))["p50"]
        rounds = [percentiles_us(round_ns)["p50"] for round_ns in rounds_ns]
        return {
            "bytes": size,
            "path": path,
            "n": len(carrier_ns),
            "carrier_us": carrier_us,
            "carrier_us_p50_of_rounds": rounds,
            "noise": round(relative_difference(min(rounds), max(rounds)), 4),
            "copy_us": copy_us,
            "ping_pong_us": ping_us,
            "carrier_over_copy_and_ping_pong": round(carrier_us["p50"] / (copy_us + ping_us), 3),
        }


def measure_frames(placement: Placement, options: FrameOptions, advance: Callable[[str], None]) -> dict[str, Any]:
    """Measures every size on every path that it can take, interleaved; returns the report of `pillion bench frames`."""
    series = {(size, path): _Series() for size in options.sizes for path in options.paths(size)}
    with tempfile.TemporaryDirectory(prefix="pillion-bench-") as folder:
        store = Path(folder, "store")
        for size in options.sizes:
            publish_frame_policy(Store(store), size)
        for number in range(options.repeat):
            for size, path in reversed(series) if number % 2 else series:
                advance(f"{size:,} bytes in a {path}")
                current = series[size, path]
                current.pings_ns.append(_ping(Path(folder, "ping.sock"), placement, options.seconds / 2))
                current.results.append(_measure(store, size, path, placement, options.seconds))
    return {
        "report": "pillion.frames",
        "n": sum(len(result.added_ns) // 8 for each in series.values() for result in each.results),
        "rows": [each.row(size, path) for (size, path), each in series.items()],
        "slot_bytes_min": SLOT_BYTES_MIN,
        "seconds": options.seconds,
        "repeat": options.repeat,
        "pin": str(placement),
        "host": describe_host(),
    }


def publish_frame_policy(store: Store, size: int) -> None:
    """Publishes `frame-SIZE@1.0.0`: takes uint8 [size], returns its first element as float32 [1]."""
    card = ModelCard(
        schema=3,
        name=_policy(size),
        version="1.0.0",
        description=f"Takes {size} bytes and returns the first.",
        licence="Apache-2.0",
        observation=[TensorCard("observation", "uint8", [size])],
        outputs=[TensorCard("action", "float32", [1])],
    )
    with tempfile.TemporaryDirectory(prefix="pillion-bench-") as folder:
        Path(folder, MODEL_NAME).write_bytes(_first_element(size))
        Path(folder, CARD_NAME).write_bytes(msgspec.yaml.encode(card))
        store.publish(card.name, card.version, Path(folder))


def _policy(size: int) -> str:
    return f"frame-{size}"


def _first_element(size: int) -> bytes:
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["observation", "first"], ["element"], axis=1),
            helper.make_node("Cast", ["element"], ["action"], to=TensorProto.FLOAT),
        ],
        "first-element",
        [helper.make_tensor_value_info("observation", TensorProto.UINT8, ["rows", size])],
        [helper.make_tensor_value_info("action", TensorProto.FLOAT, ["rows", 1])],
        [helper.make_tensor("first", TensorProto.INT64, [1], [0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    return bytes(model.SerializeToString())


def _measure(store: Path, size: int, path: str, placement: Placement, seconds: float) -> FrameResult:
    settings = {} if path == SLOT else _WITHOUT_SLOTS
    settings = settings | {"PILLION_LIMITS__ROWS_MAX": "1"}
    with (
        DaemonProcess(store, _policy(size), placement.server, "lane", settings) as daemon,
        Worker("frame", FramePlan(daemon.address, path == SLOT), placement.client) as client,
    ):
        return client.request(FrameRequest(seconds), FrameResult, seconds + ANSWER_S_MAX)


def _ping(path: Path, placement: Placement, seconds: float) -> Nanoseconds:
    plan = EchoPlan(str(path), Exchange([_HEAD_BYTES], [_HEAD_BYTES]))
    path.unlink(missing_ok=True)
    with Worker("lane-echo", plan, placement.server) as echo:
        echo.receive(str, ANSWER_S_MAX)
        with Worker("lane-ping", plan, placement.client) as ping:
            ping.receive(str, ANSWER_S_MAX)
            result = ping.request(PingRequest(seconds), PingResult, seconds + ANSWER_S_MAX)
    return nanoseconds(result.round_trip_ns)
