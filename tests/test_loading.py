"""Whatever takes a model takes a model folder, a run's folder or a checkpoint alike, and misses no weight of it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import SCRIPTS, load_script
from tests.tiny import SIZES
from transformers import AutoModel, AutoModelForPreTraining, Dinov2Config, Dinov2Model, pipeline

from eqcohvit import EqCohViTForPreTraining
from eqcohvit.downstream.backbones import EncoderFolder
from eqcohvit.evaluation.features import load_encoder
from eqcohvit.loading import find_model, load_whole
from eqcohvit.publish.folder import model_folder_of
from eqcohvit.publish.upload import push_hub_folder
from eqcohvit.training import pretrain as pretrain_loop

SMALL = (
    f"{SIZES} --patch_size 4 "
    "--objective ibot --per_device_train_batch_size 4 --max_steps 2 --warmup_steps 1 --logging_steps 1 --save_steps 1 "
    "--sample_steps 9 --probe_samples 0 "
    "--objective_options num_prototypes=16"
).split()


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """A finished run of two steps, with a checkpoint of each."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert load_script("pretrain").cli([*SMALL, "--train_dir", str(photos), "--output_dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def broken(run, tmp_path_factory):
    """Model folders that were damaged in one way each: name -> (folder, what the message says of it)."""
    place, weights = tmp_path_factory.mktemp("broken"), load_file(run / "model" / "model.safetensors")
    key = "eqcohvit.backbone.encoder.layer.0.attention.q_proj.weight"
    damages = {
        "missing": ({name: tensor for name, tensor in weights.items() if name != key}, "lacks 1 weights, first "),
        "other": ({**weights, key: torch.zeros(3, 3)}, r"expected .* of shape .*, found \(3, 3\) \(1 such tensors\)"),
        "longer": ({**weights, key.replace("layer.0", "layer.90"): weights[key].clone()}, "has more than"),
    }
    for name, (tensors, _) in damages.items():
        shutil.copytree(run / "model", place / name)
        save_file(tensors, place / name / "model.safetensors", metadata={"format": "pt"})
    return {name: (place / name, message) for name, (_, message) in damages.items()}


def backbone(folder):
    """The backbone's tensors of a checkpoint."""
    prefix = "model.eqcohvit.backbone."
    tensors = load_file(folder / "model.safetensors")
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def test_a_run_is_its_model_once_it_has_finished_and_its_newest_checkpoint_before(run, tmp_path):
    assert find_model(run) == str(run / "model") and find_model(run / "model") == str(run / "model")
    assert find_model("user/name") == "user/name"
    unfinished = tmp_path / "run"
    shutil.copytree(run, unfinished)
    (unfinished / "config.yaml").write_text((run / "config.yaml").read_text().replace("max_steps: 2", "max_steps: 3"))
    assert find_model(unfinished) == str(unfinished / "checkpoints" / "step-2")


@pytest.mark.parametrize("settings_file", ["config.yaml", "finetune.yaml"])
def test_every_command_says_that_a_run_has_saved_no_model_yet(
    run, photos, settings_file, tmp_path, monkeypatch, capsys
):
    """A run that was killed before its first checkpoint has no folder of checkpoints, and later ones lose theirs."""
    young = tmp_path / "young"
    young.mkdir()
    shutil.copy(run / "config.yaml", young / settings_file)
    (young / "config.json").symlink_to("model/config.json")  # of a model that was deleted
    said = f"{young} holds no model yet: expected {young / 'model'}, or a checkpoint of a pretraining run"
    with pytest.raises(ValueError) as raised:
        find_model(young)
    assert str(raised.value) == said
    common = ["--train_dir", str(photos), "--output_dir", str(tmp_path / "new")]
    commands = {
        "evaluate": ["--model", str(young), "--cache_dir", str(tmp_path / "cache")],
        "finetune": ["--model", str(young), "--task", "segmentation", *common[2:]],
        "push_to_hub": ["--folder", str(young), "--repo_id", "user/name", "--dry_run"],
        "pretrain": ["--init_from", str(young), *common],
    }
    for command, flags in commands.items():
        assert load_script(command).cli(flags) == 2, command
        assert capsys.readouterr().err == f"error: {said}\n", command
    monkeypatch.syspath_prepend(SCRIPTS.parent / "space_app")
    from walk import SplitModel

    with pytest.raises(ValueError) as raised:
        SplitModel(str(young))
    assert str(raised.value) == said
    (young / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="holds no model yet"):
        find_model(young)


def test_every_door_gives_the_weights_of_a_checkpoint(run, tmp_path):
    checkpoint = run / "checkpoints" / "step-1"
    wanted = backbone(checkpoint)
    encoder = load_encoder(str(checkpoint))
    doors = {
        "AutoModel": AutoModel.from_pretrained(checkpoint).backbone,
        "evaluate": encoder.model.backbone,
        "finetune": EncoderFolder.open(str(checkpoint)).backbone().backbone,
        "push": AutoModel.from_pretrained(model_folder_of(checkpoint, tmp_path / "new")).backbone,
    }
    for door, module in doors.items():
        found = module.state_dict()
        assert all(torch.equal(found[key], wanted[key]) for key in found), door
    whole = load_encoder(str(run / "model"))
    assert encoder.preprocessing == whole.preprocessing and encoder.fingerprint != whole.fingerprint
    again = AutoModel.from_pretrained(run / "checkpoints" / "step-2").state_dict()
    model = AutoModel.from_pretrained(run / "model").state_dict()
    assert all(torch.equal(again[key], model[key]) for key in model)


def test_the_pipeline_and_auto_classes_take_a_run_a_checkpoint_and_a_model(photos, tmp_path):
    """A run is its newest checkpoint until it has ended, and then its model, also after it has moved."""
    run, picture = tmp_path / "run", str(next(photos.rglob("*.jpg")))
    pretrain = load_script("pretrain")
    flags = [*SMALL, "--train_dir", str(photos), "--output_dir", str(run)]

    def assert_is(folder, wanted):
        features, expected = (
            pipeline("equivariant-feature-extraction", model=str(place))(picture, tokens="all", return_tensors=True)
            for place in (folder, wanted)
        )
        assert all(torch.equal(features[part], expected[part]) for part in ("invariant", "equivariant"))
        for auto_class in (AutoModel, AutoModelForPreTraining):
            found, expected = (auto_class.from_pretrained(place).state_dict() for place in (folder, wanted))
            assert all(torch.equal(found[key], expected[key]) for key in expected)

    assert pretrain.cli(flags) == 0
    assert (run / "model.safetensors").samefile(run / "model" / "model.safetensors")
    assert_is(run, run / "model")
    assert_is(run / "checkpoints" / "step-2", run / "model")
    more = ["--max_steps", "9", "--resume_from_checkpoint", "latest"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain_loop, "export", lambda *_, **__: None)  # as if it had not ended
        assert pretrain.cli([*flags, *more]) == 0
    moved = run.rename(tmp_path / "moved")
    weights = load_file(moved / "model.safetensors")
    assert torch.equal(
        weights["model.eqcohvit.feature_head.weight"], AutoModel.from_pretrained(moved).feature_head.weight
    )
    assert_is(moved, moved / "checkpoints" / "step-9")


def test_the_space_takes_a_run_and_a_checkpoint(run, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS.parent / "space_app")
    from walk import SplitModel

    wanted = load_file(run / "checkpoints" / "step-1" / "model.safetensors")
    model = SplitModel(str(run / "checkpoints" / "step-1")).model
    assert all(torch.equal(tensor, wanted[f"model.{key}"]) for key, tensor in model.state_dict().items())
    SplitModel(str(run))


@pytest.mark.parametrize("damage", ["missing", "other", "longer"])
def test_no_door_takes_a_model_with_a_wrong_weight(broken, damage, photos, tmp_path, capsys):
    folder, message = broken[damage]
    for load in (load_encoder, lambda name: EncoderFolder.open(name).backbone(), push_to_nowhere):
        with pytest.raises(ValueError, match=message):
            load(str(folder))
    if damage != "other":
        small = ["--max_samples", "20", "--max_test_samples", "10", "--cache_dir", str(tmp_path / "cache")]
        assert load_script("evaluate").cli(["--model", str(folder), *small]) == 2
    flags = ["--init_from", str(folder), "--train_dir", str(photos), "--output_dir", str(tmp_path / "run")]
    assert load_script("pretrain").cli([*flags, "--max_steps", "1", "--probe_samples", "0"]) == 2
    assert not (tmp_path / "run").exists() and str(folder) in capsys.readouterr().err


def push_to_nowhere(folder):
    push_hub_folder(folder, "user/name", max_attempts=0)


def test_a_model_without_decoders_starts_a_run_with_new_heads_only(run, photos, tmp_path, capsys):
    AutoModel.from_pretrained(run / "model").save_pretrained(tmp_path / "encoder")
    flags = [
        "--init_from",
        str(tmp_path / "encoder"),
        "--train_dir",
        str(photos),
        "--output_dir",
        str(tmp_path / "run"),
    ]
    flags += ["--max_steps", "1", "--per_device_train_batch_size", "4", "--probe_samples", "0"]
    pretrain = load_script("pretrain")
    assert pretrain.cli(flags) == 2
    assert "first decoders." in (error := capsys.readouterr().err) and "--no-init_heads begins with new heads" in error
    assert pretrain.cli([*flags, "--no-init_heads"]) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_checkpoint_starts_a_run_in_float32(dtype, run, photos, tmp_path):
    """A plain ViT and a split model, as most of the Hub's are saved; and a dense head on them."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "mlp_ratio": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    Dinov2Model(Dinov2Config(**sizes)).to(dtype).save_pretrained(tmp_path / "vit")
    EqCohViTForPreTraining.from_pretrained(run / "model").to(dtype).save_pretrained(tmp_path / "split")
    for name in ("vit", "split"):
        flags = [*SMALL[: SMALL.index("--objective")], "--init_from", str(tmp_path / name)]
        flags = flags[4:] if name == "split" else flags
        flags += [
            "--train_dir",
            str(photos),
            "--output_dir",
            str(tmp_path / f"run-{name}"),
            "--max_steps",
            "1",
            "--probe_samples",
            "0",
        ]
        assert load_script("pretrain").cli([*flags, "--per_device_train_batch_size", "4"]) == 0
        saved = load_file(tmp_path / f"run-{name}" / "checkpoints" / "step-1" / "model.safetensors")
        averages = "separation."  # of covariances, in float64
        learned = [tensor for key, tensor in saved.items() if not key.startswith(averages)]
        assert {tensor.dtype for tensor in learned if tensor.is_floating_point()} == {torch.float32}
        config = json.loads((tmp_path / f"run-{name}" / "model" / "config.json").read_text())
        assert config["dtype"] == config["backbone_config"]["dtype"] == "float32"
        encoder = EncoderFolder.open(str(tmp_path / name)).backbone()
        assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


def test_a_foreign_model_may_leave_its_head_behind_but_no_layer(tmp_path):
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4)
    Dinov2Model(config).save_pretrained(tmp_path, save_original_format=False)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {**weights, "classifier.weight": torch.zeros(3, 32)}, tmp_path / "model.safetensors", metadata={"format": "pt"}
    )
    load_whole(AutoModel, tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    shorter = {"num_hidden_layers": 1, "out_features": None, "out_indices": None, "stage_names": None}
    (tmp_path / "config.json").write_text(json.dumps(described | shorter))
    with pytest.raises(ValueError, match="has more than its configuration says: .* weights"):
        load_whole(AutoModel, tmp_path)
