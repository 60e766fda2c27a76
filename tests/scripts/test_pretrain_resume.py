"""Runs resumed over other images, over the same ones elsewhere, and with their own folder among the images."""

import os
import shutil
import zipfile

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.image_kinds import file_of
from tests.tiny import SIZES, load_script

from eqcohvit.data import stream
from eqcohvit.training.checkpoint import list_checkpoints, read_state

SMALL = (
    f"{SIZES} "
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


@pytest.mark.parametrize("kind", ["folder", "parquet", "zip"])
def test_other_content_under_the_same_names_is_refused_and_a_copy_elsewhere_is_not(kind, pretrain, tmp_path, capsys):
    """One image of three differs, in pixels alone: the files keep their names, sizes and times."""

    def write(place, changed):
        place.mkdir()
        pixels = [np.full((20, 20, 3), value, np.uint8) for value in (10, 250 if changed else 20, 30)]
        contents = [file_of(Image.fromarray(values), "BMP") for values in pixels]
        if kind == "folder":
            files = [place / f"{index}.bmp" for index in range(3)]
            for file, content in zip(files, contents, strict=True):
                file.write_bytes(content)
            flags = ["--train_dir", str(place)]
        elif kind == "parquet":
            files = [place / "x.parquet"]
            pq.write_table(pyarrow.table({"image": contents}), files[0], compression="none")
            flags = ["--data_files", str(files[0]), "--image_column", "image"]
        else:
            files = [place / "x.zip"]
            with zipfile.ZipFile(files[0], "w") as archive:
                for index, content in enumerate(contents):
                    archive.writestr(zipfile.ZipInfo(f"a/{index}.bmp"), content)
            flags = ["--dataset_name", "imagefolder", "--data_files", str(files[0])]
        for file in files:
            os.utime(file, (1, 1))
        return flags, {file.name: file.stat().st_size for file in files}

    def go_on(flags, steps):
        return run(pretrain, None, tmp_path / "run", steps, *flags, "--resume_from_checkpoint", "latest")

    flags, sizes = write(tmp_path / "images", changed=False)
    assert run(pretrain, None, tmp_path / "run", 1, *flags) == 0
    flags, moved_sizes = write(tmp_path / "copy", changed=False)
    assert moved_sizes == sizes and go_on(flags, 2) == 0
    flags, other_sizes = write(tmp_path / "other", changed=True)
    assert other_sizes == sizes and go_on(flags, 3) == 2
    message = capsys.readouterr().err
    assert "cannot resume over other images (other content in files of the same names): restore them" in message
    assert message.count("\n") == 1


def test_a_resumed_run_says_that_another_library_decodes_now(pretrain, images, tmp_path, capsys, monkeypatch):
    resume = ("--resume_from_checkpoint", "latest")
    monkeypatch.setattr(stream, "jpeg_decoder", lambda: "Pillow")
    assert run(pretrain, images, tmp_path / "run", 1) == 0
    assert read_state(list_checkpoints(tmp_path / "run")[-1])["data"]["jpeg_decoder"] == "Pillow"
    assert run(pretrain, images, tmp_path / "run", 2, *resume) == 0
    assert "has decoded the JPEGs" not in capsys.readouterr().out
    monkeypatch.setattr(stream, "jpeg_decoder", lambda: "simplejpeg")
    assert run(pretrain, images, tmp_path / "run", 3, *resume) == 0
    told = "Pillow has decoded the JPEGs of this run, from here on simplejpeg does: pixels may differ by rounding\n"
    assert capsys.readouterr().out.count(told) == 1
    assert read_state(list_checkpoints(tmp_path / "run")[-1])["data"]["jpeg_decoder"] == "simplejpeg"


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
