"""Runs that continue from something: a Hub ViT, a model, a checkpoint, a published training state; with LoRA; and what
stops them."""

import json
import shutil

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.tiny import load_script
from transformers import AutoModel, Dinov2Config, Dinov2Model, ViTImageProcessorPil

from eqcohvit.training.arguments import parse_arguments
from eqcohvit.training.build import build
from eqcohvit.training.start_settings import complete_settings

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "mlp_ratio": 2,
    "image_size": 16,
    "patch_size": 4,
}
NEW_HEADS = (
    "--feature_dim 16 --equivariant_dim 8 --decoder_dim 16 --projector_dim 16 "
    "--objective ibot --objective_options num_prototypes=32,bottleneck_dim=8,teacher_momentum=0.5"
).split()
RUN = (
    "--per_device_train_batch_size 6 --max_steps 4 --warmup_steps 1 --logging_steps 2 --save_steps 2 "
    "--sample_steps 4 --recon_weight 1"
).split()


@pytest.fixture(scope="module")
def pretrain():
    return load_script("pretrain")


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A randomly initialized DINOv2 folder, with its own normalization and license."""
    folder = tmp_path_factory.mktemp("hub") / "dinov2"
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**VIT)).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    ViTImageProcessorPil(size=size, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A model\n")
    return folder


@pytest.fixture(scope="module")
def continued(pretrain, vit, photos, tmp_path_factory):
    """A finished run from that ViT, whose model folder holds the training state of its last step."""
    output_dir = tmp_path_factory.mktemp("runs") / "continued"
    flags = [*start(vit, photos, output_dir), "--push_training_state"]
    assert run(pretrain, *flags, *NEW_HEADS, *RUN) == 0
    return output_dir


def start(source, images, output_dir):
    """Flags of a run from a source."""
    return ["--init_from", source, "--train_dir", images, "--output_dir", output_dir]


def run(pretrain, *flags):
    return pretrain.cli([str(flag) for flag in flags])


def weights(folder):
    return load_file(folder / "model.safetensors")


def metrics(output_dir):
    timing = ("samples_per_second", "data_wait_share")
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timing} for line in lines]


# ----------------------------------------------------------------------------------------------------------- warm start


def test_run_from_a_vit_keeps_its_sizes_and_normalization(continued):
    model = AutoModel.from_pretrained(continued / "model")
    backbone = model.config.backbone_config
    assert (backbone.hidden_size, backbone.num_hidden_layers, model.config.square_patch_size) == (32, 2, 4)
    processor = json.loads((continued / "model" / "preprocessor_config.json").read_text())
    assert (processor["image_mean"], processor["image_std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    config = json.loads((continued / "model" / "config.json").read_text())
    assert config["backbone_config"]["_name_or_path"] == ""  # no folder of the machine
    assert "training_state" in {path.name for path in (continued / "model").iterdir()}
    assert (continued / "model" / "README.md").read_text().startswith("---\nlicense: cc-by-nc-4.0\n")


def test_head_warmup_leaves_the_backbone_as_it_came(pretrain, vit, photos, tmp_path, capsys):
    flags = [*start(vit, photos, tmp_path / "run"), "--head_warmup_steps", "4"]
    assert run(pretrain, *flags, *NEW_HEADS, *RUN) == 0
    said = capsys.readouterr().out.replace("\n  ", " ")  # a long path begins a line
    assert f"starting from {vit}: backbone; all else is new" in said and "random weights" not in said
    source, model = AutoModel.from_pretrained(vit), AutoModel.from_pretrained(tmp_path / "run" / "model")
    ours = model.backbone.state_dict()
    assert all(
        torch.equal(tensor, ours[name])
        for name, tensor in source.state_dict().items()
        if not name.endswith("mask_token")
    )


def test_run_stopped_while_only_the_heads_learn_resumes_exactly(pretrain, vit, photos, tmp_path):
    flags = ["--init_from", vit, "--train_dir", photos, "--head_warmup_steps", "3", *NEW_HEADS, *RUN]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert run(pretrain, *flags, "--output_dir", whole) == 0
    start = whole / "checkpoints" / "step-2"
    assert run(pretrain, *flags, "--output_dir", resumed, "--resume_from_checkpoint", start) == 0
    first, last, again = (
        weights(folder) for folder in (start, whole / "checkpoints" / "step-4", resumed / "checkpoints" / "step-4")
    )
    assert all(torch.equal(tensor, again[name]) for name, tensor in last.items())
    changed = {name for name in last if not torch.equal(first[name], last[name])}
    assert any(name.startswith("model.eqcohvit.backbone.") for name in changed)  # in the fourth step


def test_run_from_a_model_folder_begins_with_its_heads_and_teacher(pretrain, continued, photos, tmp_path, capsys):
    flags = start(continued / "model", photos, tmp_path / "run")
    options = "num_prototypes=32,bottleneck_dim=8,teacher_momentum=1"  # and a rate of about 0: all stays as it begins
    flags += ["--learning_rate", "1e-30", "--min_learning_rate", "0", "--objective_options", options]
    flags += ["--invariant_rank", "0"]  # which would change the head
    assert run(pretrain, *flags, *RUN) == 0
    said = " ".join(capsys.readouterr().out.split())  # lines are broken at 100 columns
    assert "backbone, feature head and decoders, the objective's heads, teacher; all else is new" in said
    ours, theirs = (weights(folder / "checkpoints" / "step-4") for folder in (tmp_path / "run", continued))
    theirs = {name: tensor for name, tensor in theirs.items() if not name.startswith("separation.")}
    assert ours.keys() == theirs.keys() and any(name.startswith("teacher.") for name in ours)
    centers = {"objective.cls_center", "objective.patch_center"}  # follow the batches
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items() if name not in centers)
    student, teacher = (theirs[f"{part}.feature_head.weight"] for part in ("model.eqcohvit", "teacher.encoder"))
    assert not torch.equal(student, teacher)


def test_run_with_another_objective_takes_all_but_its_heads(pretrain, continued, photos, tmp_path, capsys):
    flags = [*start(continued / "model", photos, tmp_path / "run"), "--objective", "simclr"]
    assert run(pretrain, *flags, *RUN) == 0
    out = " ".join(capsys.readouterr().out.split())  # lines are broken at 100 columns
    assert "backbone, feature head and decoders; all else is new" in out
    assert "the loss term ssl/contrast of untrained heads is about 2.398" in out  # ln(2 * 6 - 1)


def test_run_from_a_checkpoint_equals_the_run_from_the_model_exported_there(pretrain, continued, photos, tmp_path):
    for name, source in (("a", continued / "model"), ("b", continued / "checkpoints" / "step-4"), ("c", continued)):
        assert run(pretrain, *start(source, photos, tmp_path / name), *RUN) == 0
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b") == metrics(tmp_path / "c")


# --------------------------------------------------------------------------------------------- published training state


def test_run_from_a_published_state_equals_the_uninterrupted_one(pretrain, continued, vit, photos, tmp_path):
    published = tmp_path / "published"
    shutil.copytree(continued / "model", published, ignore=shutil.ignore_patterns("training_state"))
    shutil.copytree(continued / "checkpoints" / "step-2", published / "training_state")
    text = (published / "training_state" / "config.yaml").read_text()
    assert str(vit) not in text and str(photos) not in text  # no place of the machine that it comes from
    flags = ["--resume_from_checkpoint", published, "--train_dir", photos, "--output_dir", tmp_path / "run"]
    assert run(pretrain, *flags) == 0  # all other settings are those of the training state
    assert metrics(tmp_path / "run") == metrics(continued)[1:]
    for folder in ("model", "checkpoints/step-4"):
        ours, theirs = weights(tmp_path / "run" / folder), weights(continued / folder)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_published_state_asks_for_the_images_that_it_does_not_name(pretrain, continued, tmp_path, capsys):
    assert run(pretrain, "--resume_from_checkpoint", continued / "model", "--output_dir", tmp_path / "run") == 2
    assert (
        "does not say which images it was trained on: give --dataset_name, --data_files or --train_dir"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_published_state_refuses_other_settings(pretrain, continued, photos, tmp_path, capsys):
    flags = ["--resume_from_checkpoint", continued / "model", "--train_dir", photos, "--output_dir", tmp_path / "run"]
    assert run(pretrain, *flags, "--learning_rate", "1") == 2
    assert "cannot resume with other settings: learning_rate was 0.003, is 1.0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_mismatched_heads_are_refused_with_both_shapes(pretrain, continued, photos, tmp_path, capsys):
    flags = [*start(continued / "model", photos, tmp_path / "run"), "--projector_dim", "8"]
    assert run(pretrain, *flags, *RUN) == 2
    error = capsys.readouterr().err
    assert "expected head.cls.mlp.0.bias of shape (8,), found (16,)" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------------------------------------------------- LoRA


def test_lora_run_resumes_exactly_and_exports_a_plain_model(pretrain, vit, photos, tmp_path):
    flags = ["--init_from", vit, "--train_dir", photos, "--peft", "lora", "--lora_rank", "2", *NEW_HEADS, *RUN]
    assert run(pretrain, *flags, "--output_dir", tmp_path / "run") == 0
    state = weights(tmp_path / "run" / "checkpoints" / "step-4")
    source = AutoModel.from_pretrained(vit).state_dict()
    prefix = "model.eqcohvit.backbone."
    base = {
        name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix) and ".base_layer." in name
    }
    assert base and all(torch.equal(tensor, source[name.replace(".base_layer", "")]) for name, tensor in base.items())
    assert any(name.endswith("lora_B.default.weight") and tensor.abs().sum() > 0 for name, tensor in state.items())

    # The teacher has separate adapters, which follow the student's, beside the same weights.
    adapters = [name for name in state if name.startswith("teacher.encoder.") and ".lora_B." in name]
    assert adapters and not any(
        torch.equal(state[name], state[name.replace("teacher.encoder.", "model.eqcohvit.")]) for name in adapters
    )
    assert not any(name.startswith("teacher.encoder.") and ".base_layer." in name for name in state)

    exported = AutoModel.from_pretrained(tmp_path / "run" / "model").eval()
    module, _ = build(parse_arguments([str(flag) for flag in flags], complete_settings))
    module.load_state_dict(state, strict=False)
    x = torch.randn(2, 3, 16, 16)
    adapted = module.model.eqcohvit.eval()(x)
    torch.testing.assert_close(exported(x).invariant_features, adapted.invariant_features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(exported(x).equivariant_features, adapted.equivariant_features, rtol=1e-4, atol=1e-5)

    resumed = tmp_path / "resumed"
    assert (
        run(
            pretrain,
            *flags,
            "--output_dir",
            resumed,
            "--resume_from_checkpoint",
            tmp_path / "run" / "checkpoints" / "step-2",
        )
        == 0
    )
    assert metrics(resumed) == metrics(tmp_path / "run")[1:]
    assert all(
        torch.equal(t, weights(resumed / "model")[name]) for name, t in weights(tmp_path / "run" / "model").items()
    )


def test_checkpoint_of_a_lora_run_is_no_start_but_its_model_is(pretrain, vit, photos, tmp_path, capsys):
    flags = ["--train_dir", photos, *RUN, "--max_steps", "2"]
    assert (
        run(pretrain, "--init_from", vit, *NEW_HEADS, *flags, "--peft", "lora", "--output_dir", tmp_path / "lora") == 0
    )
    assert (
        run(
            pretrain,
            "--init_from",
            tmp_path / "lora" / "checkpoints" / "step-2",
            *flags,
            "--output_dir",
            tmp_path / "a",
        )
        == 2
    )
    assert "is a checkpoint of a LoRA run: start from its model folder" in capsys.readouterr().err
    assert run(pretrain, "--init_from", tmp_path / "lora", *flags, "--output_dir", tmp_path / "b") == 0
    assert (tmp_path / "lora" / "model.safetensors").samefile(tmp_path / "lora" / "model" / "model.safetensors")


# ------------------------------------------------------------------------------------------------------------- frozen


def test_frozen_backbone_stays_as_it_is_and_the_heads_learn_and_resume_exactly(pretrain, vit, photos, tmp_path):
    flags = ["--init_from", vit, "--train_dir", photos, "--freeze_backbone", *NEW_HEADS, *RUN]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert run(pretrain, *flags, "--output_dir", whole) == 0
    source = AutoModel.from_pretrained(vit).state_dict()
    exported = AutoModel.from_pretrained(whole / "model")
    assert all(torch.equal(tensor, source[name]) for name, tensor in exported.backbone.state_dict().items())
    first, last = (weights(whole / "checkpoints" / f"step-{step}") for step in (2, 4))
    changed = {name for name in last if not torch.equal(first[name], last[name])}
    assert "model.eqcohvit.feature_head.weight" in changed and any(".decoders." in name for name in changed)
    assert not any(".backbone." in name for name in changed)

    start = whole / "checkpoints" / "step-2"
    assert run(pretrain, *flags, "--output_dir", resumed, "--resume_from_checkpoint", start) == 0
    exported = weights(whole / "model")
    assert all(torch.equal(t, exported[name]) for name, t in weights(resumed / "model").items())


# ----------------------------------------------------------------------------------------------------- what stops a run


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    """Horizontal and vertical stripes at all places, in two folders: a random encoder tells them apart, a ruined one
    does not."""
    root = tmp_path_factory.mktemp("stripes")
    generator = np.random.default_rng(0)
    for i in range(160):
        folder = root / ("rows" if i % 2 else "columns")
        folder.mkdir(exist_ok=True)
        wave = 128 + 100 * np.sin(np.arange(16) * 0.8 + generator.uniform(0, 7))
        image = np.broadcast_to(wave[:, None] if i % 2 else wave, (16, 16)) + generator.normal(0, 10, (16, 16))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).convert("RGB").save(folder / f"{i}.png")
    return root


GUARD = "--label_column folder --knn_guard_steps 1 --knn_guard_samples 80 --knn_guard_drop 0.1".split()
GUARD += ["--probe_samples", "0"]  # which would take some of the images


def test_guard_stops_a_run_that_ruins_its_start(pretrain, vit, stripes, tmp_path, capsys):
    flags = [*start(vit, stripes, tmp_path / "run"), *NEW_HEADS, *RUN, *GUARD]
    assert run(pretrain, *flags, "--max_steps", "40", "--learning_rate", "1") == 1
    captured = capsys.readouterr()
    assert "kNN accuracy at the start: 0.8" in captured.out
    assert "kNN accuracy fell from 0.8" in captured.err and "knn_guard_drop=0.1" in captured.err
    assert not (tmp_path / "run" / "model").exists()


def test_guard_lets_a_gentle_run_pass_and_logs_it(pretrain, vit, stripes, tmp_path):
    flags = [*start(vit, stripes, tmp_path / "run"), *NEW_HEADS, *RUN, *GUARD]
    assert run(pretrain, *flags, "--learning_rate", "1e-5", "--head_warmup_steps", "2") == 0
    assert all(0.75 <= line["guard/knn"] <= 1 for line in metrics(tmp_path / "run"))


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_guard_takes_labeled_images_from_elsewhere(pretrain, vit, stripes, photos, tmp_path, kind):
    source = stripes
    if kind == "parquet":
        rows = [
            {"image": {"bytes": path.read_bytes(), "path": None}, "label": path.parent.name}
            for path in sorted(stripes.rglob("*.png"))
        ]
        classes = datasets.ClassLabel(names=["columns", "rows"])
        features = datasets.Features({"image": datasets.Image(), "label": classes})
        source = tmp_path / "labeled.parquet"
        datasets.Dataset.from_list(rows, features=features).to_parquet(source)
    flags = [*start(vit, photos, tmp_path / "run"), *NEW_HEADS, *RUN, "--max_steps", "2"]
    flags += [
        "--knn_guard_steps",
        "2",
        "--knn_guard_samples",
        "160",
        "--knn_guard_data_files",
        source,
        "--learning_rate",
        "1e-6",
    ]
    assert run(pretrain, *flags) == 0
    assert metrics(tmp_path / "run")[0]["guard/knn"] > 0.7


def test_guard_without_labels_is_refused_at_the_start(pretrain, photos, tmp_path, capsys):
    flags = ["--train_dir", photos, "--output_dir", tmp_path / "run", *RUN]
    assert run(pretrain, *flags, "--knn_guard_steps", "1", "--knn_guard_samples", "10") == 2
    assert "has no label column" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_absurd_learning_rate_stops_the_run_names_the_terms_and_keeps_the_batch(
    pretrain, vit, photos, tmp_path, capsys
):
    flags = [*start(vit, photos, tmp_path / "run"), *NEW_HEADS, *RUN, "--save_steps", "1"]
    assert run(pretrain, *flags, "--learning_rate", "1e30") == 1
    error = capsys.readouterr().err
    assert "loss, " in error and "not finite at step 2" in error and "nonfinite" in error
    report = json.loads((tmp_path / "run" / "nonfinite" / "step-2-rank-0.json").read_text())
    assert "loss" in report["not_finite"] and len(report["keys"]) == 6
    assert load_file(tmp_path / "run" / "nonfinite" / "step-2-rank-0.safetensors")["canvases"].shape == (6, 3, 24, 24)
    for checkpoint in (tmp_path / "run" / "checkpoints").glob("step-*"):
        assert all(tensor.isfinite().all() for tensor in weights(checkpoint).values())


def test_collapsed_parts_and_a_loss_that_does_not_move_are_warned_of(pretrain, continued, photos, tmp_path, capsys):
    flat = tmp_path / "model"
    shutil.copytree(continued / "model", flat)
    tensors = weights(flat)
    for name in ("weight", "bias"):
        tensors[f"eqcohvit.feature_head.{name}"].zero_()  # equal features for all images
    save_file(tensors, flat / "model.safetensors", metadata={"format": "pt"})
    flags = [*start(flat, photos, tmp_path / "run"), "--objective", "simclr", *RUN]
    assert run(pretrain, *flags, "--learning_rate", "1e-30", "--min_learning_rate", "0", "--recon_weight", "0") == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning at step")]
    assert len(warnings) == 3 and all("at step 2" in warning for warning in warnings)  # once each, though they last
    assert "ssl/contrast sits at 2.398, its value for features that tell nothing (2.398)" in warnings[0]
    assert "the invariant part has collapsed" in warnings[1] and "the equivariant part has collapsed" in warnings[2]
    assert {"rank/invariant", "rank/equivariant", "std/invariant", "grad_norm/encoder"} <= set(
        metrics(tmp_path / "run")[0]
    )


def test_infinite_weight_in_a_start_is_named(pretrain, continued, photos, tmp_path, capsys):
    broken = tmp_path / "model"
    shutil.copytree(continued / "model", broken)
    tensors = weights(broken)
    tensors["decoders.from_patches.bias"][0] = float("inf")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    assert run(pretrain, *start(broken, photos, tmp_path / "run"), *RUN) == 1
    error = capsys.readouterr().err
    assert (
        "recon/u_1" in error and "weights were not finite before this step (model.decoders.from_patches.bias)" in error
    )
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))
