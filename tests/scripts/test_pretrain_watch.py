"""What a run shows of itself: probes, report.html, pictures for trackers."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import SIZES, load_script
from tests.training.test_trackers import Tiny

from eqcohvit.training import pretrain as loop

SMALL = (
    f"{SIZES} "
    "--per_device_train_batch_size 4 --max_steps 4 --warmup_steps 2 --logging_steps 2 --save_steps 3 --sample_steps 4"
).split()
PROBED = [*SMALL, "--probe_samples", "96", "--probe_steps", "3"]
TIMING = ("samples_per_second", "data_wait_share")


@pytest.fixture(scope="module")
def pretrain():
    return load_script("pretrain")


@pytest.fixture(scope="module")
def probed(pretrain, tmp_path_factory) -> Path:
    output_dir = tmp_path_factory.mktemp("runs") / "probed"
    assert pretrain.cli([*PROBED, "--output_dir", str(output_dir)]) == 0
    return output_dir


def metrics(output_dir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / "checkpoints" / "step-4" / "model.safetensors")


def test_probes_are_logged_at_the_start_at_their_steps_and_at_the_end(probed):
    steps = {line["step"]: {name for name in line if name.startswith("probe/")} for line in metrics(probed)}
    names = {
        f"probe/{kind}/{part}"
        for kind in ("r2", "r2_paper", "knn")
        for part in ("equivariant", "invariant", "backbone")
    }
    assert steps == {0: names, 2: set(), 3: names, 4: names}


def test_run_with_probes_trains_the_weights_of_one_without(pretrain, probed, tmp_path):
    assert pretrain.cli([*SMALL, "--probe_samples", "0", "--output_dir", str(tmp_path / "run")]) == 0
    assert [line["step"] for line in metrics(tmp_path / "run")] == [2, 4]
    with_probes, without = weights(probed), weights(tmp_path / "run")
    assert with_probes.keys() == without.keys() and all(
        torch.equal(with_probes[name], without[name]) for name in without
    )


def test_resumed_run_has_the_same_probes_and_its_page_the_whole_history(pretrain, probed, tmp_path, capsys):
    resumed = tmp_path / "run"
    shutil.copytree(probed, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step-4")
    (resumed / "report.html").unlink()
    assert pretrain.cli([*PROBED, "--output_dir", str(resumed), "--resume_from_checkpoint", "latest"]) == 0
    assert metrics(resumed) == metrics(probed)
    page = (resumed / "report.html").read_text()
    (drawn,) = re.findall(r"R2, strict</h3>.*?points='([^']*)'", page)[:1]
    assert len(drawn.split()) == 3  # steps 0, 3 and 4
    assert "step 0/4" not in capsys.readouterr().out


def test_lines_show_each_r2_once_and_fit_100_columns(pretrain, tmp_path, capsys):
    assert pretrain.cli([*PROBED, "--output_dir", str(tmp_path / "run")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["0/4", "2/4", "4/4"] and max(map(len, lines)) <= 100
    first, between, last = lines
    for line, entry in ((first, metrics(tmp_path / "run")[0]), (last, metrics(tmp_path / "run")[3])):
        assert f"R2 equi {entry['probe/r2/equivariant']:.3f} inv {entry['probe/r2/invariant']:.3f}" in line
    assert "R2" not in between  # nothing was measured since step 0


def test_a_run_that_ends_without_knowing_the_angle_says_so(pretrain, tmp_path, capsys):
    assert pretrain.cli([*PROBED, "--output_dir", str(tmp_path / "run")]) == 0
    r2 = metrics(tmp_path / "run")[-1]["probe/r2/equivariant"]
    assert r2 < 0.1  # after four steps
    said = f"R2 of the equivariant part is {r2:.3f} (strict), where guessing has 0: it hardly tells the transformation."
    assert said in " ".join(capsys.readouterr().out.split())
    assert said in (tmp_path / "run" / "report.html").read_text()
    assert pretrain.cli([*PROBED, "--recon_weight", "0", "--output_dir", str(tmp_path / "plain")]) == 0
    assert "guessing has 0" not in capsys.readouterr().out


def test_page_is_one_file_that_says_how_the_run_was_made(probed):
    page = (probed / "report.html").read_text()
    assert (
        not re.search(r"(src|href)=['\"](?!data:)|url\(|<script|https?://", page)
        and page.count("data:image/png;base64,") == 1
    )
    for text in (
        "vicreg + rotation",
        "step 4 of 4",
        "python -m eqcohvit.commands.pretrain",
        "--probe_samples 96",
        "<dt>torch</dt>",
    ):
        assert text in page
    assert "fitted on 64 images, tested on 32, every 3 steps" in page


def test_trackers_get_figures_and_pictures_and_their_failures_end_no_run(pretrain, tmp_path, monkeypatch, capsys):
    make, tracker, broken = loop.open_accelerator, Tiny(), Tiny("broken", broken=True)

    def make_with_trackers(args):
        args.report_to = "none"
        accelerator = make(args)
        accelerator.log_with, args.report_to = [tracker, broken], "tiny"
        return accelerator

    monkeypatch.setattr(loop, "open_accelerator", make_with_trackers)
    assert pretrain.cli([*PROBED, "--output_dir", str(tmp_path / "run")]) == 0
    assert [(note[0], *note[2:3]) for note in tracker.noted] == [
        ("log", 0), ("log", 2), ("log", 3), ("log", 4), ("images", 4), ("finish",),
    ]  # fmt: skip
    assert tracker.noted[4][1]["samples"].shape == (1, 488, 700, 3)
    assert capsys.readouterr().out.count("the tracker broken failed, the run goes on without it") == 1
