"""A worker without room for its result says so; nobody waits for it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.patience import PATIENCE

from eqcohvit.data.shared_memory import share

SRC = Path(__file__).parents[2] / "src"
SCRIPT = """
from eqcohvit.data import CanvasStream, SpritesSource
from eqcohvit.data.shared_memory import NoSharedMemory
stream = CanvasStream(SpritesSource(64), canvas_size=256, batch_size=64, num_workers=1)  # 12 MiB a batch
{limit}
try:
    next(iter(stream))
except NoSharedMemory as error:
    print(error)
"""
# A limit on the size of files is one on shared memory too, and needs no rights.
LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
SMALL_SHM = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=8m tmpfs /dev/shm && exec "$@"', "sh"]


@pytest.mark.skipif(sys.platform != "linux", reason="workers of other systems share memory in other ways")
@pytest.mark.parametrize(("limit", "before"), [(LIMIT, []), ("", SMALL_SHM)], ids=["limit", "small /dev/shm"])
def test_a_worker_without_shared_memory_ends_the_wait(limit, before):
    if before and (not shutil.which("unshare") or subprocess.run([*before, "true"], capture_output=True).returncode):
        pytest.skip("this system lets no user mount a /dev/shm of 8 MiB (unshare -rm)")
    environment = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}
    command = [*before, sys.executable, "-c", SCRIPT.format(limit=limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environment)
    assert done.stdout.startswith("no room in shared memory for a worker's result ("), done.stderr[-2000:]
    assert "set the number of workers to 0, or give the container more (docker run --shm-size 2g)" in done.stdout
    assert not before or "/dev/shm has 8 MiB free" in done.stdout


def test_without_workers_nothing_is_moved():
    tensors = {"a": [torch.zeros(2)]}
    assert share(tensors) is tensors and not tensors["a"][0].is_shared()
