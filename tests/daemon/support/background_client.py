"""A client that acts in the background and compares every number of every answer.

`python -m tests.daemon.support.background_client ADDRESS` prints "ready" after its first act. It acts until its standard
input ends and then prints its number of acts as JSON. A wrong or missing answer ends it with a traceback.
"""

from __future__ import annotations

import json
import select
import sys

import numpy as np

import pillion
from tests.daemon.support.policies.wide import WIDTH
from tests.harness import WAIT_S_MAX


def act_until_input_ends(address: str) -> int:
    """Acts on a new observation each time and returns the number of acts."""
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
    print(json.dumps({"acts": act_until_input_ends(sys.argv[1])}))
