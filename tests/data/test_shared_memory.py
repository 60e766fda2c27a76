"""A worker without room for its result says so; nobody waits for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eqcohvit.data.shared_memory import share

SRC = Path(__file__).parents[2] / "src"
# A limit on the size of files is one on shared memory too: what a small /dev/shm does, without being root.
SCRIPT = """
import resource, sys
import numpy as np
from eqcohvit.data import CanvasStream, SpritesSource
from eqcohvit.data.shared_memory import NoSharedMemory
stream = CanvasStream(SpritesSource(64), canvas_size=64, batch_size=16, num_workers=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    next(iter(stream))
except NoSharedMemory as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="workers of other systems share memory in other ways")
def test_a_worker_without_shared_memory_ends_the_wait():
    environment = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, env=environment)
    assert done.stdout.startswith("no room in shared memory for a worker's result ("), done.stderr[-2000:]
    assert "set the number of workers to 0, or give the container more (docker run --shm-size 2g)" in done.stdout


def test_without_workers_nothing_is_moved():
    tensors = {"a": [torch.zeros(2)]}
    assert share(tensors) is tensors and not tensors["a"][0].is_shared()
