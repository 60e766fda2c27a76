import io
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from tests.conftest import load_script

from eqcohvit.commands.evaluate import parse as parse_evaluate
from eqcohvit.commands.finetune import parse as parse_finetune
from eqcohvit.training.arguments import parse_arguments

reproduce = load_script("reproduce")
tables = reproduce.sys.modules["reproduction.tables"]
ALL = "--table A B C D E --data cifar10 --data_files train-*.parquet --test_data_files test-*.parquet".split()
ALL += ["--dense_data", "dense"]


def rows(part, metric, *values, encoder="x"):
    return {
        "encoder": encoder,
        "part": part,
        "metric": metric,
        "values": list(values),
        "headline": True,
        "settings": {},
    }


def write(folder, name, *found):
    (folder / name).mkdir(parents=True)
    (folder / name / "results.json").write_text(json.dumps({"models": [{"name": "x"}], "rows": list(found)}))


def cells(text, label):
    line = next(line for line in text.splitlines() if line.startswith(f"| {label} "))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_every_command_is_one_that_its_script_takes(tmp_path):
    scripts = {"evaluate": parse_evaluate, "finetune": parse_finetune, "pretrain": parse_arguments}
    work = reproduce.Reproduction(reproduce.parse([*ALL, "--output_dir", str(tmp_path / "runs"), "--max_steps", "7"]))
    stages = [(run, stage) for run in work.runs for stage in work.stages(run)]
    seen = {}
    for run, stage in stages:
        script = stage.command[1].rsplit("/", 1)[1].removesuffix(".py")
        seen[run.name, stage.name] = scripts[script](stage.command[2:])
    assert len(seen) == len(stages) == 2 * (len(work.runs) - 3) + 2 * 7 + 5
    assert seen["vicreg-none", "pretrain"].recon_weight == 0 and seen["vicreg-rotation", "pretrain"].recon_weight == 10
    assert (
        seen["simclr-rotation", "pretrain"].recon_weight == 20
        and seen["simclr-all", "pretrain"].path == "se2+color_jitter+gaussian_blur"
    )
    assert {seen[run.name, "pretrain"].max_steps for run in work.runs if not run.untrained} == {7}
    assert seen["d_equi-quarter", "pretrain"].equivariant_dim == 64 and seen["k-2-final", "pretrain"].include_final
    trained = seen["dense-random", "depth"]
    assert (
        trained.random_weights
        and not seen["dense-none", "depth"].random_weights
        and seen["dense-none", "depth"].max_steps == 120
    )


def test_runs_that_compare_come_first_and_each_once():
    names = [run.name for run in tables.chosen_runs(["C", "E", "A", "B"])]
    assert len(names) == len(set(names))
    assert names[:4] == ["vicreg-none", "vicreg-se2", "simclr-none", "simclr-se2"]
    late = ["vicreg-se2", "identity", "k-1", "vicreg-rotation", "context-none", "simclr-rotation"]
    assert sorted(late, key=names.index) == late


def test_an_evaluated_run_needs_no_model(tmp_path):
    flags = "--table B --data cifar10 --max_steps 5 --output_dir".split()
    work = reproduce.Reproduction(reproduce.parse([*flags, str(tmp_path)]))
    run = work.runs[0]
    home = work.home(run)
    (home / "model").mkdir(parents=True)
    assert [stage.name for stage in work._missing(run)] == ["pretrain", "evaluate"]
    (home / "model" / "config.json").write_text("{}")
    assert [stage.name for stage in work._missing(run)] == ["evaluate"]
    (home / "results.json").write_text("{}")
    shutil.rmtree(home / "model")
    assert work._missing(run) == []


def test_tables_hold_what_the_results_say(tmp_path):
    metric = "R2 rotation, strict"
    pixels = rows("pixels", metric, 0.7, encoder="raw pixels")
    write(
        tmp_path,
        "vicreg-rotation",
        rows("equivariant", metric, 0.5, 0.6),
        rows("invariant", metric, 0.25),
        rows("backbone", "kNN-20", 0.31),
        pixels,
    )
    write(tmp_path, "k-1", rows("equivariant", metric, 0.125), pixels)
    text = tables.render_tables(tmp_path)
    assert "0.550 ± 0.635" in cells(text, "VICReg + rotation")
    assert "0.250" in cells(text, "K = 2")
    assert cells(text, "K = 1")[1] == "0.125" and cells(text, "K = 2")[1] == "0.550 ± 0.635"
    assert "0.700" in cells(text, "raw pixels")
    assert "Not run: " in text and "iBOT + rotation" in text
    assert not any(f"Table {name}" in text for name in "ACD")


def test_training_seeds_are_averaged(tmp_path):
    metric = "R2 rotation, paper"
    write(tmp_path, "sie", rows("equivariant", metric, 0.1, 0.3))
    write(tmp_path, "sie-seed1", rows("equivariant", metric, 0.4))
    assert cells(tables.render_tables(tmp_path), "SIE, rotation")[0] == "0.300 ± 0.141 (2 runs)"


def test_mean_over_transformations_needs_them_all(tmp_path):
    kinds = ("rotation", "color_jitter", "gaussian_blur", "translation")
    write(
        tmp_path,
        "vicreg-none",
        *(rows("equivariant", f"R2 {kind}, paper", 0.1 * i, 0.2 * i) for i, kind in enumerate(kinds)),
    )
    write(tmp_path, "sie", rows("equivariant", "R2 rotation, paper", 0.5))
    text = tables.render_tables(tmp_path)
    assert cells(text, "VICReg λ = 0")[-1] == "0.225 ± 0.953" and cells(text, "SIE, rotation")[-1] == ""


def test_kept_tables_are_those_of_the_kept_results():
    folders = [path.parent for path in (Path(reproduce.__file__).parent / "reproduction").glob("*/tables.md")]
    assert folders
    for folder in folders:
        assert (folder / "tables.md").read_text() == tables.render_tables(folder)


def test_results_of_other_protocol_versions_do_not_mix(tmp_path):
    metric = "R2 rotation, paper"
    write(tmp_path, "sie", rows("equivariant", metric, 0.1))
    write(tmp_path, "k-1", rows("equivariant", metric, 0.2))
    results = json.loads((tmp_path / "k-1" / "results.json").read_text())
    (tmp_path / "k-1" / "results.json").write_text(json.dumps(results | {"protocol_version": "2"}))
    with pytest.raises(ValueError, match="different protocol versions cannot stand side by side: sie has 1, k-1 has 2"):
        tables.render_tables(tmp_path)
    assert "0.100" in tables.render_tables(tmp_path, "A")


def test_dense_table_takes_untrained_video_numbers_from_the_control(tmp_path):
    metric = "video segmentation J&F"
    found = [rows("backbone", metric, 0.5), rows("backbone", metric, 0.25, encoder="random weights")]
    write(tmp_path / "dense-none", "video_segmentation", *found)
    write(tmp_path / "dense-random", "segmentation", rows("backbone", "mIoU", 0.125))
    text = tables.render_tables(tmp_path)
    assert cells(text, "VICReg λ = 0")[-1] == "0.500"
    assert cells(text, "random weights")[0] == "0.125" and cells(text, "random weights")[-1] == "0.250"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--table", "D"], "dense_data"),
        (["--max_steps", "5", "--budget", "3"], "give only one of them"),
        (["--data_files", "x"], "go together"),
        (["--time_limit", "0"], "must be positive"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, flags, words):
    assert reproduce.cli(["--output_dir", str(tmp_path / "runs"), "--data", "cifar10", *flags]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "runs").exists()


def test_another_size_does_not_mix_with_the_runs_of_a_folder(tmp_path, capsys):
    flags = ["--output_dir", str(tmp_path), "--data", "cifar10"]
    reproduce.Reproduction(reproduce.parse([*flags, "--max_steps", "5"]))
    assert reproduce.Reproduction(reproduce.parse(flags)).plan["max_steps"] == 5
    assert reproduce.cli([*flags, "--max_steps", "6"]) == 2
    assert "max_steps 5, not 6" in capsys.readouterr().err


@pytest.mark.slow
def test_driver_runs_a_table_in_pieces_and_keeps_what_is_done(tmp_path):
    for name, count in (("train", 300), ("test", 60)):
        write_parquet(tmp_path / f"{name}.parquet", count)
    files = ["--data_files", f"{tmp_path}/train.parquet", "--test_data_files", f"{tmp_path}/test.parquet"]
    flags = ["--table", "B", "--data", "cifar10", *files, "--max_steps", "4"]
    flags += ["--max_samples", "100", "--max_test_samples", "50", "--output_dir", str(tmp_path / "runs")]
    assert reproduce.cli([*flags, "--time_limit", "0.4"]) == 75
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/model/config.json")}
    assert reproduce.cli(flags) == 0
    assert (
        len(list((tmp_path / "runs").glob("*/results.json"))) == 4
        and {path: path.stat().st_mtime_ns for path in done} == done
    )
    text = (tmp_path / "runs" / "tables.md").read_text()
    assert all(all(cells(text, label)) for label in ("K = 1", "K = 2", "K = 3", "K = 2 and the final view"))
    noted = json.loads((tmp_path / "runs" / "k-3" / "run.json").read_text())
    assert (
        noted["stages"]["pretrain"]["command"].startswith("python scripts/pretrain.py --config ")
        and noted["stages"]["evaluate"]["seconds"] > 0
    )


@pytest.mark.slow
def test_budget_chooses_the_steps(tmp_path, capsys):
    write_parquet(tmp_path / "train.parquet", 300)
    shutil.copy(tmp_path / "train.parquet", tmp_path / "test.parquet")
    files = f"--data_files {tmp_path}/train.parquet --test_data_files {tmp_path}/test.parquet"
    flags = f"--table B --data cifar10 {files}".split()
    few, many = (
        reproduce.Reproduction(reproduce.parse([*flags, "--output_dir", str(tmp_path / b), "--budget", b]))
        for b in ("20", "60")
    )
    assert 1.5 * few.plan["max_steps"] < many.plan["max_steps"] <= 500
    assert reproduce.cli([*flags, "--output_dir", str(tmp_path / "none"), "--budget", "0.1"]) == 2
    assert "minutes are needed" in capsys.readouterr().err and not (tmp_path / "none").exists()


def write_parquet(path, count):
    rng, images = np.random.default_rng(0), []
    for _ in range(count):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    datasets.Dataset.from_dict({"img": images, "label": [i % 2 for i in range(count)]}, features=features).to_parquet(
        path
    )
