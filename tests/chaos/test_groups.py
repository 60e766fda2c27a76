"""Groups of two processes over gloo: uneven data, and data or a process that end on one side only."""

import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from tests.patience import PATIENCE
from tests.run_server import SCRIPTS, samples_seen
from tests.tiny import SIZES, TWO_PROCESSES, png

from eqcohvit.training.checkpoint import list_checkpoints

SETTINGS = (
    f"{SIZES} "
    "--num_intermediates 1 "
    "--per_device_train_batch_size 4 --warmup_steps 2 --logging_steps 5 --sample_steps 1000"
).split()

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("sizes", [(5, 40, 11), (56,), (1, 55)])
def test_uneven_shards_give_equal_steps_and_disjoint_samples(run_server, tmp_path, sizes):
    import datasets

    features = datasets.Features({"image": datasets.Image()})
    for shard, size in enumerate(sizes):
        pictures = [
            Image.new("RGB", (20, 20), (value, 255 - value, 0)) for value in range(shard * 60, shard * 60 + size)
        ]
        rows = {"image": [{"bytes": png(picture), "path": None} for picture in pictures]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / f"{shard}.parquet"))
    argv = [
        *SETTINGS,
        "--data_files",
        str(tmp_path / "*.parquet"),
        "--output_dir",
        str(tmp_path / "run"),
        "--max_steps",
        "15",
    ]
    run_server.run(argv, tmp_path / "record", num_processes=2)
    ranks = [[pair for batch in samples_seen(tmp_path / "record", rank) for pair in batch] for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == 15 * 4  # two epochs of 56 and a bit
    assert set(ranks[0]).isdisjoint(ranks[1])
    counts = Counter(ranks[0] + ranks[1])
    assert set(counts.values()) == {1} and [sum(epoch == one for epoch, _ in counts) for one in range(2)] == [56, 56]


def test_a_run_goes_on_with_more_and_fewer_processes_and_loses_or_doubles_nothing(run_server, photos, tmp_path):
    places = ["--train_dir", str(photos), "--output_dir", str(tmp_path / "run")]
    argv, seen = [*SETTINGS, *places, "--resume_from_checkpoint", "latest", "--max_steps"], []
    for life, (num_processes, max_steps) in enumerate(
        [(1, 2), (2, 5), (1, 12)]
    ):  # 8 + 24 + 28 samples: two epochs of 24 and a half
        runs = run_server.start([*argv, str(max_steps)], tmp_path / f"record{life}", num_processes)
        assert [run.wait(PATIENCE) for run in runs] == [0] * num_processes, runs[0].output()[-2000:]
        seen += [
            pair
            for rank in range(num_processes)
            for batch in samples_seen(tmp_path / f"record{life}", rank)
            for pair in batch
        ]
    assert "the checkpoint is of 2 processes; 1 go on with the rest of its epoch" in runs[0].output()
    counts = Counter(seen)
    assert len(seen) == 60 and set(counts.values()) == {1}
    assert [sum(epoch == one for epoch, _ in counts) for one in range(3)] == [24, 24, 12]


def test_a_process_whose_images_are_all_bad_ends_the_other_too(run_server, photos, tmp_path):
    """Of sorted files, each second goes to the second process in the first epoch."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, path in enumerate(sorted(photos.rglob("*.jpg"))):
        (folder / f"{index:02}-good.jpg").write_bytes(path.read_bytes())
        (folder / f"{index:02}-spoiled.jpg").write_bytes(b"spoiled")
    argv = [*SETTINGS, "--train_dir", str(folder), "--output_dir", str(tmp_path / "run"), "--max_steps", "1000"]
    runs = run_server.start(argv, tmp_path / "record", num_processes=2)
    assert [run.wait(PATIENCE) for run in runs] == [1, 1]
    output = "".join(run.output() for run in runs)
    assert "could not be decoded, more than max_bad_fraction=0.01 allows" in output and "Traceback" not in output


def children(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:  # ended meanwhile
            continue
        if int(fields[1]) == pid:
            found.append(int(status.parent.name))
    return sorted(found)


def test_torchrun_ends_and_leaves_no_process_where_one_is_killed(photos, tmp_path):
    command = [*TWO_PROCESSES, str(SCRIPTS / "pretrain.py"), *SETTINGS]
    command += [
        "--train_dir",
        str(photos),
        "--output_dir",
        str(tmp_path / "run"),
        "--max_steps",
        "100000",
        "--save_steps",
        "2",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + PATIENCE
        while not list_checkpoints(tmp_path / "run"):
            assert launcher.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.05)
        processes = children(launcher.pid)
        assert len(processes) == 2
        os.kill(processes[1], signal.SIGKILL)
        assert launcher.wait(PATIENCE) == 1
        assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()]
    finally:
        if launcher.poll() is None:
            launcher.kill()
            for pid in children(launcher.pid):
                os.kill(pid, signal.SIGKILL)
            launcher.wait()
