"""Runs resumed over other images, over the same ones elsewhere, and with their own folder among the images."""

import shutil

import pytest
from PIL import Image
from tests.tiny import load_script

from eqcohvit.training.checkpoint import list_checkpoints, read_state

SMALL = (
    "--image_size 16 --patch_size 8 --feature_dim 16 --equivariant_dim 8 --decoder_dim 16 --projector_dim 16 "
    "--probe_samples 0 "
    "--per_device_train_batch_size 4 --warmup_steps 0 --logging_steps 1 --save_steps 1 --sample_steps 1"
).split()


@pytest.fixture(scope="module")
def pretrain():
    return load_script("pretrain")


@pytest.fixture
def images(photos, tmp_path):
    return shutil.copytree(photos, tmp_path / "images")


def run(pretrain, images, output_dir, steps, *flags):
    where = ["--train_dir", str(images)] if images else []
    return pretrain.cli([*SMALL, *where, "--output_dir", str(output_dir), "--max_steps", str(steps), *flags])


def test_other_images_are_refused_before_anything_is_written(pretrain, images, tmp_path, capsys):
    assert run(pretrain, images, tmp_path / "run", 2) == 0
    before = {
        path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != ".run.lock"
    }
    Image.new("RGB", (40, 40)).save(images / "new.png")
    assert run(pretrain, images, tmp_path / "run", 3, "--resume_from_checkpoint", "latest") == 2
    message = capsys.readouterr().err
    assert (
        "cannot resume over other images (24 then, 25 now): restore them, or start a new run from this one, with "
        "--init_from" in message
    )
    assert before == {path: path.read_bytes() for path in before}
    (images / "new.png").unlink()
    assert run(pretrain, images, tmp_path / "run", 3, "--resume_from_checkpoint", "latest") == 0


def test_images_that_have_moved_are_found_by_a_flag(pretrain, images, tmp_path, capsys):
    assert run(pretrain, images, tmp_path / "run", 1) == 0
    moved = images.rename(tmp_path / "moved")
    assert (
        pretrain.cli(["--output_dir", str(tmp_path / "run"), "--max_steps", "2", "--resume_from_checkpoint", "latest"])
        == 2
    )
    assert (
        "no such folder" in (message := capsys.readouterr().err) and "give --train_dir or --data_files again" in message
    )
    assert run(pretrain, moved, tmp_path / "run", 2, "--resume_from_checkpoint", "latest") == 0


def test_a_run_inside_its_images_does_not_train_on_its_own_pictures(pretrain, images, capsys):
    output_dir = images / "runs" / "mine"
    assert run(pretrain, images, output_dir, 2) == 0
    assert list((output_dir / "samples").glob("*.png"))
    assert run(pretrain, images, output_dir, 3, "--resume_from_checkpoint", "latest") == 0
    assert read_state(list_checkpoints(output_dir)[-1])["data"]["num_images"] == 24
