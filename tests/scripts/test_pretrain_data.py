"""What scripts/pretrain.py and scripts/evaluate.py say of data, and when."""

import io
import tarfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from accelerate.utils import LoggerType
from tests.data.data_tools import png
from tests.tiny import SIZES, load_script

from eqcohvit.data import retry
from eqcohvit.training import trackers

SMALL = (
    f"{SIZES} --patch_size 4 "
    "--per_device_train_batch_size 6 --max_steps 2 --warmup_steps 1 --logging_steps 1 --sample_steps 9 "
    "--probe_samples 0"
).split()


@pytest.fixture(scope="module")
def pretrain():
    return load_script("pretrain")


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The pauses that were made, without their waiting."""
    made: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", made.append)
    return made


def test_the_start_says_what_is_left_out_and_a_small_folder_is_warned_of(pretrain, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.png").write_bytes(png(50 * i))
    for i in range(40):
        (folder / f"{i}.heic").touch()
    assert pretrain.cli([*SMALL, "--train_dir", str(folder), "--output_dir", str(tmp_path / "run")]) == 0
    _, first, second, third, *_ = capsys.readouterr().out.replace("\n  ", " ").splitlines()
    assert first == f"4 images in {folder}; left out: 40 .heic (no ending of a format that is read)"
    assert second == "warning: a batch of 6 is more than the 4 images, so each batch has some images twice"
    advice = "use a trained model as it is, or continue it by --init_from MODEL"
    assert third == (f"warning: 4 images are few to learn from random weights; with fewer than 2,000, {advice}")


def write_images(path, column="image", values=range(12)):
    features = datasets.Features({column: datasets.Image()})
    datasets.Dataset.from_dict(
        {column: [{"bytes": png(v), "path": None} for v in values]}, features=features
    ).to_parquet(path)


def odd_data(kind, folder):
    """Flags that name data of which nothing can be read."""
    if kind == "list":
        features = datasets.Features({"images": datasets.List(datasets.Image())})
        cells = [[{"bytes": png(1), "path": None}]] * 3
        datasets.Dataset.from_dict({"images": cells}, features=features).to_parquet(folder / "a.parquet")
        return ["--data_files", f"{folder}/a.parquet", "--image_column", "images"]
    if kind == "floats":
        pq.write_table(pa.table({"pixels": [[0.1, 0.2]] * 3}), folder / "a.parquet")
        return ["--data_files", f"{folder}/a.parquet", "--image_column", "pixels"]
    if kind == "captions":
        pq.write_table(pa.table({"text": ["a cat on a mat"] * 12}), folder / "a.parquet")
        return ["--data_files", f"{folder}/a.parquet", "--image_column", "text"]
    if kind == "later shard":
        write_images(folder / "a.parquet")
        write_images(folder / "b.parquet", column="picture")
        return ["--data_files", f"{folder}/*.parquet"]
    if kind == "cut tar":
        with tarfile.open(folder / "a.tar", "w") as archive:
            member = tarfile.TarInfo("0.png")
            member.size = 5000
            archive.addfile(member, io.BytesIO(bytes(5000)))
        (folder / "a.tar").write_bytes((folder / "a.tar").read_bytes()[:3000])
        return ["--data_files", f"{folder}/a.tar"]
    return ["--dataset_name", "csv"]


MESSAGES = {
    "list": "holds List(Image",
    "floats": "holds List(Value('float64'))",
    "captions": "a cat on a mat: neither a file nor base64 of an image",
    "later shard": "b.parquet has no column image; its columns: picture",
    "cut tar": "a.tar: ",
    "csv": "dataset_name=csv reads files",
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_data_that_cannot_be_read_end_with_2_and_one_line_before_anything_is_written(
    pretrain, tmp_path, capsys, kind, pauses
):
    flags = odd_data(kind, tmp_path)
    assert pretrain.cli([*SMALL, *flags, "--output_dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and MESSAGES[kind] in error and len(error) < 600
    assert not (tmp_path / "run").exists() and pauses == []


def test_a_folder_without_a_step_can_be_used_again_with_other_settings(pretrain, tmp_path):
    write_images(tmp_path / "a.parquet")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("seed: 3\nimage_column: wrong\n")
    flags = [*SMALL, "--data_files", f"{tmp_path}/a.parquet", "--image_column", "image", "--output_dir", str(run)]
    assert pretrain.cli(flags) == 0
    assert "image_column: image" in (run / "config.yaml").read_text()
    assert pretrain.cli(flags) == 2  # now it holds a run


@pytest.mark.parametrize("in_folder", [True, False])
def test_a_tracker_that_cannot_be_opened_ends_with_2(pretrain, tmp_path, capsys, monkeypatch, in_folder):
    """As wandb without a key, and as one that writes into the run's folder; an own tracker in the place of a
    library's."""
    opened_in = []

    class Locked(trackers.LOGGER_TYPE_TO_CLASS["tensorboard"]):
        requires_logging_directory = in_folder

        def __init__(self, *_, **__):
            pass

        def start(self):
            opened_in.append((tmp_path / "run").exists())
            raise PermissionError("no key:\nlog in first")

    monkeypatch.setitem(trackers.LOGGER_TYPE_TO_CLASS, "tensorboard", Locked)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.TENSORBOARD])
    write_images(tmp_path / "a.parquet")
    flags = [
        *SMALL,
        "--data_files",
        f"{tmp_path}/a.parquet",
        "--output_dir",
        str(tmp_path / "run"),
        "--report_to",
        "tensorboard",
    ]
    assert pretrain.cli(flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "error: cannot open the tracker tensorboard: no key: log in first"
    assert opened_in == [in_folder] and (tmp_path / "run").exists() == in_folder


def test_an_evaluation_of_data_that_break_off_ends_with_1_and_one_line(tmp_path, capsys, encoder_folder):
    urls = pa.table({"url": ["http://nowhere.invalid/1.png"] * 8})
    pq.write_table(urls, tmp_path / "urls.parquet")
    flags = [
        "--model",
        encoder_folder,
        "--task",
        "r2",
        "--data_files",
        f"{tmp_path}/urls.parquet",
        "--image_column",
        "url",
    ]
    flags += ["--max_samples", "4", "--max_test_samples", "2", "--cache_dir", str(tmp_path / "cache")]
    assert load_script("evaluate").cli(flags) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        "error: reading http://nowhere.invalid/1.png failed 5 times in a row, at last with ConnectionError: no answer"
    )


def test_an_evaluation_of_a_csv_without_files_ends_with_2(capsys, encoder_folder):
    assert load_script("evaluate").cli(["--model", encoder_folder, "--task", "r2", "--dataset_name", "csv"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: dataset_name=csv reads files: say which with data_files"
