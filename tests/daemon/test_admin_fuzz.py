"""The admin port under schemathesis: what its description allows and what it does not, while somebody acts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from pillion_bench.variants import POLICY
from tests.conftest import StartDaemon
from tests.daemon.admin_fuzz import Onlooker, ask, check_as_before, publish
from tests.harness import ROOT

EXAMPLES: Final = 70
"""For each endpoint; `make fuzz` tries more."""

SEED: Final = 20_260_101


def test_whatever_is_asked_gets_an_answer_that_the_description_has_and_no_act_is_disturbed(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    store = publish(tmp_path / "store")
    daemon = start_daemon(policy=f"{POLICY}@stable", store=store.root)
    with Onlooker(daemon.address) as onlooker:
        print(f"seed {SEED}")
        came = ask(daemon.admin, tmp_path, EXAMPLES, SEED)
        assert came.returncode == 0, came.stdout + came.stderr
        check_as_before(daemon, onlooker)
    assert onlooker.acts > 100
    words = [sys.executable, "-m", "pillion", "artifact", "fsck", "--store", str(store.root)]
    checked = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
