"""The daemon ends, in order or not: everything admitted is answered, and no process is left."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest

import pillion
from pillion_protocol import Act, Action, Error, Ping, Pong, encode
from tests.conftest import StartDaemon
from tests.daemon.support.hostile_policies import publish_hostile, publish_slow, row
from tests.daemon.support.raw_lane import RawEpisodeGroup, RawLane
from tests.daemon.support.recurrent_policies import publish_summing
from tests.daemon.support.worker_faults import is_stopped, send, the_worker, worker_pids
from tests.harness import WAIT_S_MAX, Daemon, wait_until
