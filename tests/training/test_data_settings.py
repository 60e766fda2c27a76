"""Sizes that follow from the images."""

import pytest
import yaml
from PIL import Image
from tests.tiny import load_script

from eqcohvit.training import data_settings
from eqcohvit.training.arguments import parse_arguments
from eqcohvit.training.data_settings import batch_for, settings_of_images, sizes_for


@pytest.mark.parametrize(
    ("shorter_side", "patch_size", "on_gpu", "expected"),
    [
        (400, 8, False, (96, 16, "micro")),
        (96, 8, True, (96, 8, "tiny")),
        (95, 8, True, (88, 8, "micro")),
        (64, 8, False, (64, 8, "micro")),
        (28, 4, False, (28, 4, "micro")),
        (5, 8, False, (16, 8, "micro")),
    ],
)
def test_sizes_follow_the_table(shorter_side, patch_size, on_gpu, expected):
    assert tuple(sizes_for(shorter_side, patch_size, on_gpu).values()) == expected


@pytest.mark.parametrize(("num_images", "expected"), [(0, 64), (1, 2), (60, 32), (64, 64), (1000, 64)])
def test_a_batch_is_not_larger_than_the_images(num_images, expected):
    assert batch_for(num_images, 64) == expected


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    for number, size in enumerate([(300, 200), (200, 120), (150, 130)]):
        Image.new("RGB", size, (number * 40, 9, 9)).save(folder / f"{number}.png")
    return folder


def sizes(*flags):
    args = parse_arguments([*map(str, flags)], settings_of_images)
    return args.image_size, args.patch_size, args.model_preset


def test_photographs_get_larger_views_and_flags_stay(large, monkeypatch, capsys):
    monkeypatch.setattr(data_settings, "has_gpu", lambda: False)
    assert sizes("--train_dir", large) == (96, 16, "micro")
    first, second = capsys.readouterr().out.splitlines()
    assert "130 px" in first and "--image_size 96 --patch_size 16 --model_preset micro" in first and len(first) <= 100
    assert second == "3 images, so --per_device_train_batch_size 2"
    assert sizes("--train_dir", large, "--image_size", 48) == (48, 8, "micro")
    assert sizes("--train_dir", large, "--patch_size", 12) == (96, 12, "micro")
    assert sizes("--train_dir", large, "--patch_size", 10) == (90, 10, "micro")
    assert sizes() == (32, 8, "micro")
    monkeypatch.setattr(data_settings, "has_gpu", lambda: True)
    assert sizes("--train_dir", large) == (96, 8, "tiny")
    assert sizes("--train_dir", large, "--model_preset", "micro") == (96, 8, "micro")
    assert sizes("--train_dir", large, "--image_size", 64) == (64, 8, "tiny")


def test_a_start_gives_the_sizes_and_the_images_the_batch(large, tmp_path, monkeypatch):
    values = vars(parse_arguments([])) | {"train_dir": str(large), "init_from": "some/vit"}
    assert settings_of_images(values, set()) == {"per_device_train_batch_size": 2}
    assert settings_of_images(values, {"per_device_train_batch_size"}) == {}


CONTINUED = {"freeze_backbone": True, "learning_rate": 1e-3, "max_steps": 60, "warmup_steps": 6}
CONTINUED |= {"invariant_rank_start": 0.0, "per_device_train_batch_size": 2}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, CONTINUED),
        ({"max_steps": 500}, {n: v for n, v in CONTINUED.items() if n not in ("max_steps", "warmup_steps")}),
        ({"peft": "lora"}, {"per_device_train_batch_size": 2}),
        ({"learning_rate": 1e-5}, {"per_device_train_batch_size": 2}),
        ({"init_heads": False}, {"per_device_train_batch_size": 2}),
        (dict.fromkeys(CONTINUED, 2), {}),
    ],
)
def test_few_images_continue_a_model_by_its_heads_alone(large, encoder_folder, flags, expected, capsys):
    values = vars(parse_arguments([])) | {"train_dir": str(large), "init_from": str(encoder_folder), **flags}
    assert settings_of_images(values, set(flags)) == expected
    said = " ".join(capsys.readouterr().out.split())
    assert ("3 images continue" in said) == (len(expected) > 1)
    assert all(f"--{name}" in said for name in expected)


def test_many_images_train_as_the_flags_say(large, encoder_folder, monkeypatch):
    monkeypatch.setattr(data_settings, "FEW_IMAGES", 3)
    values = vars(parse_arguments([])) | {"train_dir": str(large), "init_from": str(encoder_folder)}
    assert settings_of_images(values, set()) == {"per_device_train_batch_size": 2}


def test_images_that_cannot_be_read_change_nothing(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    assert sizes("--train_dir", tmp_path) == (32, 8, "micro")


def test_the_choice_is_written_and_a_resumed_run_keeps_it(photos, large, tmp_path, capsys):
    """The run goes on although its folder has other images now, which would be given another size."""
    flags = "--feature_dim 16 --equivariant_dim 8 --decoder_dim 16 --projector_dim 16 --probe_samples 0".split()
    flags += "--per_device_train_batch_size 4 --max_steps 1 --resume_from_checkpoint latest".split()
    flags += ["--train_dir", str(photos), "--output_dir", str(tmp_path / "run")]
    assert load_script("pretrain").cli(flags) == 0
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["image_size"] == 32 and "shorter side 36 px" in capsys.readouterr().out
    assert load_script("pretrain").cli([*flags, "--max_steps", "2"]) == 0
    assert "shorter side" not in capsys.readouterr().out
