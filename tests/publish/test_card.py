import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from eqcohvit.publish.card import check_card, read_run, read_template, rename_card, render_card

TEMPLATE = read_template()

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
    "settings": {
        "model": ["/home/someone/secret/model"],
        "task": ["r2"],
        "test_source": "user/birds, split test",
        "seeds": 2,
    },
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
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == (
        "apache-2.0",
        "transformers",
        "image-feature-extraction",
    )
    assert (
        data["datasets"] == ["user/birds"] and "custom_code" in data["tags"] and "## License\n\nApache-2.0.\n" in card
    )
    (tmp_path / "README.md").write_text(card)
    parsed = ModelCard.load(tmp_path / "README.md").data  # huggingface_hub's own reader
    found = {(result.metric_name, result.metric_value) for result in parsed.eval_results}
    assert found == {
        ("R2 rotation, strict (equivariant)", 0.72),
        ("R2 rotation, strict (invariant)", 0.15),
    }  # no control among them
    assert {result.metric_type for result in parsed.eval_results} == {"r2"}
    assert len(data["model-index"][0]["results"]) == 1  # one dataset, with both metrics
    assert card.index("## Results") < card.index("## How to use") < card.index("All settings")
    for heading in ("How to use", "How it was trained", "Data", "Results", "Limits", "Citation"):
        assert f"\n## {heading}\n" in card
    assert (
        "| encoder | part | R2 rotation, strict | kNN-20 |" in card
        and "| run-7 | equivariant | 0.720 ± 0.127 |  |" in card
    )
    assert "| raw pixels | pixels |  | 0.375 |" in card


def test_card_holds_no_number_that_the_run_did_not_produce(run_dir):
    run = read_run(run_dir)
    card = render_card(TEMPLATE, run, run["results"])
    produced = (
        numbers(TEMPLATE) | numbers(json.dumps([run["settings"], run["metrics"], RESULTS])) | {130.0}
    )  # 250 - 120 dimensions
    produced |= {95.0, 0.72, 0.127, 0.15, 0.508, 0.28, 0.375}  # means and 95 % intervals of the rows, by hand
    assert numbers(card) <= produced, numbers(card) - produced


def test_card_does_not_tell_where_the_images_of_an_evaluation_lie(run_dir):
    protocol = {"source": "/home/me/birds", "test_source": "~/more/fish", "k": 20}
    card = render_card(TEMPLATE, read_run(run_dir), {**RESULTS, "protocol": protocol})
    assert "| `source` | `birds` |\n| `test_source` | `fish` |\n| `k` | `20` |" in card
    assert "/home" not in card and "~/" not in card


def test_card_of_a_run_without_evaluation_says_so(run_dir, monkeypatch):
    run = {**read_run(run_dir), "repo_id": "user/name"}
    card = render_card(TEMPLATE, run)
    assert "This model has not been evaluated." in card
    assert "model-index" not in check_card(card)
    assert 'model="user/name"' in card and "\n# name\n" in card
    assert 'model="run-7/model"' in render_card(TEMPLATE, read_run(run_dir))  # without a place on this machine
    monkeypatch.chdir(run_dir.parent.parent)
    relative = run_dir.relative_to(run_dir.parent.parent)
    assert f'model="{relative.as_posix()}/model"' in render_card(TEMPLATE, read_run(relative))  # it loads from here


def test_renamed_card_has_the_repository_everywhere_and_keeps_what_was_written_by_hand(run_dir):
    run = read_run(run_dir)
    card = render_card(TEMPLATE, run, run["results"]) + "\nMy own words about run-7.\n"
    renamed = rename_card(card, "me/birds")
    expected = render_card(TEMPLATE, {**run, "repo_id": "me/birds"}, run["results"]) + "\nMy own words about run-7.\n"
    assert renamed == expected != card
    assert rename_card(renamed, "you/fish").count('"you/fish"') == 3
    assert rename_card("# run-7\n", "me/birds") == "# run-7\n"


def test_dataset_of_local_files_is_named_where_it_is_known(run_dir):
    run = read_run(run_dir)
    run["settings"] |= {"dataset_name": None, "data_files": "/home/someone/birds-*.parquet"}
    results = {**RESULTS, "settings": {"test_source": "parquet train"}}
    data = check_card(render_card(TEMPLATE, {**run, "dataset": "user/fish"}, results))
    assert data["datasets"] == ["user/fish"]
    assert data["model-index"][0]["results"][0]["dataset"] == {"type": "user/fish", "name": "user/fish"}
    assert "a local dataset" in render_card(TEMPLATE, run, results)


def test_card_names_no_place_of_the_machine(run_dir):
    run = read_run(run_dir)
    run["settings"] |= {"dataset_name": None, "train_dir": "/home/someone/photos"}
    card = render_card(TEMPLATE, run, run["results"])
    assert "/home/" not in card and "datasets" not in check_card(card)
    assert "local folder" in card
    run["settings"] |= {"train_dir": None}
    assert "No photographs and no labels were used" in render_card(TEMPLATE, run)


def test_card_names_the_model_of_the_hub_that_it_continues(run_dir):
    run = read_run(run_dir)
    run["settings"] |= {"model_preset": None, "init_from": "someone/vit"}
    card = render_card(TEMPLATE, run)
    data = check_card(card)
    assert (data["base_model"], data["license"], data["license_link"]) == (
        "someone/vit",
        "other",
        "https://huggingface.co/someone/vit",
    )
    assert (
        "its license applies" in card
        and "from [someone/vit](https://huggingface.co/someone/vit), trained further" in card
    )
    run["settings"] |= {"init_from": "/home/someone/vit", "knn_guard_data_files": "/home/someone/labeled.parquet"}
    card = render_card(TEMPLATE, run)
    assert "/home/" not in card and "base_model" not in check_card(card) and "from another checkpoint" in card
    run["settings"] |= {"dataset_name": None, "train_dir": None, "data_files": None}
    assert "photographs and" not in render_card(TEMPLATE, run)  # nobody here knows what the other model saw


def test_results_of_other_models_are_not_taken_for_this_one(run_dir):
    run = read_run(run_dir)
    results = {"rows": [{"encoder": name, "part": "both", "metric": "knn", "values": [0.5]} for name in ("a", "b")]}
    with pytest.raises(ValueError, match=r"results are of several models \(a, b\), none with the name 'run-7'"):
        render_card(TEMPLATE, run, results)
    controls = ("random weights", "raw pixels", "the nearer view", "blend of both views")
    beside = [{"encoder": name, "part": "both", "metric": "knn", "values": [0.5]} for name in controls]
    (only,) = check_card(render_card(TEMPLATE, run, {"rows": results["rows"][:1] + beside}))["model-index"]
    assert len(only["results"][0]["metrics"]) == 1
    results["rows"][0]["encoder"] = "run-7"
    assert len(check_card(render_card(TEMPLATE, run, results))["model-index"][0]["results"]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.removeprefix("---\n"), "begins with front-matter"),
        (lambda card: card.replace("license: apache-2.0", "license: [a"), "front-matter is not valid YAML"),
        (
            lambda card: card.replace("license: apache-2.0\n", ""),
            "license must be an identifier like 'apache-2.0', got None",
        ),
        (
            lambda card: card.replace("image-feature-extraction", "vision", 1),
            "pipeline_tag must be 'image-feature-.*', got 'vision'",
        ),
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
    with pytest.raises(
        ValueError, match="unknown placeholder 'accuracy' in the template; known: augmentation, backbone"
    ):
        render_card("---\n{{ accuracy }}\n---\n", read_run(run_dir))
    with pytest.raises(ValueError, match="holds no run: expected config.yaml in it"):
        read_run(tmp_path)


def test_details_of_an_evaluation_stay_out_of_the_card(run_dir):
    row = {
        "encoder": "run-7",
        "part": "both",
        "metric": "R2 rotation, strict",
        "values": [0.5, 0.7],
        "headline": True,
        "settings": {},
    }
    control = {**row, "encoder": "random weights (run-7)", "values": [0.25]}
    detail = {**row, "metric": "R2 rotation, strict, linear head", "values": [0.3125], "headline": False}
    card = render_card(TEMPLATE, read_run(run_dir), {"protocol": {"seeds": 2}, "rows": [row, control, detail]})
    assert "0.600 ± 1.271" in card and "0.250" in card and "0.312" not in card and "linear head" not in card
    (result,) = check_card(card)["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 0.6
