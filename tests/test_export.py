import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining, ViTConfig, ViTModel

from eqcohvit import EqCohViTBackbone, EqCohViTConfig, EqCohViTForImageClassification, EqCohViTForPreTraining, EqCohViTModel
from eqcohvit.export import check_card, push_hub_folder, read_run, render_card, save_hub_folder

TEMPLATE = (Path(__file__).parents[1] / "model_cards" / "TEMPLATE.md").read_text()
BACKBONE = {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2}
FILES = {
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "configuration_eqcohvit.py",
    "decoders_eqcohvit.py",
    "modeling_eqcohvit.py",
    "image_processing_eqcohvit.py",
    "pipeline_eqcohvit.py",
}


def make(model_class=EqCohViTModel, channels=3, seed=0):
    torch.manual_seed(seed)
    backbone = {**BACKBONE, "image_size": 24, "patch_size": 8, "num_channels": channels}
    return model_class(EqCohViTConfig(backbone_config=backbone, feature_dim=8, equivariant_dim=4, decoder_dim=16)).eval()


# ------------------------------------------------------------------------------------------------------------------ folder


@pytest.mark.parametrize("model_class", [EqCohViTModel, EqCohViTForPreTraining, EqCohViTForImageClassification, EqCohViTBackbone])
def test_folder_is_complete_for_every_model_class(model_class, tmp_path):
    model = make(model_class)
    folder = save_hub_folder(tmp_path / "runs" / "model", model, image_mean=(0.1, 0.2, 0.3), image_std=(0.4, 0.5, 0.6), card="# A card\n")
    assert {path.name for path in folder.iterdir()} == FILES | {"README.md"}
    assert [path.name for path in folder.parent.iterdir()] == ["model"]  # nothing half-written is left beside it
    assert (folder / "README.md").read_text() == "# A card\n"
    loaded = model_class.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True))
    processor = AutoImageProcessor.from_pretrained(folder)
    assert (list(processor.image_mean), list(processor.image_std)) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert dict(processor.size) == {"height": 24, "width": 24}


def test_older_folder_is_replaced_whole(tmp_path):
    save_hub_folder(tmp_path / "model", make(EqCohViTForPreTraining, seed=0), card="old")
    newer = make(EqCohViTForPreTraining, seed=1)
    save_hub_folder(tmp_path / "model", newer)
    assert {path.name for path in (tmp_path / "model").iterdir()} == FILES  # the old card told of other weights
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.eqcohvit.feature_head.weight, newer.eqcohvit.feature_head.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_failure_leaves_the_older_folder_as_it_was(tmp_path):
    save_hub_folder(tmp_path / "model", make())
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    broken = make(seed=1)
    broken.feature_head.weight = torch.nn.Parameter(broken.feature_head.weight.detach().to("meta"))  # cannot be written
    with pytest.raises(Exception):  # noqa: B017
        save_hub_folder(tmp_path / "model", broken)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_killed_writer_leaves_no_half_folder(tmp_path):
    """What a killed process left beside the folder is cleared by the next one."""
    (tmp_path / ".model.new").mkdir()
    (tmp_path / ".model.new" / "config.json").write_text("half")
    save_hub_folder(tmp_path / "model", make())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    AutoModel.from_pretrained(tmp_path / "model")


def test_places_that_hold_something_else_are_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"precious")
    with pytest.raises(ValueError, match="photos is there and is no model folder"):
        save_hub_folder(tmp_path / "photos", make())
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == b"precious"
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="file is there and is no model folder"):
        save_hub_folder(tmp_path / "file", make())


def test_wrong_models_and_normalisations_are_named(tmp_path):
    vit = ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    with pytest.raises(ValueError, match="expected an EqCohViT model, got ViTModel"):
        save_hub_folder(tmp_path / "model", vit)
    with pytest.raises(ValueError, match="image_std needs 3 numbers, one for each channel of the model, got 1"):
        save_hub_folder(tmp_path / "model", make(), image_mean=(0, 0, 0), image_std=(1,))
    assert not (tmp_path / "model").exists()


def test_classification_folder_keeps_its_labels(tmp_path):
    model = make(EqCohViTForImageClassification)
    model.config.id2label = {0: "cat", 1: "dog"}
    save_hub_folder(tmp_path / "model", model)
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "model").config.id2label == {0: "cat", 1: "dog"}


# ------------------------------------------------------------------------------------------------------------------ upload


@pytest.mark.parametrize(
    ("folder", "repo_id", "message"),
    [
        ("missing", "user/name", "missing is no model folder: expected config.json and"),
        ("no-weights", "user/name", "no-weights has no weights: expected"),
        ("model", "user/name/more", "expected a repository name like user/name, got 'user/name/more'"),
        ("model", "user/na me", "expected a repository name like user/name, got 'user/na me'"),
    ],
)
def test_wrong_uploads_are_named_before_anything_is_sent(folder, repo_id, message, tmp_path):
    save_hub_folder(tmp_path / "model", make())
    (tmp_path / "no-weights").mkdir()
    (tmp_path / "no-weights" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=message):
        push_hub_folder(tmp_path / folder, repo_id)


def test_unreachable_hub_is_a_connection_error_after_the_last_attempt(tmp_path):
    save_hub_folder(tmp_path / "model", make())
    script = """
import sys
from eqcohvit.export import push_hub_folder
try:
    push_hub_folder(sys.argv[1], "user/name", token="hf_x", max_attempts=2, wait_seconds=0.01)
except ConnectionError as error:
    print(error)
"""
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", script, str(tmp_path / "model")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert re.fullmatch(r"upload to user/name failed 2 times, last: .*refused.*; run it again to go on\n", done.stdout), done


# -------------------------------------------------------------------------------------------------------------------- card

SETTINGS = {
    "dataset_name": "user/birds",
    "dataset_split": "train",
    "train_dir": None,
    "data_files": None,
    "model_preset": "micro",
    "backbone": "dinov2",
    "image_size": 48,
    "feature_dim": 250,
    "equivariant_dim": 120,
    "num_intermediates": 2,
    "path": "rotation",
    "augmentation": "path_only",
    "border": "canvas",
    "objective": "vicreg",
    "recon_weight": 17.5,
    "seed": 41,
    "max_steps": 300,
    "learning_rate": 0.0013,
    "output_dir": "/home/someone/secret",
    "hub_model_id": None,
}
METRICS = [{"step": 150, "loss": 9.0}, {"step": 299, "loss": 3.25, "recon/u_1": 0.518, "samples_per_second": 617.5}]
RESULTS = {
    "settings": {"model": ["/home/someone/secret/model"], "task": ["r2"], "test_source": "user/birds, split test", "seeds": 2},
    "versions": {"torch": "2.13.0"},
    "rows": [
        {"encoder": "run-7", "part": "equivariant", "metric": "R2 rotation, strict", "values": [0.71, 0.73]},
        {"encoder": "run-7", "part": "invariant", "metric": "R2 rotation, strict", "values": [0.11, 0.19]},
        {"encoder": "random weights", "part": "backbone", "metric": "R2 rotation, strict", "values": [0.27, 0.29]},
        {"encoder": "raw pixels", "part": "pixels", "metric": "kNN-20", "values": [0.375]},
    ],
}


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "run-7"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    (folder / "results.json").write_text(json.dumps(RESULTS))
    return folder


def numbers(text):
    """All numbers of a text, also those that stand beside letters."""
    return {float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", text)}


def test_card_has_valid_front_matter_with_the_models_own_metrics(run_dir, tmp_path):
    run = read_run(run_dir)
    card = render_card(TEMPLATE, run, run["results"])
    data = check_card(card)
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == ("apache-2.0", "transformers", "image-feature-extraction")
    assert data["datasets"] == ["user/birds"] and "custom_code" in data["tags"] and "## License\n\nApache-2.0.\n" in card
    (tmp_path / "README.md").write_text(card)
    parsed = ModelCard.load(tmp_path / "README.md").data  # huggingface_hub's own reader
    found = {(result.metric_name, result.metric_value) for result in parsed.eval_results}
    assert found == {("R2 rotation, strict (equivariant)", 0.72), ("R2 rotation, strict (invariant)", 0.15)}  # no control among them
    assert {result.metric_type for result in parsed.eval_results} == {"r2"}
    for heading in ("How to use", "How it was trained", "Data", "Results", "Limits", "Citation"):
        assert f"\n## {heading}\n" in card
    assert "| run-7 | equivariant | R2 rotation, strict | 0.720 ± 0.014 |" in card
    assert "| raw pixels | pixels | kNN-20 | 0.375 |" in card


def test_card_holds_no_number_that_the_run_did_not_produce(run_dir):
    run = read_run(run_dir)
    card = render_card(TEMPLATE, run, run["results"])
    produced = numbers(TEMPLATE) | numbers(json.dumps([run["settings"], run["metrics"], RESULTS])) | {130.0}  # 250 - 120 dimensions
    produced |= {0.72, 0.014, 0.15, 0.057, 0.28, 0.375}  # means and deviations of the rows, by hand
    assert numbers(card) <= produced, numbers(card) - produced


def test_card_of_a_run_without_evaluation_says_so(run_dir):
    run = {**read_run(run_dir), "repo_id": "user/name"}
    card = render_card(TEMPLATE, run)
    assert "This model has not been evaluated." in card
    assert "model-index" not in check_card(card)
    assert 'model="user/name"' in card


def test_card_names_no_place_of_the_machine(run_dir):
    run = read_run(run_dir)
    run["settings"] |= {"dataset_name": None, "train_dir": "/home/someone/photos"}
    card = render_card(TEMPLATE, run, run["results"])
    assert "/home/" not in card and "datasets" not in check_card(card)
    assert "local folder" in card
    run["settings"] |= {"train_dir": None}
    assert "no photographs and no labels were used" in render_card(TEMPLATE, run)


def test_card_names_the_model_of_the_hub_that_it_continues(run_dir):
    run = read_run(run_dir)
    run["settings"] |= {"model_preset": None, "init_from": "someone/vit"}
    card = render_card(TEMPLATE, run)
    data = check_card(card)
    assert (data["base_model"], data["license"], data["license_link"]) == ("someone/vit", "other", "https://huggingface.co/someone/vit")
    assert "its license applies" in card and "that of [someone/vit](https://huggingface.co/someone/vit)" in card
    run["settings"] |= {"init_from": "/home/someone/vit", "knn_guard_data_files": "/home/someone/labelled.parquet"}
    card = render_card(TEMPLATE, run)
    assert "/home/" not in card and "base_model" not in check_card(card) and "that of another checkpoint" in card
    run["settings"] |= {"dataset_name": None, "train_dir": None, "data_files": None}
    assert "no photographs" not in render_card(TEMPLATE, run)  # nobody here knows what the other model saw


def test_results_of_other_models_are_not_taken_for_this_one(run_dir):
    run = read_run(run_dir)
    results = {"rows": [{"name": name, "part": "both", "metric": "knn", "mean": 0.5, "std": None} for name in ("a", "b")]}
    with pytest.raises(ValueError, match=r"results are of several models \(a, b\), and none has the run's name 'run-7'"):
        render_card(TEMPLATE, run, results)
    results["rows"][0]["name"] = "run-7"
    assert len(check_card(render_card(TEMPLATE, run, results))["model-index"][0]["results"]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.removeprefix("---\n"), "begins with front-matter"),
        (lambda card: card.replace("license: apache-2.0", "license: [a"), "front-matter is no YAML"),
        (lambda card: card.replace("license: apache-2.0\n", ""), "license must be an identifier like 'apache-2.0', got None"),
        (lambda card: card.replace("image-feature-extraction", "vision", 1), "pipeline_tag must be 'image-feature-.*', got 'vision'"),
        (lambda card: card.replace("value: 0.72", "value: .nan"), "needs a type and a finite value"),
        (lambda card: card + "{{ more }}", "still holds the placeholder {{ more }}"),
        (lambda card: card.replace("- custom_code", "- 3"), "tags must be a list of names"),
    ],
)
def test_wrong_cards_are_named(change, message, run_dir):
    run = read_run(run_dir)
    card = render_card(TEMPLATE, run, run["results"])
    with pytest.raises(ValueError, match=message):
        check_card(change(card))


def test_wrong_templates_and_runs_are_named(run_dir, tmp_path):
    with pytest.raises(ValueError, match="unknown placeholder 'accuracy' in the template; known: augmentation, backbone"):
        render_card("---\n{{ accuracy }}\n---\n", read_run(run_dir))
    with pytest.raises(ValueError, match="holds no run: expected config.yaml in it"):
        read_run(tmp_path)


def test_details_of_an_evaluation_stay_out_of_the_card(run_dir):
    row = {"encoder": "run-7", "part": "both", "metric": "R2 rotation, strict", "values": [0.5, 0.7], "headline": True, "settings": {}}
    control = {**row, "encoder": "random weights (run-7)", "values": [0.25]}
    detail = {**row, "metric": "R2 rotation, strict, linear head", "values": [0.3125], "headline": False}
    card = render_card(TEMPLATE, read_run(run_dir), {"protocol": {"seeds": 2}, "rows": [row, control, detail]})
    assert "0.600 ± 0.141" in card and "0.250" in card and "0.312" not in card and "linear head" not in card
    (result,) = check_card(card)["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 0.6
