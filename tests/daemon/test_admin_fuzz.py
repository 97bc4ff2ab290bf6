"""The admin port under schemathesis: what its description allows and what it does not, while somebody acts."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

from tests.harness import COMMAND_S_MAX, ROOT

EXAMPLES: Final = 40
"""For each endpoint and operator; `make fuzz` tries more."""

OPERATORS: Final = 2

SEED: Final = 20_260_101


def test_whatever_is_asked_gets_an_answer_that_the_description_has_and_no_act_is_disturbed() -> None:
    words = [sys.executable, "-m", "tests.daemon.admin_fuzz", "--seed", str(SEED)]
    words += ["--examples", str(EXAMPLES), "--operators", str(OPERATORS)]
    came = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_S_MAX, check=False)
    assert came.returncode == 0, came.stdout + came.stderr
    assert came.stdout.count("No issues found") == OPERATORS
