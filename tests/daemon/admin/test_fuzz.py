"""The admin port under schemathesis: what its description allows and what it does not, while somebody acts."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

from tests.harness import ROOT

EXAMPLES: Final = 40
"""For each endpoint and operator; `make fuzz` tries more."""

OPERATORS: Final = 2

SEED: Final = 20_260_101


def test_whatever_is_asked_gets_an_answer_that_the_description_has_and_no_act_is_disturbed() -> None:
    words = [sys.executable, "-m", "tests.daemon.tools.admin_fuzz", "--seed", str(SEED)]
    words += ["--examples", str(EXAMPLES), "--operators", str(OPERATORS)]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("No issues found") == OPERATORS
