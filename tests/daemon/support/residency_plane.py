"""A data plane with several versions, for tests of leases, switches and unloading."""

from __future__ import annotations

import numpy as np

from pillion_protocol import Action, Begun, Spec, decode
from pilliond.core.residency import Residency
from pilliond.limits import ServingLimits
from pilliond.settings.schema import VersionSettings
from pilliond.versions.loaded_version import Identity, Version
from tests.daemon.support.fakes import DIGEST, GAUSSIAN, SPEC, CountingEngine, DataPlane, act, action_of, observation

NS_PER_S = 1_000_000_000
"""The fake clock counts nanoseconds."""


class AddingEngine(CountingEngine):
    """An engine whose action is the sum of the observation plus `added`, which differs between versions."""

    def __init__(self, rows_max: int, added: float) -> None:
        super().__init__(rows_max)
        self.added = added

    def run(self, rows: int) -> None:
        super().run(rows)
        self.outputs["action"][:rows] += np.float32(self.added)


class ResidencyPlane(DataPlane):
    """A data plane with a residency. The action of version 1.n.0 is 100 × n more than that of 1.0.0."""

    def __init__(self, bounds: VersionSettings | None = None, limits: ServingLimits | None = None) -> None:
        super().__init__(limits)
        self.residency = Residency(self.router, self.sessions, self.scheduler, bounds or VersionSettings())

    def first_version(self, safe_action: list[float] | None) -> Version:
        return self.make_version(0)

    def make_engine(self, number: int) -> CountingEngine:
        """Returns the engine of version 1.`number`.0."""
        return AddingEngine(self.limits.rows_max, 100.0 * number)

    def make_version(self, number: int, spec: Spec = SPEC) -> Version:
        """Returns version 1.`number`.0, not loaded yet."""
        identity = Identity("counter", f"1.{number}.0", bytes([number]) + DIGEST[1:])
        return Version(identity, spec, GAUSSIAN, self.make_engine(number), metrics_index=number + 1)

    def load(self, number: int, spec: Spec = SPEC) -> Version:
        """Loads version 1.`number`.0; no episode leases it yet."""
        version = self.make_version(number, spec)
        self.residency.add(version)
        return version

    def load_held(self, number: int) -> Version:
        """Loads version 1.`number`.0 and holds it for an evaluation."""
        version = self.load(number)
        self.residency.hold([version], 0)
        return version

    def load_arm(self, number: int, share: float) -> Version:
        """Loads version 1.`number`.0 and makes it the only arm of the traffic split."""
        version = self.load(number)
        self.residency.set_arms([(version, share)], self.clock.now_ns)
        return version

    def switch(self, number: int, spec: Spec = SPEC) -> Version:
        """Makes 1.`number`.0 the stable version; loads it first if necessary."""
        version = self.residency.find(bytes([number]) + DIGEST[1:]) or self.make_version(number, spec)
        self.residency.add(version)
        self.residency.switch(version, self.clock.now_ns)
        return version

    def act_on_ones(self, begun: Begun, sequence: int, rows: int = 1, **fields: object) -> tuple[Action, list[float]]:
        """Acts on observations of ones and returns the reply and the action of each row."""
        self.deliver(b"peer", act(begun, sequence, rows, **fields), observation(rows))
        self.run()
        (sent,) = self.transport.sent
        self.transport.sent.clear()
        return action_of(decode(sent[1])), np.frombuffer(sent[2], np.float32).tolist()

    def sweep_after(self, seconds: float) -> list[bytes]:
        """Advances the clock and sweeps; returns the first digest byte, that is `number`, of each unloaded version."""
        self.clock.now_ns += int(seconds * NS_PER_S)
        return [digest[:1] for digest, _ in self.residency.sweep(self.clock.now_ns)]
