"""Turns: what a thread asks the kernel for, and what it leaves as an operator has set it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.harness import START_S_MAX

TAKE = """
import os, sys
from pilliond.linux.cpu_priority import request_short_slices
os.sched_setscheduler(0, int(sys.argv[1]), os.sched_param(int(sys.argv[2])))
request_short_slices()
print(os.sched_getscheduler(0), os.sched_getparam(0).sched_priority)
"""


def policy_after(policy: int, priority: int) -> tuple[int, int]:
    """Policy and priority of a process of these, when it has asked for short turns."""
    words = [sys.executable, "-c", TAKE, str(policy), str(priority)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=START_S_MAX, check=True)
    first, second = result.stdout.split()
    return int(first), int(second)


@pytest.mark.parametrize("policy", [os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE])
def test_who_asks_for_short_turns_keeps_its_policy(policy: int) -> None:
    assert policy_after(policy, 0) == (policy, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a real-time policy")
@pytest.mark.parametrize("policy", [os.SCHED_FIFO, os.SCHED_RR])
def test_a_real_time_policy_stays_as_the_operator_gave_it(policy: int) -> None:
    assert policy_after(policy, 7) == (policy, 7)
