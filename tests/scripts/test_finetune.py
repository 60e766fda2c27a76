import json
import shutil
import signal

import numpy as np
import pytest
from PIL import Image
from tests.conftest import load_script
from tests.downstream.dense_tools import make_rows
from tests.patience import PATIENCE

SMALL = "--max_steps 6 --per_device_train_batch_size 2 --logging_steps 2 --save_steps 3 --warmup_steps 2".split()


@pytest.fixture(scope="module")
def finetune():
    return load_script("finetune")


@pytest.fixture(scope="module")
def segmentation_files(tmp_path_factory):
    """Six images whose color tells the class of each pixel."""
    generator, path = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "train.parquet"
    labels = [np.kron(generator.integers(0, 3, (4, 5)), np.ones((10, 10))).astype(np.uint8) for _ in range(6)]
    make_rows(
        image=[np.stack([m * 100, 255 - m * 100, m * 20], axis=-1) for m in labels], annotation=labels
    ).to_parquet(str(path))
    copy = shutil.copy(path, path.with_name("test.parquet"))  # the same file for both is refused
    return ["--data_files", str(path), "--test_data_files", str(copy)]


def run(finetune, encoder_folder, files, output, *flags):
    return finetune.cli(
        [
            "--task",
            "segmentation",
            "--num_labels",
            "3",
            "--model",
            encoder_folder,
            *files,
            *SMALL,
            "--output_dir",
            str(output),
            *flags,
        ]
    )


def test_run_leaves_model_numbers_and_pictures(finetune, encoder_folder, segmentation_files, tmp_path, capsys):
    assert run(finetune, encoder_folder, segmentation_files, tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert "step 6/6" in printed and "| mIoU" in printed
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [(row["metric"], row["part"]) for row in results["rows"]] == [
        ("mIoU", "backbone"),
        ("pixel accuracy", "backbone"),
    ]
    assert (
        results["settings"]["seed"] == 0 and results["versions"]["torch"] and results["protocol"] and results["command"]
    )
    assert Image.open(tmp_path / "run" / "pictures" / "step-6.png").width > 300
    assert (tmp_path / "run" / "model" / "task.json").is_file() and (
        tmp_path / "run" / "checkpoints" / "step-3"
    ).is_dir()
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == [
        2,
        4,
        6,
    ]


@pytest.mark.parametrize("train", ["all", "lora"])
def test_resumed_run_equals_an_uninterrupted_one(finetune, encoder_folder, segmentation_files, tmp_path, train):
    flags = ["--train", train, "--head", "linear"]
    assert run(finetune, encoder_folder, segmentation_files, tmp_path / "whole", *flags) == 0
    assert run(finetune, encoder_folder, segmentation_files, tmp_path / "halves", *flags) == 0
    shutil.rmtree(tmp_path / "halves" / "checkpoints" / "step-6")
    (tmp_path / "halves" / "results.json").unlink()
    assert (
        run(
            finetune,
            encoder_folder,
            segmentation_files,
            tmp_path / "halves",
            "--resume_from_checkpoint",
            "latest",
        )
        == 0
    )  # --train and --head are those of the run
    one, other = (json.loads((tmp_path / name / "results.json").read_text())["rows"] for name in ("whole", "halves"))
    assert one == other
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "halves")]
    assert weights[0] == weights[1]


def test_frozen_backbone_does_not_change(finetune, encoder_folder, segmentation_files, tmp_path):
    from eqcohvit.downstream.backbones import EncoderFolder, find_backbone
    from eqcohvit.downstream.saved import load_finetuned

    assert (
        run(finetune, encoder_folder, segmentation_files, tmp_path / "run", "--train", "head", "--head", "linear") == 0
    )
    trained = find_backbone(load_finetuned(tmp_path / "run" / "model")[1]).state_dict()
    assert all(
        (trained[key] == value).all()
        for key, value in EncoderFolder.open(encoder_folder).backbone().state_dict().items()
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_labels", "2"], "train row 0: the annotation has the value 2, expected 0 .. 1"),
        (["--model", "nowhere"], "no model at nowhere"),
        (["--target_column", "mask"], "no column mask for the annotations; its columns: image, annotation"),
        (["--data_files", "nothing-*.parquet"], "no file matches nothing-*.parquet"),
        (["--max_test_samples", "0"], "max_test_samples must be positive, got 0"),
        (["--seed", "-1"], "seed must lie between 0 and 2**32 - 1, got -1"),
        (["--per_device_train_batch_size", "1"], "per_device_train_batch_size must be at least 2"),
        (["--resume_from_checkpoint", "elsewhere"], "no checkpoint at elsewhere"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    finetune, encoder_folder, segmentation_files, tmp_path, capsys, flags, message
):
    assert run(finetune, encoder_folder, segmentation_files, tmp_path / "run", *flags) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.startswith("error: ") and "\n" not in error
    assert not (tmp_path / "run").exists()


def test_another_run_is_not_overwritten(finetune, encoder_folder, segmentation_files, tmp_path, capsys):
    output = tmp_path / "run"
    output.mkdir()
    (output / "finetune.yaml").write_text("seed: 1\n")
    (output / "metrics.jsonl").write_text('{"step": 1}\n')
    assert run(finetune, encoder_folder, segmentation_files, output) == 2
    assert "holds another run" in capsys.readouterr().err
    flags = ["--seed", "0", "--resume_from_checkpoint", "latest"]
    assert run(finetune, encoder_folder, segmentation_files, output, *flags) == 2
    assert "cannot resume with other settings: seed was 1, is 0" in capsys.readouterr().err


def test_a_signal_ends_the_testing_at_once_and_a_resumed_run_tests_again(
    run_server, encoder_folder, segmentation_files, tmp_path
):
    generator, output = np.random.default_rng(0), tmp_path / "run"
    images, labels = (
        list(generator.integers(0, 255, (20, 40, 48, 3), dtype=np.uint8)),
        [np.ones((40, 48), np.uint8)] * 20,
    )
    make_rows(image=images * 40, annotation=labels * 40).to_parquet(str(tmp_path / "test.parquet"))
    argv = [
        "--task",
        "segmentation",
        "--head",
        "linear",
        "--num_labels",
        "3",
        "--model",
        encoder_folder,
        *segmentation_files[:2],
        *SMALL,
    ]
    argv += ["--test_data_files", str(tmp_path / "test.parquet"), "--output_dir", str(output)]
    (run,) = run_server.start(argv, tmp_path / "record", script="finetune")
    while not (output / "model" / "task.json").exists():
        assert run.wait(0.01) is None, run.output()
    run.signal(signal.SIGTERM)
    assert run.wait(PATIENCE) == 75 and not (output / "results.json").exists()
    more = ["--resume_from_checkpoint", "latest", "--max_test_samples", "4"]
    assert "steps 6 to 6" in run_server.run([*argv, *more], tmp_path / "record", script="finetune")[0].output()
    assert (output / "results.json").exists()
