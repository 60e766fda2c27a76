import dataclasses
import json

import pytest
from tests.conftest import load_script
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from eqcohvit.evaluation.suite import PROTOCOL_VERSION, SUITES


@pytest.fixture(scope="module")
def evaluate():
    return load_script("evaluate")


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A plain ViT of random weights."""
    folder = tmp_path_factory.mktemp("plain") / "vit"
    layers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**layers, image_size=16, patch_size=8)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def small_suite(monkeypatch):
    """The suite with two transformations and one seed, so that it takes seconds."""
    small = dataclasses.replace(SUITES["r2"], transform=("rotation", "gaussian_blur"), head=("linear",), seeds=1)
    monkeypatch.setitem(SUITES, "r2", small)


def run(evaluate, models, output, *flags):
    small = "--max_samples 40 --max_test_samples 20".split()
    cache = ["--cache_dir", str(output.parent / f"cache-{output.stem}")]
    return evaluate.cli(["--suite", "r2", "--model", *models, *small, *cache, "--output", str(output), *flags])


def read(path):
    return json.loads(path.read_text())


def test_own_model_and_plain_vit_give_the_same_table_twice(evaluate, encoder_folder, vit, small_suite, tmp_path):
    for name in ("a.json", "b.json"):
        assert run(evaluate, [encoder_folder, vit], tmp_path / name) == 0
    first, second = read(tmp_path / "a.json"), read(tmp_path / "b.json")
    assert first["rows"] == second["rows"] and first["protocol"] == second["protocol"]
    found = {(row["encoder"], row["part"]) for row in first["rows"]}
    assert {("tiny", "equivariant"), ("tiny", "invariant"), ("vit", "backbone"), ("raw pixels", "pixels")} <= found
    assert first["protocol_version"] == PROTOCOL_VERSION and first["suite"] == "r2"
    page = (tmp_path / "a_report.html").read_text()
    assert f"suite r2, protocol version {PROTOCOL_VERSION}" in page and page.count("<table class=suite>") == 1


def test_models_of_an_earlier_run_stand_in_the_same_table(evaluate, encoder_folder, vit, small_suite, tmp_path, capsys):
    assert run(evaluate, [vit], tmp_path / "first.json") == 0
    beside = ["--beside", str(tmp_path / "first.json")]
    capsys.readouterr()
    assert run(evaluate, [encoder_folder], tmp_path / "second.json", *beside) == 0
    assert "| vit " in capsys.readouterr().out
    page = (tmp_path / "second_report.html").read_text()
    assert "<td>vit</td>" in page and "<td>tiny</td>" in page
    assert {row["encoder"] for row in read(tmp_path / "second.json")["rows"]} == {"tiny", "random weights", "raw pixels"}
    (tmp_path / "first.json").write_text(json.dumps(read(tmp_path / "first.json") | {"protocol_version": "0"}))
    assert run(evaluate, [encoder_folder], tmp_path / "third.json", *beside) == 2
    assert "different protocol versions cannot stand side by side" in capsys.readouterr().err
    assert not (tmp_path / "third.json").exists()


def test_the_suite_sets_what_decides_a_figure(evaluate):
    args = evaluate.parse(["--suite", "r2", "--model", "x"])
    assert {name: getattr(args, name) for name in SUITES["r2"].fixed()} == SUITES["r2"].fixed()
    assert (args.max_samples, args.max_test_samples) == (2048, 1024)
    assert evaluate.parse(["--suite", "r2", "--model", "x", "--max_samples", "9"]).max_samples == 9
    plain = evaluate.parse(["--model", "x"])
    assert (plain.max_samples, plain.max_test_samples, plain.transform) == (4096, 2048, ["rotation"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--suite r2 --transform zoom", "suite r2 fixes transform to"),
        ("--suite r2 --seeds 5", "suite r2 fixes seeds to 3, got 5"),
        ("--suite r2 --task knn", "suite r2 fixes task to ['r2'], got ['knn']"),
        ("--suite r2 --target_columns pose", "suite r2 regresses transformations"),
        ("--beside x.json", "beside needs a suite"),
        ("--suite r2 --beside nowhere.json", "beside needs results.json files that --suite has written, got nowhere.json"),
    ],
)
def test_flags_that_contradict_the_suite_are_refused(evaluate, vit, tmp_path, capsys, flags, message):
    output = tmp_path / "results.json"
    assert evaluate.cli(["--model", vit, "--output", str(output), "--cache_dir", str(tmp_path / "cache"), *flags.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1 and not output.exists()
