import json
import os
import shlex
import subprocess
import sys

import pytest
from tests.conftest import SCRIPTS, load_script, save_tiny_encoder
from tests.patience import PATIENCE
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from eqcohvit.evaluation.run import num_held_out


@pytest.fixture(scope="module")
def evaluate():
    return load_script("evaluate")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_encoder(tmp_path_factory.mktemp("runs") / "tiny" / "model", image_size=16, num_layers=1)


def run(evaluate, folder, output, *flags):
    small = "--max_samples 60 --max_test_samples 30 --seeds 1 --head linear".split()
    cache = ["--cache_dir", str(output.parent / "cache" / output.stem)]
    return evaluate.cli(["--model", str(folder), *small, *cache, "--output", str(output), *flags])


def test_table_holds_all_parts_and_both_controls(evaluate, folder, tmp_path, capsys):
    flags = "--full --task r2 knn --pooling cls_mean"
    assert run(evaluate, folder, tmp_path / "results.json", *flags.split()) == 0
    table = capsys.readouterr().out
    for text in ("tiny", "random weights", "raw pixels", "R2 rotation,", "paper,", "strict,", "kNN-20", "±"):
        assert text in table
    results = json.loads((tmp_path / "results.json").read_text())
    found = {(row["encoder"], row["part"]) for row in results["rows"]}
    parts = ("equivariant", "invariant", "both", "backbone")
    expected = {(name, part) for name in ("tiny", "random weights") for part in parts} | {("raw pixels", "pixels")}
    assert found == expected | {(name, f"{part}, g alone") for name, part in expected}
    assert "\nrotation, paper: the black border tells it\n" in table and "\nrotation, strict: " not in table
    assert results["settings"]["transform"] == ["rotation"] and results["versions"]["torch"]
    page = (tmp_path / "results.html").read_text()
    assert (
        "<script" not in page
        and page.count("data:image/png;base64,") == len(list((tmp_path / "plots").glob("*.png"))) == 4
    )
    assert results["protocol"]["data_fingerprint"] and results["models"][0]["name"] == "tiny"


def test_missing_labels_are_said_before_any_features_are_computed(evaluate, folder, photos, tmp_path, capsys):
    output = tmp_path / "results.json"
    assert run(evaluate, folder, output, "--task", "r2", "knn", "--train_dir", str(photos)) == 2
    errors = capsys.readouterr().err
    assert "classification needs labels" in errors and "features" not in errors and not output.exists()


def test_the_default_is_quick_and_says_what_full_adds(evaluate, folder, tmp_path, capsys):
    arguments = ["--model", str(folder), "--head", "linear", "--max_samples", "40", "--max_test_samples", "20"]
    assert evaluate.cli([*arguments, "--cache_dir", str(tmp_path / "cache"), "--output", str(tmp_path / "r.json")]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[:-1])) <= 80  # the last line has paths
    printed = printed.replace("\n  ", " ")
    images = "at most 40 images to fit on and 20 to test on, each under 13 and 25 draws of the transformation"
    assert f"Measured: strict protocol, pooling cls_mean, 1 seed, {images}.\n" in printed
    few = "40 images are few to fit a probe on: expect wide intervals below 500. --head kernel reads more from few."
    assert f"\n{few}\n" in printed
    full = "paper and strict protocol, pooling cls_mean and grid, 3 seeds, at most 4,096 images to fit on and 2,048"
    assert f"--full takes longer: {full} to test on.\n" in printed
    results = json.loads((tmp_path / "r.json").read_text())
    assert {row["settings"]["protocol"] for row in results["rows"]} == {"strict"}
    assert {row["part"] for row in results["rows"] if row["part"].endswith("alone")} == {"pixels, g alone"}
    assert results["protocol"]["full"] is False


@pytest.mark.parametrize(
    ("num_images", "num_test", "quick", "expected"),
    [(60, 512, True, 20), (60, 512, False, 20), (600, 512, True, 200), (600, 512, False, 512), (9000, 512, True, 512)],
)
def test_a_small_folder_is_tested_on_a_third(num_images, num_test, quick, expected):
    assert num_held_out(num_images, num_test, quick) == expected


def test_a_folder_of_24_photographs_is_evaluated_by_default(evaluate, folder, photos, tmp_path):
    arguments = ["--model", str(folder), "--train_dir", str(photos), "--cache_dir", str(tmp_path / "cache")]
    assert evaluate.cli([*arguments, "--head", "linear", "--output", str(tmp_path / "results.json")]) == 0
    protocol = json.loads((tmp_path / "results.json").read_text())["protocol"]
    assert (protocol["train_images"], protocol["test_images"]) == (16, 8)
    assert (protocol["train_draws"], protocol["test_draws"]) == (32, 63)


def test_r2_needs_neither_pycocotools_nor_accelerate(folder, tmp_path):
    """Supervised tasks are imported only when they are named."""
    code = "import sys\nfor name in ('pycocotools', 'accelerate', 'peft'): sys.modules[name] = None\n"
    code += "from eqcohvit.commands.evaluate import cli\nsys.exit(cli(sys.argv[1:]))\n"
    small = "--head linear --max_samples 20 --max_test_samples 10".split()
    arguments = ["--model", str(folder), *small, "--cache_dir", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0 and "R2 rotation," in done.stdout, done.stderr[-2000:]


def test_layers_and_disentanglement_reach_tables_and_plots(evaluate, folder, tmp_path, capsys):
    flags = "--task disentanglement --transform zoom --protocol strict --pooling mean --layer last all"
    small = "--max_samples 40 --max_test_samples 20 --seeds 1"
    assert run(evaluate, folder, tmp_path / "x.json", *flags.split(), *small.split()) == 0
    table = capsys.readouterr().out
    for text in (
        "backbone, layer 1",
        "R2 zoom,",
        "kNN-20",
        "linear",
        "change under zoom,",
        "CKA with invariant",
    ):
        assert text in table
    plots = {path.name for path in (tmp_path / "x_plots").iterdir()}
    names = ("r2_bars", "r2_by_layer", "scatter_zoom", "pca_maps", "neighbors")
    assert plots == {f"{name}.png" for name in names} and (tmp_path / "x.html").is_file()


def test_same_command_twice_gives_the_same_numbers(evaluate, folder, tmp_path):
    rows = []
    for name in ("a.json", "b.json"):
        workers = "2" if name == "b.json" else "0"
        flags = f"--transform se2 --protocol strict --pooling mean --num_workers {workers}"
        assert run(evaluate, folder, tmp_path / name, *flags.split()) == 0
        rows.append(json.loads((tmp_path / name).read_text())["rows"])
    assert rows[0] == rows[1]


def test_foreign_vit_has_the_backbone_as_its_only_part(evaluate, tmp_path, capsys):
    layers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**layers, image_size=16, patch_size=8)).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    assert run(evaluate, tmp_path / "vit", tmp_path / "results.json", "--protocol", "paper") == 0
    found = {(row["encoder"], row["part"]) for row in json.loads((tmp_path / "results.json").read_text())["rows"]}
    expected = {("vit", "backbone"), ("random weights", "backbone"), ("raw pixels", "pixels")}
    assert found == expected | {("raw pixels", "pixels, g alone")}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--transform spin", "unknown path 'spin'"),
        ("--seeds 0", "seeds must be positive, got 0"),
        ("--train_dir nowhere", "nowhere"),
        ("--test_data_files a.parquet", "test_data_files needs data to fit on"),
        ("--data_files a.parquet --test_split test", "test_split needs dataset_name without data_files"),
        (
            "--data_files {folder}/*.json --test_data_files {folder}/config.json",
            "test_data_files must share no file with data_files",
        ),
        ("--radius -1", "radius must not be negative, got -1"),
        ("--context_frames -1", "context_frames must not be negative, got -1"),
        ("--num_workers -1", "num_workers must not be negative, got -1"),
        ("--max_frames 0", "max_frames must be positive, got 0"),
        ("--cache_dir /dev/null/cache", "cache_dir /dev/null/cache cannot be written"),
        ("--output .", "output must be a file such as results.json, got the folder ."),
    ],
)
def test_bad_input_ends_with_2_and_one_line(evaluate, folder, tmp_path, capsys, flags, message):
    assert run(evaluate, folder, tmp_path / "r.json", *flags.format(folder=folder).split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "r.json").exists()


def test_missing_model_ends_with_2_and_one_line(evaluate, tmp_path, capsys):
    assert evaluate.cli(["--model", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error == f"error: no such folder: {tmp_path / 'nowhere'}\n"


@pytest.mark.parametrize("end", ["> /dev/full", "| true"])
def test_numbers_are_written_before_they_are_printed(folder, tmp_path, end):
    """Also to a terminal that knows ASCII alone, where the table has a sign that is none."""
    small = (
        "--max_samples 60 --max_test_samples 30 --seeds 2 --head linear --pooling cls_mean --protocol strict".split()
    )
    output = ["--output", str(tmp_path / "results.json"), "--cache_dir", str(tmp_path / "cache")]
    command = shlex.join([sys.executable, str(SCRIPTS / "evaluate.py"), "--model", str(folder), *small, *output])
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} {end}"], capture_output=True, timeout=PATIENCE, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "results.json").read_text())["rows"]
