"""Runs that are killed at random times and resumed end as if nothing had happened.

    pytest -m chaos                                               # 20 kills of one process, 6 of a group of two
    EQCOHVIT_CHAOS_KILLS=50 EQCOHVIT_CHAOS_SEED=7 pytest -m chaos -s    # a longer run by hand; prints what was hit

Each kill is a SIGKILL of a real process (of the whole run, or of one of its two), at a random moment of a random kind:
while it starts, between and in steps, while a checkpoint is being written, while the model is exported. Decoding moves
between the training process and two workers from life to life. The truth is a run of the same settings that nobody
disturbs.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import load
from safetensors.torch import load_file
from tests.patience import PATIENCE
from tests.run_server import Run, samples_seen
from tests.tiny import SIZES

from eqcohvit.training.checkpoint import list_checkpoints, verify_checkpoint

NUM_KILLS = int(os.environ.get("EQCOHVIT_CHAOS_KILLS", "20"))
SEED = int(os.environ.get("EQCOHVIT_CHAOS_SEED", "0"))
SAVE_STEPS = 3

SETTINGS = (
    f"{SIZES} "
    "--num_intermediates 1 "
    "--per_device_train_batch_size 4 --warmup_steps 4 --logging_steps 4 --sample_steps 1000 --max_bad_fraction 0.3 "
    "--augmentation small --objective ibot --recon_weight 5"
).split()

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def dirty_photos(photos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dirty")
    shutil.copytree(photos, folder, dirs_exist_ok=True)
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("<html>404</html>")
    return folder


def flags(images: Path, output_dir: Path, max_steps: int) -> list[str]:
    run = f"--max_steps {max_steps} --save_steps {SAVE_STEPS} --resume_from_checkpoint latest".split()
    return [*SETTINGS, *run, "--train_dir", str(images), "--output_dir", str(output_dir)]


def wait_until(condition, run: Run, generator: random.Random, most: float) -> bool:
    """Until the condition holds, and a random moment of at most `most` seconds longer; False if the run ends before."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if run.wait(0.0) is not None:
            return False
        assert time.monotonic() < deadline, run.output()[-2000:]
        time.sleep(0.003)
    time.sleep(generator.uniform(0, most))
    return True


def kill_somewhere(run: Run, output_dir: Path, generator: random.Random, kind: str) -> bool:
    """SIGKILL at a random moment of this kind; False if the run ended by itself before that."""
    checkpoints, num_batches = output_dir / "checkpoints", generator.randint(0, 2 * SAVE_STEPS)
    conditions = {
        "start": (lambda: True, 0.6),
        "step": (lambda: run.num_batches() >= num_batches, 0.1),
        # One that it writes itself: a left-over goes before the stream begins. A group whose first process dies before
        # they have met waits for it as long as torch's rendezvous does; ending it sooner is the launcher's part.
        "save": (lambda: run.num_batches() >= 0 and any(checkpoints.glob(".step-*.tmp")), 0.03),
        "export": (lambda: (output_dir / ".model.new").exists(), 0.1),
    }
    condition, most = conditions[kind]
    if not wait_until(condition, run, generator, most) or run.wait(0.0) is not None:
        return False
    run.signal(signal.SIGKILL)
    return True


def assert_same_end(output_dir: Path, truth: Path, num_processes: int = 1) -> None:
    """Weights, teacher, heads, optimizer, random states, positions, metrics and exported model are equal, bit by
    bit."""
    last, true_last = list_checkpoints(output_dir)[-1], list_checkpoints(truth)[-1]
    assert last.name == true_last.name and sorted(p.name for p in last.iterdir()) == sorted(
        p.name for p in true_last.iterdir()
    )
    verify_checkpoint(last)
    for file in (f"{last.name}/model.safetensors", "../model/model.safetensors"):
        ours, theirs = (load_file(folder / "checkpoints" / file) for folder in (output_dir, truth))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours), file
    for file in ("optimizer.bin", *(f"random_states_{rank}.pkl" for rank in range(num_processes))):
        assert_equal(load(last / file), load(true_last / file), file)
    assert json.loads((last / "run_state.json").read_text()) == json.loads((true_last / "run_state.json").read_text())
    assert metrics(output_dir) == metrics(truth)
    assert bad_images(output_dir) == bad_images(truth)


def assert_equal(ours, theirs, where: str) -> None:
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, np.ndarray):
        assert np.array_equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_equal(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(*pair, f"{where}/{index}")
    else:
        assert ours == theirs, where


def metrics(output_dir: Path) -> list[dict]:
    timing = ("samples_per_second", "data_wait_share")
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timing} for line in lines]


def bad_images(output_dir: Path) -> list[tuple[str, str]]:
    path = output_dir / "bad_images.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return sorted((Path(line["path"]).name, line["reason"]) for line in lines)


def assert_same_samples(record: Path, true_record: Path, max_steps: int, num_processes: int = 1) -> int:
    """Each step saw what it sees in the undisturbed run, and each whole epoch has each sample once; returns the number
    of epochs."""
    seen = []
    for rank in range(num_processes):
        ours, theirs = samples_seen(record, rank), samples_seen(true_record, rank)
        assert ours[:max_steps] == theirs[:max_steps] and len(ours) == len(theirs) == max_steps
        seen += [pair for batch in ours for pair in batch]
    counts = Counter(seen)
    assert set(counts.values()) == {1}
    whole_epochs = min(epoch for epoch, _ in (samples_seen(record, rank)[-1][-1] for rank in range(num_processes)))
    keys = {key for epoch, key in counts if epoch == 0}
    assert len(keys) == 24
    assert all({key for epoch, key in counts if epoch == one} == keys for one in range(whole_epochs))
    return whole_epochs


def test_a_run_killed_at_random_times_ends_like_an_undisturbed_one(run_server, dirty_photos, tmp_path):
    generator, max_steps = random.Random(SEED), 3 * NUM_KILLS
    truth, true_record = tmp_path / "truth", tmp_path / "true_record"
    run_server.run(flags(dirty_photos, truth, max_steps), true_record)

    output_dir, record, hit = tmp_path / "run", tmp_path / "record", Counter()
    while sum(hit.values()) < NUM_KILLS:
        left = NUM_KILLS - sum(hit.values())
        kind = "export" if left == 1 else generator.choices(("start", "step", "save"), (1, 5, 4))[0]
        workers = ["--dataloader_num_workers", generator.choice(("0", "0", "2"))]
        run = run_server.start([*flags(dirty_photos, output_dir, max_steps), *workers], record)[0]
        if kill_somewhere(run, output_dir, generator, kind):
            assert run.wait(PATIENCE) == -signal.SIGKILL
            half_written = any((output_dir / "checkpoints").glob(".step-*"))
            hit[kind + (", half a checkpoint left" if half_written else "")] += 1
        else:  # the run was over first: only a kill during the export is left to do
            assert run.wait(PATIENCE) == 0, run.output()[-2000:]
            assert list_checkpoints(output_dir)[-1].name == f"step-{max_steps}"
    run_server.run(flags(dirty_photos, output_dir, max_steps), record)
    assert_same_end(output_dir, truth)
    epochs = assert_same_samples(record, true_record, max_steps)
    print(
        f"\n{NUM_KILLS} kills {dict(hit)}: {max_steps} steps of 4 samples, {epochs} whole epochs, all equal (seed "
        f"{SEED})"
    )


def test_a_group_of_two_of_which_one_is_killed_ends_and_goes_on_like_an_undisturbed_one(
    run_server, dirty_photos, tmp_path
):
    """The process that is left notices, says so and ends; both resume together."""
    num_kills = max(1, NUM_KILLS * 3 // 10)
    generator, max_steps = random.Random(SEED + 1), 4 * num_kills
    truth, true_record = tmp_path / "truth", tmp_path / "true_record"
    run_server.run(flags(dirty_photos, truth, max_steps), true_record, num_processes=2)

    output_dir, record, hit, slowest = tmp_path / "run", tmp_path / "record", Counter(), 0.0
    while sum(hit.values()) < num_kills:
        runs = run_server.start(flags(dirty_photos, output_dir, max_steps), record, num_processes=2)
        rank, kind = generator.randrange(2), generator.choice(("step", "step", "save"))
        if kill_somewhere(runs[rank], output_dir, generator, kind):
            killed = time.monotonic()
            assert runs[rank].wait(PATIENCE) == -signal.SIGKILL
            assert runs[1 - rank].wait(PATIENCE) == 1, runs[1 - rank].output()[-2000:]
            slowest = max(slowest, time.monotonic() - killed)
            hit[f"rank {rank}, {kind}"] += 1
        else:
            assert [run.wait(PATIENCE) for run in runs] == [0, 0], runs[0].output()[-2000:]
    run_server.run(flags(dirty_photos, output_dir, max_steps), record, num_processes=2)
    assert_same_end(output_dir, truth, num_processes=2)
    epochs = assert_same_samples(record, true_record, max_steps, num_processes=2)
    print(
        f"\n{sum(hit.values())} kills {dict(hit)}: {max_steps} steps of 2 x 4 samples, {epochs} whole epochs, all "
        "equal; ",
        end="",
    )
    print(f"the other process ended at most {slowest:.1f} s later (seed {SEED})")
