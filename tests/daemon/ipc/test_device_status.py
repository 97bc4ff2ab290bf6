"""What a worker says of its device, and of others that it has not got."""

from __future__ import annotations

from typing import Any

import pytest

from pilliond.ipc.device_status import device_status, engine_of_replica, replicas_of

SEVERAL = {"device": "cpu, cuda:0", "replicas": [{"device": "cpu"}, {"device": "cuda:0"}]}


@pytest.mark.parametrize("said", [5, "cpu", [1, 2], True, [], [{"device": "cpu"}, 1]])
def test_a_worker_that_says_it_is_several_is_one(said: Any) -> None:
    engine = {"device": "cuda:1", "replicas": said}
    assert replicas_of(engine) == []
    for number in (0, 1, 9):
        assert device_status(engine_of_replica(engine, number)).device == "cuda:1"


def test_each_of_several_has_its_own_device() -> None:
    assert [device_status(engine_of_replica(SEVERAL, number)).device for number in (0, 1)] == ["cpu", "cuda:0"]
    assert device_status(engine_of_replica(SEVERAL, 2)).device == "cpu, cuda:0"
