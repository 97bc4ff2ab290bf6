"""The admin port under schemathesis: valid and invalid requests, while a client acts."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

from tests.harness import COMMAND_S_MAX, ROOT

EXAMPLES: Final = 15
"""For each endpoint and operator; `make fuzz` tries more."""

OPERATORS: Final = 2

SEED: Final = 20_260_101


def test_every_request_gets_a_described_answer_and_no_act_is_disturbed() -> None:
    words = [sys.executable, "-m", "tests.daemon.tools.admin_fuzz", "--seed", str(SEED)]
    words += ["--examples", str(EXAMPLES), "--operators", str(OPERATORS)]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_S_MAX, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("No issues found") == OPERATORS
