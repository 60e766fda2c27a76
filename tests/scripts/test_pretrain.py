import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.tiny import SIZES, load_script
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining

SMALL = (
    f"{SIZES} --patch_size 4 "
    "--per_device_train_batch_size 6 --max_steps 6 --warmup_steps 2 --logging_steps 2 --save_steps 3 "
    "--sample_steps 3 --probe_samples 0"
).split()


@pytest.fixture(scope="module")
def pretrain():
    return load_script("pretrain")


@pytest.fixture(scope="module")
def finished(pretrain, photos, tmp_path_factory) -> Path:
    output_dir = tmp_path_factory.mktemp("runs") / "run"
    code = pretrain.cli(
        [
            *SMALL,
            "--train_dir",
            str(photos),
            "--output_dir",
            str(output_dir),
            "--path",
            "se2",
            "--augmentation",
            "small",
        ]
    )
    assert code == 0
    return output_dir


def metrics(output_dir: Path) -> list[dict]:
    timing = ("samples_per_second", "data_wait_share")
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timing} for line in lines]


def test_run_folder_holds_metrics_checkpoints_pictures_and_a_model(finished):
    assert [line["step"] for line in metrics(finished)] == [2, 4, 6]
    terms = {"loss", "ssl/invariance", "recon/u_1", "recon/u_2", "std/equivariant", "learning_rate"}
    terms |= {"grad_norm/encoder", "grad_norm/objective", "grad_norm/decoders"}
    assert terms <= set(metrics(finished)[0])
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == ["step-3", "step-6"]
    assert sorted(p.name for p in (finished / "samples").iterdir()) == ["step-3.png", "step-6.png"]
    assert Image.open(finished / "samples" / "step-6.png").size == (6 * 116 + 4, 20 + 6 * 116 + 4)


def test_model_folder_loads_through_the_auto_classes(finished):
    model = AutoModel.from_pretrained(finished / "model")
    processor = AutoImageProcessor.from_pretrained(finished / "model")
    inputs = processor(Image.new("RGB", (50, 40)), return_tensors="pt")
    outputs = model(**inputs)
    assert outputs.invariant_features.shape == (1, 17, 8) and outputs.equivariant_features.shape == (1, 17, 8)
    assert model.config.path == "se2"
    assert AutoModelForPreTraining.from_pretrained(finished / "model").decoders.num_decoders == 2


def test_resumed_run_equals_the_uninterrupted_one(pretrain, finished, photos, tmp_path):
    resumed = tmp_path / "run"
    shutil.copytree(finished, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step-6")
    shutil.rmtree(resumed / "model")
    flags = [
        *SMALL,
        "--train_dir",
        str(photos),
        "--output_dir",
        str(resumed),
        "--path",
        "se2",
        "--augmentation",
        "small",
    ]
    assert pretrain.cli([*flags, "--resume_from_checkpoint", "latest"]) == 0
    assert metrics(resumed) == metrics(finished)  # also line 4, whose mean began before the checkpoint of step 3
    ours, theirs = (load_file(d / "model" / "model.safetensors") for d in (resumed, finished))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("objective", ["ibot", "dinov2"])
def test_resumed_run_with_a_teacher_equals_the_uninterrupted_one(pretrain, photos, tmp_path, objective):
    flags = [
        *SMALL,
        "--train_dir",
        str(photos),
        "--objective",
        objective,
        "--local_crops_number",
        "2",
        "--local_crops_size",
        "8",
    ]
    flags += "--drop_path_rate 0.2 --max_steps 4 --save_steps 2 --augmentation ibot".split()
    flags += "--weight_decay_end 0.4 --layer_decay 0.9".split()
    flags += [
        "--objective_options",
        "num_prototypes=16,teacher_momentum=0.9,teacher_temperature_steps=3,freeze_last_layer_steps=1",
    ]
    if objective == "ibot":  # as its recipes
        flags += "--layerscale_value 0 --drop_path_schedule linear --clip_gradients parameter".split()
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert pretrain.cli([*flags, "--output_dir", str(whole)]) == 0
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step-4")
    assert pretrain.cli([*flags, "--output_dir", str(resumed), "--resume_from_checkpoint", "latest"]) == 0
    assert metrics(whole) == metrics(resumed)
    ours, theirs, before = (
        load_file(folder / "checkpoints" / step / "model.safetensors")
        for folder, step in ((resumed, "step-4"), (whole, "step-4"), (whole, "step-2"))
    )
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    moved = {name for name in ours if not torch.equal(ours[name], before[name])}
    assert {"teacher.encoder.feature_head.weight", "teacher.head.cls.prototypes.weight"} <= moved
    assert objective != "ibot" or {"objective.cls_center", "objective.patch_center"} <= moved


def test_high_resolution_phase_goes_on_from_the_end_of_a_run(pretrain, photos, tmp_path):
    """As imagenet1k_dinov2_vitl16_highres: larger images, from a checkpoint; with a rate of about 0, so that what was
    taken can be seen."""
    flags = [*SMALL, "--train_dir", str(photos), "--objective", "dinov2", "--local_crops_number", "2"]
    flags += ["--invariant_rank", "0"]  # as the recipe
    low, high = tmp_path / "low", tmp_path / "high"
    options = [
        "--local_crops_size",
        "8",
        "--objective_options",
        "num_prototypes=16,teacher_momentum=0.5",
        "--max_steps",
        "2",
    ]
    assert pretrain.cli([*flags, *options, "--output_dir", str(low)]) == 0
    still = "num_prototypes=16,teacher_momentum=1,center_momentum=1"
    options = ["--local_crops_size", "12", "--objective_options", still, "--max_steps", "1"]
    options += ["--init_from", str(low / "checkpoints" / "step-2"), "--image_size", "32", "--learning_rate", "1e-12"]
    assert pretrain.cli([*flags, *options, "--min_learning_rate", "0", "--output_dir", str(high)]) == 0
    before, after = (
        load_file(folder / "checkpoints" / step / "model.safetensors")
        for folder, step in ((low, "step-2"), (high, "step-1"))
    )
    assert before.keys() == after.keys()
    for name in before:
        if name.endswith("position_embeddings"):
            grid = before[name][:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
            larger = (
                torch.nn.functional.interpolate(grid, size=8, mode="bicubic", align_corners=False)
                .flatten(2)
                .transpose(1, 2)
            )
            assert torch.allclose(after[name], torch.cat([before[name][:, :1], larger], dim=1), atol=1e-5)
        else:
            assert torch.allclose(after[name], before[name], atol=1e-6), name
    assert AutoModel.from_pretrained(high / "model").config.square_image_size == 32


def test_baseline_without_reconstruction_runs_on_sprites(pretrain, tmp_path):
    code = pretrain.cli(
        [
            *SMALL,
            "--output_dir",
            str(tmp_path / "run"),
            "--recon_weight",
            "0",
            "--objective",
            "simclr",
            "--max_steps",
            "2",
        ]
    )
    assert code == 0
    assert "ssl/contrast" in metrics(tmp_path / "run")[0] and "recon/u_1" not in metrics(tmp_path / "run")[0]
    assert "grad_norm/decoders" not in metrics(tmp_path / "run")[0]


def test_resident_run_and_its_resume_equal_the_plain_one(pretrain, photos, tmp_path):
    small = [*SMALL, "--train_dir", str(photos), "--max_steps", "7"]
    assert pretrain.cli([*small, "--output_dir", str(tmp_path / "plain")]) == 0
    resident = [*small, "--resident", "--dataloader_num_workers", "1", "--output_dir", str(tmp_path / "resident")]
    assert pretrain.cli(resident) == 0
    assert metrics(tmp_path / "plain") == metrics(tmp_path / "resident")
    shutil.rmtree(tmp_path / "resident" / "checkpoints" / "step-7")
    shutil.rmtree(tmp_path / "resident" / "model")
    assert pretrain.cli([*resident, "--resume_from_checkpoint", "latest"]) == 0
    plain, again = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("plain", "resident"))
    assert plain.keys() == again.keys() and all(torch.equal(plain[name], again[name]) for name in plain)


def test_accumulated_batches_make_one_step(pretrain, photos, tmp_path):
    flags = [*SMALL, "--train_dir", str(photos), "--output_dir", str(tmp_path / "run"), "--max_steps", "2"]
    assert pretrain.cli([*flags, "--gradient_accumulation_steps", "2"]) == 0
    assert [line["step"] for line in metrics(tmp_path / "run")] == [2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--path spin", "unknown path 'spin'"),
        ("--train_dir {tmp}/nowhere", "nowhere"),
        ("--train_dir {tmp}/empty", "no images found"),
        ("--data_files {tmp}/nowhere-*.parquet", "nowhere-"),
        ("--image_size 30", "patch_size must divide image_size"),
        ("--num_intermediates 0", "num_intermediates must be at least 1"),
        ("--equivariant_dim 99", "equivariant_dim must lie between"),
        ("--resume_from_checkpoint {tmp}/nowhere", "no checkpoint at"),
        ("--output_dir {tmp}/other", "holds another run"),
        ("--report_to nosuchtracker", "nosuchtracker"),
        ("--resident", "resident needs train_dir, dataset_name or data_files"),
    ],
)
def test_bad_input_ends_with_2_and_one_line_and_writes_nothing(pretrain, flags, message, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "other" / "metrics.jsonl").write_text('{"step": 50}\n')
    before = sorted(tmp_path.rglob("*"))
    code = pretrain.cli([*SMALL, "--output_dir", str(tmp_path / "run"), *flags.format(tmp=tmp_path).split()])
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("error: ") and message in error and error.count("\n") == 1, error
    assert sorted(tmp_path.rglob("*")) == before
