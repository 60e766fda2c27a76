import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file
from tests.downstream.dense_tools import make_rows
from tests.patience import PATIENCE

FLAGS = (
    # A head without batch norms.
    "--task keypoints --head simple --max_steps 4 --logging_steps 2 --save_steps 4 --warmup_steps 1 "
    "--test_data_files {test} --data_files {files} --model {model}"
)


@pytest.fixture(scope="module")
def flags(tmp_path_factory, encoder_folder):
    """Eight images with three keypoints so near to the center that no crop loses one."""
    folder, generator = tmp_path_factory.mktemp("keypoints"), np.random.default_rng(0)
    images = list(generator.integers(0, 255, (8, 40, 40, 3), dtype=np.uint8))
    points = generator.uniform(14, 26, (8, 3, 2)).tolist()
    make_rows(image=images, keypoints=points).to_parquet(str(folder / "train.parquet"))
    test = shutil.copy(folder / "train.parquet", folder / "test.parquet")  # the same file for both is refused
    return FLAGS.format(files=folder / "train.parquet", test=test, model=encoder_folder).split()


def test_two_processes_finetune_as_one_with_the_same_batch(run_server, flags, tmp_path):
    for number, batch_size in ((1, "4"), (2, "2")):
        argv = [*flags, "--per_device_train_batch_size", batch_size, "--output_dir", str(tmp_path / str(number))]
        run_server.run(argv, tmp_path / f"record-{number}", num_processes=number, script="finetune")
    lines = [list(map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())) for name in "12"]
    assert [line["step"] for line in lines[1]] == [2, 4]
    for one, two in zip(*lines, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4) and two["grad_norm"] == pytest.approx(
            one["grad_norm"], rel=1e-3
        )
    models = [load_file(tmp_path / name / "model" / "model.safetensors") for name in "12"]
    moved = max(float((models[0][name] - models[1][name]).abs().max()) for name in models[0])
    assert moved < 1e-4  # four steps of Adam with rates up to 1e-3
    rows = [json.loads((tmp_path / name / "results.json").read_text())["rows"] for name in "12"]
    assert [row["metric"] for row in rows[1]] == [row["metric"] for row in rows[0]]  # scored once, by the main process
    for one, two in zip(*rows, strict=True):
        assert two["values"] == pytest.approx(one["values"], abs=0.05)


def test_a_row_that_cannot_be_read_ends_both_processes(run_server, flags, tmp_path):
    rows = {
        "image": [np.zeros((40, 40, 3), np.uint8)] * 4,
        "keypoints": [[[20.0, 20.0], [15.0, 15.0], [20.0, 15.0]]] * 4,
    }
    broken = make_rows(**rows).to_list()
    broken[2]["image"]["bytes"] = b"no image"
    make_rows(**{key: [row[key] for row in broken] for key in rows}).to_parquet(str(tmp_path / "broken.parquet"))
    argv = [*flags, "--data_files", str(tmp_path / "broken.parquet"), "--per_device_train_batch_size", "2"]
    argv += ["--output_dir", str(tmp_path / "run")]
    runs = run_server.start(argv, tmp_path / "record", num_processes=2, script="finetune")
    codes = {run.wait(PATIENCE): run.output() for run in runs}
    assert "train row 2: the image of column image cannot be decoded" in codes[2]
    assert len(codes) == 2 and all(codes), codes
