"""Policies that misbehave while they are made, always, or when the first row of a batch is one of `TRIGGERS`.

Otherwise the action, float32 [1], is twice the observation, float32 [1].
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

LEAK_BYTES = 100_000_000
_LEAKED: list[Any] = []


class UnreadableError(Exception):
    """Its text cannot be read."""

    def __str__(self) -> str:
        raise SystemExit("no text")


def _raise(rows: Any) -> NoReturn:
    raise ValueError("the policy\nis broken")


def _raise_much(rows: Any) -> NoReturn:
    raise ValueError("x" * 50_000_000)


def _raise_unreadable(rows: Any) -> NoReturn:
    raise UnreadableError


def _raise_half_a_character(rows: Any) -> NoReturn:
    raise ValueError("half \ud800 a character")


def _exit(rows: Any) -> NoReturn:
    sys.exit(3)


def _interrupt(rows: Any) -> NoReturn:
    raise KeyboardInterrupt


def _recurse(rows: Any) -> None:
    _recurse(rows)


def _end(rows: Any) -> NoReturn:
    os._exit(0)


def _crash(rows: Any) -> None:
    ctypes.string_at(0)


def _print(rows: Any) -> None:
    print("printed by the policy")
    sys.stdout.write("\x00 without an end")
    os.write(1, b"written by the policy\n")


def _fork(rows: Any) -> None:
    # The child comes back, too.
    os.fork()


def _fork_and_come_back_late(rows: Any) -> None:
    if os.fork() == 0:
        os.kill(os.getpid(), signal.SIGSTOP)


def _fork_and_stay(rows: Any) -> None:
    if os.fork() == 0:
        time.sleep(3_600)


def _fork_and_raise(rows: Any) -> None:
    if os.fork() == 0:
        raise ValueError("in the child")


def _start_a_program(rows: Any) -> None:
    subprocess.Popen(["sleep", "3600"])


def _hold_the_gil(rows: Any) -> None:
    # Unlike CDLL, it does not release it.
    ctypes.PyDLL(None).sleep(3_600)


def _leak(rows: Any) -> None:
    _LEAKED.append(np.ones(LEAK_BYTES, np.uint8))


def _write_into_its_input(rows: Any) -> None:
    rows[:] = 0


FAULTS: dict[str, Callable[[Any], None]] = {
    name.lstrip("_"): fault
    for name, fault in list(globals().items())
    if name.startswith("_") and getattr(fault, "__module__", "") == __name__
}

ANSWERS: dict[str, Callable[[Any], Any]] = {
    "wrong_name": lambda rows: {"actions": 2 * rows},
    "wrong_dtype": lambda rows: {"action": 2.0 * rows.astype(np.float64)},
    "wrong_byte_order": lambda rows: {"action": (2 * rows).astype(">f4")},
    "wrong_shape": lambda rows: {"action": 2 * rows[:, 0]},
    "few_rows": lambda rows: {"action": 2 * rows[:1]},
    "many_rows": lambda rows: {"action": np.concatenate([rows, rows])},
    "nan": lambda rows: {"action": np.full_like(rows, np.nan)},
    "no_dict": lambda rows: (2 * rows,),
    "nothing": lambda rows: None,
    "a_list": lambda rows: {"action": (2 * rows).tolist()},
    "ragged": lambda rows: {"action": [[1.0], [1.0, 2.0]]},
    "text": lambda rows: {"action": "left"},
}


TRIGGERS = {name: 666.0 + number for number, name in enumerate([*FAULTS, *ANSWERS])}
"""The first row that lets a policy do what the name says. Nobody draws these numbers by chance."""
_NAMES = {value: name for name, value in TRIGGERS.items()}


def make(weights: dict[str, Any], at_load: str = "", always: str = "") -> Callable[[dict[str, Any]], Any]:
    """Makes one: `at_load` is a key of `FAULTS`, `always` one of `ANSWERS`."""
    if at_load:
        FAULTS[at_load](None)

    def policy(observations: dict[str, Any]) -> Any:
        rows = observations["observation"]
        name = _NAMES.get(float(rows[0, 0]), always)
        if name in FAULTS:
            FAULTS[name](rows)
        return ANSWERS[name](rows) if name in ANSWERS else {"action": 2 * rows}

    return policy


def counting(weights: dict[str, Any], step: float = 0.0) -> Callable[[dict[str, Any]], Any]:
    """Makes a harmless one with a state: its action is the sum of the observations so far, and of as many steps."""

    def policy(observations: dict[str, Any]) -> Any:
        total = observations["total"] + observations["observation"] + np.float32(step)
        return {"action": total, "next_total": total}

    return policy


def mixing(weights: dict[str, Any], with_the: str) -> Callable[[dict[str, Any]], Any]:
    """Makes one whose answer for a row depends on the other rows of its batch: `with_the` is a key of `MIXTURES`."""
    return lambda observations: {
        "action": 2 * observations["observation"] + MIXTURES[with_the](observations["observation"])
    }


MIXTURES: dict[str, Callable[[Any], Any]] = {
    "first row": lambda rows: rows[0],
    "last row": lambda rows: rows[-1],
    "mean": lambda rows: rows.mean(axis=0),
    "number of rows": lambda rows: np.float32(len(rows)),
}


def no_policy(weights: dict[str, Any]) -> Any:
    """Returns something that cannot be called."""
    return weights


NOT_A_FACTORY = 1
