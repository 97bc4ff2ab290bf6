"""CPU priority: a thread that requests short time slices keeps its scheduling policy."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.harness import START_S_MAX

REQUEST = """
import os, sys
from pilliond.linux.cpu_priority import request_short_slices
os.sched_setscheduler(0, int(sys.argv[1]), os.sched_param(int(sys.argv[2])))
request_short_slices()
print(os.sched_getscheduler(0), os.sched_getparam(0).sched_priority)
"""


def policy_after(policy: int, priority: int) -> tuple[int, int]:
    """Starts a process with this policy and priority; returns both after it has requested short time slices."""
    words = [sys.executable, "-c", REQUEST, str(policy), str(priority)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=START_S_MAX, check=True)
    first, second = result.stdout.split()
    return int(first), int(second)


@pytest.mark.parametrize("policy", [os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE])
def test_a_thread_that_requests_short_slices_keeps_its_policy(policy: int) -> None:
    assert policy_after(policy, 0) == (policy, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can set a real-time policy")
@pytest.mark.parametrize("policy", [os.SCHED_FIFO, os.SCHED_RR])
def test_a_real_time_policy_and_its_priority_are_kept(policy: int) -> None:
    assert policy_after(policy, 7) == (policy, 7)
