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
    """The suite with one transformation, seed and head, so that it takes seconds."""
    small = dataclasses.replace(SUITES["r2"], transform=("rotation",), head=("linear",), seeds=1)
    monkeypatch.setitem(SUITES, "r2", small)


def command(models, cache, *flags, counts="--max_samples 40 --max_test_samples 20"):
    return ["--suite", "r2", "--model", *models, *counts.split(), "--cache_dir", str(cache), *flags]


def read(path):
    return json.loads(path.read_text())


def test_own_model_and_plain_vit_give_the_same_table_twice(
    evaluate, encoder_folder, vit, small_suite, tmp_path, capsys
):
    tables = []
    for name in ("a", "b"):
        assert evaluate.cli(command([encoder_folder, vit], tmp_path / name)) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    for text in (
        "tiny",
        "equivariant",
        "\nvit ",
        "random weights (vit)",
        "raw pixels",
        "R2 rotation,",
        "strict",
    ):
        assert text in tables[0]


@pytest.mark.slow
def test_whole_suite_gives_the_same_numbers_twice(evaluate, encoder_folder, vit, tmp_path):
    for name in ("a", "b"):
        flags = ["--output", str(tmp_path / name / "results.json")]
        counts = "--max_samples 120 --max_test_samples 60"
        assert evaluate.cli(command([encoder_folder, vit], tmp_path / name / "cache", *flags, counts=counts)) == 0
    first, second = read(tmp_path / "a" / "results.json"), read(tmp_path / "b" / "results.json")
    assert first["rows"] == second["rows"] and first["protocol"] == second["protocol"]
    assert first["protocol_version"] == PROTOCOL_VERSION and first["suite"] == "r2"
    own = [row for row in first["rows"] if row["headline"] and (row["encoder"], row["part"]) == ("vit", "backbone")]
    assert len(own) == 12 and own[0]["metric"] == "R2 rotation, strict"
    page = (tmp_path / "a" / "results.html").read_text()
    assert f"suite r2, protocol version {PROTOCOL_VERSION}" in page and page.count("<table class=suite>") == 1
    assert page.count("<th>strict</th>") == 7 and page.count("<th>paper</th>") == 4


@pytest.mark.slow
def test_models_of_an_earlier_run_stand_in_the_same_table(evaluate, encoder_folder, vit, small_suite, tmp_path, capsys):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    assert evaluate.cli(command([vit], tmp_path / "cache", "--output", str(first))) == 0
    capsys.readouterr()
    flags = ["--output", str(second), "--beside", str(first)]
    assert evaluate.cli(command([encoder_folder], tmp_path / "cache", *flags)) == 0
    assert "\nvit " in capsys.readouterr().out
    page = (tmp_path / "second.html").read_text()
    assert ">vit</th>" in page and ">tiny</th>" in page
    assert {row["encoder"] for row in read(second)["rows"]} == {"tiny", "random weights", "raw pixels"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"protocol_version": "0"}, "figures of different protocol versions cannot stand side by side"),
        ({"protocol": {"train_images": 41}}, "cannot stand in one table: train_images is 41 and 40"),
    ],
)
def test_other_figures_are_refused_before_the_work(evaluate, vit, tmp_path, capsys, changed, message):
    other = {
        "protocol_version": PROTOCOL_VERSION,
        "suite": "r2",
        "protocol": {},
        "models": [{"name": "x"}],
        "rows": [{}],
    }
    (tmp_path / "other.json").write_text(json.dumps(other | changed))
    assert evaluate.cli(command([vit], tmp_path / "cache", "--beside", str(tmp_path / "other.json"))) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and not (tmp_path / "cache").exists()


def test_the_suite_sets_what_decides_a_figure(evaluate):
    args = evaluate.parse(["--suite", "r2", "--model", "x"])
    assert {name: getattr(args, name) for name in SUITES["r2"].fixed()} == SUITES["r2"].fixed()
    assert (args.max_samples, args.max_test_samples) == (2048, 1024)
    assert evaluate.parse(["--suite", "r2", "--model", "x", "--max_samples", "9"]).max_samples == 9
    plain = evaluate.parse(["--model", "x"])
    assert (plain.max_samples, plain.max_test_samples, plain.transform) == (1024, 512, ["rotation"])
    full = evaluate.parse(["--model", "x", "--full", "--seeds", "2"])
    assert (full.max_samples, full.max_test_samples, full.seeds) == (4096, 2048, 2)
    assert (full.protocol, full.pooling) == (["paper", "strict"], ["cls_mean", "grid"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--suite r2 --transform zoom", "suite r2 fixes transform to"),
        ("--suite r2 --seeds 5", "suite r2 fixes seeds to 3, got 5"),
        ("--suite r2 --task knn", "suite r2 fixes task to ['r2'], got ['knn']"),
        ("--suite r2 --target_columns pose", "suite r2 regresses transformations"),
        ("--beside x.json", "beside needs a suite"),
        (
            "--suite r2 --beside nowhere.json",
            "beside needs results.json files that --suite has written, got nowhere.json",
        ),
    ],
)
def test_flags_that_contradict_the_suite_are_refused(evaluate, vit, tmp_path, capsys, flags, message):
    output = tmp_path / "results.json"
    assert (
        evaluate.cli(["--model", vit, "--output", str(output), "--cache_dir", str(tmp_path / "cache"), *flags.split()])
        == 2
    )
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1 and not output.exists()
