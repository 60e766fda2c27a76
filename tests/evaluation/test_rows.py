import datasets
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from tests.downstream.dense_tools import make_rows

from eqcohvit.evaluation.rows import (
    find_column,
    open_rows,
    open_train_and_test,
    read_depth,
    read_image,
    read_labels,
)
from eqcohvit.evaluation.settings import DataSettings


def save(path, count):
    rows = make_rows(image=[np.full((4, 6, 3), i, np.uint8) for i in range(count)], number=list(range(count)))
    rows.to_parquet(str(path))
    return str(path)


def test_every_tenth_row_is_held_out(tmp_path):
    train, test = open_train_and_test(DataSettings(data_files=save(tmp_path / "a.parquet", 25)))
    assert test["number"][:] == [9, 19] and train["number"][:] == [i for i in range(25) if i not in (9, 19)]
    train, test = open_train_and_test(DataSettings(data_files=save(tmp_path / "b.parquet", 3)))
    assert test["number"][:] == [2] and train["number"][:] == [0, 1]
    with pytest.raises(ValueError, match="only one row"):
        open_train_and_test(DataSettings(data_files=save(tmp_path / "c.parquet", 1)))


def test_test_files_are_taken_where_they_are_given(tmp_path):
    files = {"data_files": save(tmp_path / "a.parquet", 3), "test_data_files": save(tmp_path / "b.parquet", 2)}
    train, test = open_train_and_test(DataSettings(**files))
    assert (len(train), len(test)) == (3, 2) and read_image(test[1], "image").getpixel((0, 0)) == (1, 1, 1)


def test_a_folder_of_images_needs_no_dataset(photos):
    train, test = open_train_and_test(DataSettings(train_dir=str(photos)))
    assert len(train) + len(test) == 24 and read_image(train[0], "image").mode == "RGB"


def test_default_rows_stand_where_nothing_is_named():
    assert open_train_and_test(DataSettings(), lambda: ([1], [2])) == ([1], [2])
    with pytest.raises(ValueError, match="this task needs data"):
        open_train_and_test(DataSettings())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"data_files": "nothing-*.parquet"}, "no file matches nothing-"),
        ({"train_dir": "a", "data_files": "b.parquet"}, "give either train_dir"),
        # Files have no splits: whatever the split is called, the test rows would be those that are trained on.
        (
            {"data_files": "a.parquet", "test_split": "test"},
            "test_split needs dataset_name without data_files, got test_split='test'",
        ),
        (
            {"train_dir": "a", "test_split": "test"},
            "test_split needs dataset_name without data_files, got test_split='test'",
        ),
        (
            {"dataset_name": "a/b", "test_split": "train"},
            "test_split must be another split than dataset_split, got 'train' for both",
        ),
        ({"test_data_files": "a.parquet"}, "test_data_files needs data to fit on"),
        ({"test_split": "test"}, "test_split needs data to fit on"),
    ],
)
def test_data_that_are_not_there(flags, message):
    with pytest.raises(ValueError, match=message) as error:
        open_train_and_test(DataSettings(**flags), lambda: ([1], [2]))
    assert "\n" not in str(error.value)


def test_columns_are_found_by_their_usual_names():
    rows = make_rows(image=[np.zeros((2, 2, 3), np.uint8)], mask=[np.zeros((2, 2), np.uint8)])
    assert find_column(rows, None, ["annotation", "mask"], "annotations") == "mask"
    assert find_column(rows, "image", ["annotation"], "annotations") == "image"
    with pytest.raises(ValueError, match="no column annotation for the labels; its columns: image, mask"):
        find_column(rows, None, ["annotation"], "labels")


def test_what_a_cell_must_hold():
    depth = np.arange(6, dtype=np.uint16).reshape(2, 3)
    assert read_depth(make_rows(d=[depth])[0], "d").tolist() == depth.tolist()
    assert read_depth({"d": [[1.5, 2.0]]}, "d").tolist() == [[1.5, 2.0]]
    with pytest.raises(ValueError, match="of mode RGB"):
        read_labels(make_rows(a=[np.zeros((2, 2, 3), np.uint8)])[0], "a")
    with pytest.raises(ValueError, match="column a is empty"):
        read_image({"a": None}, "a")
    with pytest.raises(ValueError, match="the image of column a cannot be decoded"):
        read_image({"a": {"bytes": b"broken", "path": None}}, "a")
    with pytest.raises(ValueError, match="column a must hold images, got int"):
        read_image({"a": 3}, "a")


def test_open_rows_passes_over_an_empty_shard_and_names_what_does_not_fit(tmp_path):
    whole = datasets.Dataset.from_dict(
        {"image": [Image.new("L", (4, 4), 9)] * 3}, features=datasets.Features({"image": datasets.Image()})
    )
    whole.to_parquet(tmp_path / "b.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "b.parquet")
    with pyarrow.parquet.ParquetWriter(tmp_path / "a.parquet", table.schema) as writer:
        writer.write_table(table.slice(0, 0))
    rows = open_rows(None, None, "train", f"{tmp_path}/*.parquet")
    assert len(rows) == 3 and read_image(rows[0], "image").getpixel((0, 0)) == (9, 9, 9)
    pyarrow.parquet.write_table(table.rename_columns(["picture"]), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="cannot open dataset parquet: .*picture") as caught:
        open_rows(None, None, "train", f"{tmp_path}/*.parquet")
    assert "\n" not in str(caught.value)
