import json
import re

import pytest
from tests.conftest import SCRIPTS, load_script
from tests.evaluation.latent_renders import draw_rows, write_3diebench, write_parquet


@pytest.fixture(scope="module")
def evaluate():
    return load_script("evaluate")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_parquet(tmp_path_factory.mktemp("renders") / "rows.parquet", draw_rows(num_groups=30, per_group=4))


SMALL = "--task r2 --max_samples 40 --max_test_samples 15 --seeds 1 --pooling mean --head linear".split()


def run(evaluate, model, files, output, *flags):
    cache = ["--cache_dir", str(output.parent / "cache")]
    return evaluate.cli(["--model", model, "--data_files", files, *SMALL, *cache, "--output", str(output), *flags])


def rows_of(path):
    return {(row["encoder"], row["part"], row["metric"]): row for row in json.loads(path.read_text())["rows"]}


def test_columns_are_regressed_for_each_part_and_control(evaluate, encoder_folder, files, tmp_path, capsys):
    flags = "--full --target_columns hue yaw --circular_columns yaw=360 --group_column object"
    output = tmp_path / "results.json"
    assert run(evaluate, encoder_folder, files, output, *flags.split()) == 0
    table = capsys.readouterr().out
    for text in ("R2 hue,", "one picture", "R2 yaw,", "change", "raw pixels", "random weights", "g alone"):
        assert text in table
    rows = rows_of(output)
    parts = ("equivariant", "invariant", "both", "backbone")
    expected = {(name, part) for name in ("tiny", "random weights") for part in parts} | {("raw pixels", "pixels")}
    changes = {key[:2] for key in rows if key[2].startswith("R2 yaw, change")}
    assert changes == expected | {(name, f"{part}, g alone") for name, part in expected}
    assert {key[:2] for key in rows if key[2].startswith("R2 hue, one picture")} == expected
    row = next(
        row for (_, part, metric), row in rows.items() if metric.startswith("R2 hue, change") and part == "pixels"
    )
    assert (row["settings"]["train"], row["settings"]["test"]) == (40, 15) and row["half_width"] > 0
    plots = {path.name for path in (tmp_path / "plots").iterdir()}
    assert {"r2_bars.png", "scatter_hue_change.png", "scatter_yaw_one_picture.png"} <= plots
    assert "<b>R2</b> of columns of the dataset" in (tmp_path / "results.html").read_text()


def test_recipe_of_3diebench_makes_what_its_command_reads(evaluate, encoder_folder, tmp_path, monkeypatch, capsys):
    """The guide's Python and the flags of its command, on a tree of the same layout."""
    guide = (SCRIPTS / "guides" / "evaluate.md").read_text().split("### 3DIEBench")[1]
    monkeypatch.chdir(tmp_path)
    write_3diebench(tmp_path, {"train": 20, "val": 10})
    exec(compile(re.search(r"```python\n(.*?)```", guide, re.DOTALL)[1], "guide", "exec"), {"__name__": "guide"})
    flags = re.search(r"--target_columns.*?--test_data_files \S+", guide.replace("\\\n", " "))[0].split()
    assert evaluate.cli(["--model", encoder_folder, "--cache_dir", "cache", *SMALL, *flags]) == 0
    table = capsys.readouterr().out
    for column in ("pose", "floor_hue", "light_hue"):
        assert "".join(re.findall("^encoder .*", table, re.MULTILINE)).count(f"R2 {column},") == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--target_columns size", "has no column size; its columns: image, object, yaw, hue"),
        ("--target_columns object", "must hold numbers or lists of numbers, got str"),
        ("--target_columns hue --group_column noise", "must hold names or integers"),
        ("--target_columns hue --quaternion_columns pose", "quaternion_columns must be among target_columns, got pose"),
        ("--target_columns pose --quaternion_columns pose --circular_columns pose=1", "got both for pose"),
        ("--target_columns yaw --circular_columns yaw", "circular_columns must be COLUMN=PERIOD"),
        ("--group_column object", "group_column needs target_columns"),
        ("--target_columns hue --task knn r2", "target_columns works only with --task r2, got knn r2"),
    ],
)
def test_columns_that_do_not_fit_are_one_line(evaluate, encoder_folder, files, tmp_path, capsys, flags, message):
    assert run(evaluate, encoder_folder, files, tmp_path / "r.json", *flags.split()) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error and not (tmp_path / "r.json").exists()


def test_groups_of_one_picture_are_one_line(evaluate, encoder_folder, tmp_path, capsys):
    files = write_parquet(tmp_path / "single.parquet", draw_rows(num_groups=30, per_group=1))
    assert (
        run(evaluate, encoder_folder, files, tmp_path / "r.json", "--target_columns", "hue", "--group_column", "object")
        == 2
    )
    assert "a change needs two pictures of one group, and each of the " in capsys.readouterr().err


def test_target_columns_need_a_dataset(evaluate, encoder_folder, tmp_path, capsys):
    flags = ["--task", "r2", "--target_columns", "hue", "--cache_dir", str(tmp_path / "cache")]
    assert evaluate.cli(["--model", encoder_folder, *flags]) == 2
    assert "target_columns needs a dataset with columns, got sprites" in capsys.readouterr().err
