import json
import shutil

import numpy as np
import pytest
from tests.conftest import load_script
from tests.downstream.dense_tools import make_rows


@pytest.fixture(scope="module")
def evaluate():
    return load_script("evaluate")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two videos of three frames with a moving square, whose annotations also serve as segmentations."""
    generator, path = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "videos.parquet"
    images, labels, names = [], [], []
    for name in ("one", "two"):
        square = generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        for t in range(3):
            image, label = np.full((64, 64, 3), 90, np.uint8), np.zeros((64, 64), np.uint8)
            image[8:24, 8 + 8 * t : 24 + 8 * t], label[8:24, 8 + 8 * t : 24 + 8 * t] = square, 1
            images, labels, names = [*images, image], [*labels, label], [*names, name]
    make_rows(image=images, annotation=labels, sequence=names, frame=[0, 1, 2] * 2).to_parquet(str(path))
    return str(path)


def run(evaluate, model, files, output, *flags):
    flags = ["--model", model, "--data_files", files, "--seeds", "1", "--output", str(output), *flags]
    return evaluate.cli([*flags, "--cache_dir", str(output.parent / "cache")])


def rows_of(path):
    return {(row["encoder"], row["part"], row["metric"]): row["values"] for row in json.loads(path.read_text())["rows"]}


def test_video_tasks_score_all_parts_and_both_controls(evaluate, encoder_folder, files, tmp_path, capsys):
    output = tmp_path / "results.json"
    assert (
        run(
            evaluate,
            encoder_folder,
            files,
            output,
            "--task",
            "video_segmentation",
            "part_propagation",
            "--frame_size",
            "64",
        )
        == 0
    )
    captured = capsys.readouterr()
    assert "video segmentation J&F" in captured.out and "part propagation mIoU" in captured.out
    assert "video 2/2 two: 3 frames, tiny" in captured.err
    rows = rows_of(output)
    parts = [(name, part) for name in ("tiny", "random weights") for part in ("equivariant", "invariant", "backbone")]
    assert {key[:2] for key in rows} == {*parts, ("raw pixels", "pixels")}
    assert rows["raw pixels", "pixels", "video segmentation J"][0] > 0.8
    results = json.loads(output.read_text())
    assert "DAVIS" in (tmp_path / "results.html").read_text() and results["command"] and results["versions"]["torch"]
    assert (tmp_path / "plots" / "video_segmentation.png").is_file()


def test_heads_are_fitted_for_an_encoder_and_for_random_weights(evaluate, encoder_folder, files, tmp_path):
    flags = ["--task", "segmentation", "homography", "--num_labels", "2", "--max_steps", "2"]
    assert run(evaluate, encoder_folder, files, tmp_path / "results.json", *flags) == 0
    rows = rows_of(tmp_path / "results.json")
    assert {key[:2] for key in rows} == {("tiny", "backbone"), ("random weights", "backbone")}
    assert {key[2] for key in rows} >= {"segmentation mIoU", "homography mean corner error (px) ↓"}


def test_finetuned_model_is_scored_as_it_is(evaluate, encoder_folder, files, tmp_path, capsys):
    test_files = shutil.copy(files, tmp_path / "test.parquet")  # the same file for both is refused
    flags = [
        "--task",
        "segmentation",
        "--model",
        encoder_folder,
        "--num_labels",
        "2",
        "--head",
        "linear",
        "--max_steps",
        "2",
    ]
    flags += ["--per_device_train_batch_size", "2", "--data_files", files, "--test_data_files", str(test_files)]
    assert load_script("finetune").cli([*flags, "--output_dir", str(tmp_path / "run")]) == 0
    model = str(tmp_path / "run" / "model")
    assert (
        run(
            evaluate,
            model,
            files,
            tmp_path / "results.json",
            "--test_data_files",
            str(test_files),
            "--task",
            "segmentation",
        )
        == 0
    )
    finetuned = {
        row["metric"]: row["values"] for row in json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    }
    rows = rows_of(tmp_path / "results.json")
    assert rows["run", "backbone", "segmentation mIoU"] == finetuned["mIoU"]
    assert run(evaluate, model, files, tmp_path / "other.json", "--task", "depth") == 2
    assert "was fine-tuned for segmentation, not for depth" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "segmentation"], "segmentation needs --num_labels"),
        (
            ["--task", "video_segmentation", "--max_frames", "1"],
            "video one has one frame; label propagation needs at least two",
        ),
        (["--task", "detection"], "no column objects for the objects; its columns: image, annotation, sequence, frame"),
        (["--task", "keypoints", "--target_column", "frame"], "must hold keypoints as"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(evaluate, encoder_folder, files, tmp_path, capsys, flags, message):
    assert run(evaluate, encoder_folder, files, tmp_path / "results.json", *flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "results.json").exists()
