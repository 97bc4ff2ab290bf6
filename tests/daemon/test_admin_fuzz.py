"""The admin port under schemathesis: what its description allows and what it does not, while somebody acts."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

from tests.harness import ROOT

EXAMPLES: Final = 70
"""For each endpoint; `make fuzz` tries more."""

SEED: Final = 20_260_101


def test_whatever_is_asked_gets_an_answer_that_the_description_has_and_no_act_is_disturbed() -> None:
    words = [sys.executable, "-m", "tests.daemon.admin_fuzz", "--examples", str(EXAMPLES), "--seed", str(SEED)]
    came = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert came.returncode == 0, came.stdout + came.stderr
    assert "No issues found" in came.stdout
