"""A client that must notice nothing: it acts until its standard input ends, and looks at every number that comes.

`python -m tests.daemon.support.background_client ADDRESS`: says "ready" on a line when it has acted once, then its number of acts as JSON. It
ends with a traceback where an answer is wrong or does not come.
"""

from __future__ import annotations

import json
import select
import sys

import numpy as np

import pillion
from tests.daemon.support.wide_policies import WIDTH
from tests.harness import WAIT_S_MAX


def stand_by(address: str) -> int:
    """Acts with other numbers each time; gives how often."""
    numbers = np.random.default_rng()
    acts = 0
    with pillion.connect(address, timeout_s=WAIT_S_MAX) as session, session.begin(seed=1) as episode:
        while not acts or not select.select([sys.stdin], [], [], 0)[0]:
            observation = numbers.normal(size=WIDTH).astype(np.float32)
            action = episode.act(observation)
            np.testing.assert_array_equal(action, 2 * observation)
            acts += 1
            if acts == 1:
                print("ready", flush=True)
    return acts


if __name__ == "__main__":
    print(json.dumps({"acts": stand_by(sys.argv[1])}))
