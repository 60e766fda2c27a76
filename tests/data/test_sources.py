import io
import json
import os
import shutil
import tarfile
from operator import length_hint

import numpy as np
import pytest
from PIL import Image
from tests.data.data_tools import png

from eqcohvit.data import BadImage, DatasetSource, FolderSource, SpritesSource, hold_out, open_source
from eqcohvit.data.sprites import render_sprites


def save_image(path, value=0, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def write_parquet(path, values, row_group_size=None, columns=("image",), label=True):
    """Rows in the Hub's layout; the gray value of an image is its identity."""
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    features = {column: datasets.Image() for column in columns}
    data = {column: [{"bytes": png(value), "path": None} for value in values] for column in columns}
    if label:
        features["label"], data["label"] = datasets.ClassLabel(names=["even", "odd"]), [value % 2 for value in values]
    features["note"], data["note"] = datasets.Value("string"), [str(value) for value in values]
    table = datasets.Dataset.from_dict(data, features=datasets.Features(features))
    table.to_parquet(str(path), batch_size=row_group_size or len(values))
    return path


def read_all(source, epoch=0):
    records = [record for shard in range(source.num_shards) for record in source.read_shard(shard, epoch)]
    decoded = source.decode_batch([record.payload for record in records], 4)
    return records, decoded


def gray_values(decoded):
    return [int(item.canvas[0, 0, 0]) for item in decoded]


# Folders


def test_folder_source_reads_any_tree_without_labels(tmp_path):
    for name, value in (("a/1.png", 1), ("a/b/c/2.JPG", 2), ("3.webp", 3), ("z/4.bmp", 4)):
        save_image(tmp_path / name, value)
    for hidden in (".cache/9.png", "a/._1.png"):
        save_image(tmp_path / hidden, 9)
    (tmp_path / "readme.txt").write_text("no image")
    source = FolderSource(tmp_path)
    records, decoded = read_all(source)
    assert len(source) == 4 and not source.has_labels
    assert sorted(gray_values(decoded)) == pytest.approx([1, 2, 3, 4], abs=1)
    assert [item.size for item in decoded] == [(4, 6)] * 4
    assert {record.label for record in records} == {-1}
    assert source.where(records[0]) == str(tmp_path / "3.webp")


def test_folder_source_takes_globs_of_files_and_of_folders(tmp_path):
    for value, name in enumerate(("x/train/0.png", "x/train/1.jpg", "y/train/2.png", "y/test/3.png")):
        save_image(tmp_path / name, value)
    assert len(FolderSource(f"{tmp_path}/*/train")) == 3
    assert len(FolderSource(f"{tmp_path}/**/*.png")) == 3


def test_folder_source_labels_by_parent_folder_and_mixes_folders_in_each_shard(tmp_path):
    for index in range(1030):
        (tmp_path / "bcda"[index % 4]).mkdir(exist_ok=True)
        (tmp_path / "bcda"[index % 4] / f"{index:04}.png").touch()
    source = FolderSource(tmp_path, labels=True)
    assert source.label_names == ["a", "b", "c", "d"] and source.num_shards == 3
    shards = [list(source.read_shard(shard, 0)) for shard in range(3)]
    assert sum(map(len, shards)) == 1030 == len({record.key for shard in shards for record in shard})
    assert all({record.label for record in shard} == {0, 1, 2, 3} for shard in shards)
    assert all(source.label_names[record.label] == record.payload.split("/")[-2] for record in shards[0])


def test_folder_source_follows_links_once_and_does_not_loop(tmp_path):
    save_image(tmp_path / "elsewhere/1.png")
    root = tmp_path / "root"
    save_image(root / "2.png")
    os.symlink(tmp_path / "elsewhere", root / "link")
    os.symlink(root, root / "loop")
    assert len(FolderSource(root)) == 2


def test_folder_source_vanished_files_and_pipes_are_bad_images(tmp_path):
    gone = save_image(tmp_path / "1.png")
    os.mkfifo(tmp_path / "2.png")
    source = FolderSource(tmp_path)
    gone.unlink()
    _, decoded = read_all(source)
    assert all(isinstance(item, BadImage) for item in decoded)
    assert "No such file" in str(decoded[0]) and "regular file" in str(decoded[1])


def test_folder_source_errors_say_what_was_expected(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"no images found in .* \(extensions .*\.jpg .*\)"):
        FolderSource(tmp_path)
    with pytest.raises(ValueError, match="no such folder: .*missing"):
        FolderSource(tmp_path / "missing")
    with pytest.raises(ValueError, match="no such folder: .*nothing"):
        FolderSource(f"{tmp_path}/nothing/*.png")


# datasets


def test_dataset_source_streams_parquet_by_row_group(tmp_path):
    write_parquet(tmp_path / "a.parquet", range(20), row_group_size=5)
    write_parquet(tmp_path / "b.parquet", range(20, 27))
    source = DatasetSource("parquet", data_files=f"{tmp_path}/*.parquet")
    assert source.num_shards == 5 and source.has_labels and source.label_names == ["even", "odd"]
    records, decoded = read_all(source)
    assert gray_values(decoded) == list(range(27))
    assert [record.label for record in records] == [value % 2 for value in range(27)]
    assert len({record.key for record in records}) == 27
    assert [record.key for record in read_all(source, epoch=3)[0]] == [record.key for record in records]
    assert records[6].key == 1 << 32 | 1 and source.where(records[6]).endswith("shard 1 of 5, row 1")


def test_dataset_source_takes_a_local_folder_and_lists_of_files(tmp_path):
    first, second = (str(write_parquet(tmp_path / f"{name}.parquet", range(3))) for name in ("train-0", "train-1"))
    assert len(read_all(DatasetSource(str(tmp_path)))[0]) == 6
    for files in ([first, second], f"{first}, {second}", {"val": [first, second]}):
        split = "val" if isinstance(files, dict) else "test"
        assert len(read_all(DatasetSource("parquet", data_files=files, split=split))[0]) == 6


def test_dataset_source_needs_image_column_when_several_or_none(tmp_path):
    several = str(write_parquet(tmp_path / "several.parquet", range(4), columns=("image", "mask"), label=False))
    with pytest.raises(
        ValueError, match=r"several image columns \(image, mask\); say which one to read with image_column"
    ):
        DatasetSource("parquet", data_files=several)
    source = DatasetSource("parquet", data_files=several, image_column="mask")
    assert gray_values(read_all(source)[1]) == [0, 1, 2, 3] and not source.has_labels
    none = str(write_parquet(tmp_path / "none.parquet", range(4), columns=()))
    with pytest.raises(ValueError, match=r"no image column among its columns \(label, note\)"):
        DatasetSource("parquet", data_files=none)
    with pytest.raises(ValueError, match="image_column=img is not a column of .*: image, mask, note"):
        DatasetSource("parquet", data_files=several, image_column="img")
    with pytest.raises(ValueError, match="label_column=note of .* must hold class indices"):
        DatasetSource("parquet", data_files=several, image_column="image", label_column="note")


def test_dataset_source_reads_columns_of_raw_bytes_and_of_paths(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"raw": [png(5), None, b""]}), tmp_path / "raw.parquet")
    decoded = read_all(DatasetSource("parquet", data_files=f"{tmp_path}/raw.parquet", image_column="raw"))[1]
    assert gray_values(decoded[:1]) == [5] and all(isinstance(item, BadImage) for item in decoded[1:])
    lines = [{"file": str(save_image(tmp_path / f"{value}.png", value)), "label": value} for value in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    records, decoded = read_all(DatasetSource("json", data_files=f"{tmp_path}/rows.jsonl", image_column="file"))
    assert gray_values(decoded) == [0, 1, 2] and [record.label for record in records] == [0, 1, 2]


def test_dataset_source_reads_webdataset_tars(tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for row in range(5):
                value = shard * 5 + row
                for ending, content in (("png", png(value)), ("cls", str(value).encode())):
                    info = tarfile.TarInfo(f"s{value:03}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    source = open_source(data_files=f"{tmp_path}/*.tar")
    records, decoded = read_all(source)
    assert source.num_shards == 2 and source.has_labels
    assert gray_values(decoded) == [record.label for record in records] == list(range(10))


def test_dataset_source_reads_imagefolder_in_strided_shards(tmp_path):
    for index in range(520):
        save_image(tmp_path / "ab"[index // 260] / f"{index:03}.png", index % 256, size=(1, 1))
    source = DatasetSource("imagefolder", data_files=f"{tmp_path}/**/*.png")
    assert source.num_shards == 2 and source.label_names == ["a", "b"] and length_hint(source) == 520
    records, decoded = read_all(source)
    assert sorted(gray_values(decoded)) == sorted(index % 256 for index in range(520))
    assert {record.label for record in source.read_shard(0, 0)} == {0, 1}


def test_dataset_source_errors_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"data_files: no file matches .*nope\*\.parquet"):
        DatasetSource("parquet", data_files=f"{tmp_path}/nope*.parquet")
    file = str(write_parquet(tmp_path / "x.parquet", range(2)))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    for arguments in (
        {"path": str(tmp_path / "no_such_folder")},
        {"path": "parquet", "data_files": {"train": [file]}, "split": "test"},
        {"path": "parquet", "data_files": str(tmp_path / "broken.parquet")},
    ):
        with pytest.raises(ValueError, match="cannot open dataset") as caught:
            DatasetSource(**arguments)
        assert "\n" not in str(caught.value)


# Sprites and the factory


def test_sprites_source_renders_fresh_labeled_scenes_each_epoch():
    source = SpritesSource(num_samples=600, seed=3, offset=1000)
    assert source.num_shards == 2 and source.has_labels
    first, second = (
        [record.key for shard in range(2) for record in source.read_shard(shard, epoch)] for epoch in range(2)
    )
    assert first == list(range(1000, 1600)) and second == list(range(1600, 2200))
    decoded = source.decode_batch([1000, 1001], 24)
    expected = render_sprites(np.array([1000, 1001]), 24, seed=3)
    assert all((item.canvas == image).all() for item, image in zip(decoded, expected.images, strict=True))
    assert [item.label for item in decoded] == expected.labels.tolist() and decoded[0].size == (24, 24)


def test_open_source_chooses_by_what_is_given(tmp_path):
    save_image(tmp_path / "images/cat/1.png")
    file = str(write_parquet(tmp_path / "x.parquet", range(2)))
    assert isinstance(open_source(), SpritesSource)
    assert isinstance(open_source(train_dir=tmp_path / "images"), FolderSource)
    assert open_source(train_dir=tmp_path / "images", label_column="folder").label_names == ["cat"]
    assert open_source(data_files=file).num_shards == open_source("parquet", data_files=file).num_shards == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset_name": "x", "train_dir": "y"}, "either train_dir .* or dataset_name / data_files, not both"),
        ({"data_files": "x.zip"}, r"must all end in one of \.parquet, \.arrow, \.tar, got x\.zip"),
        ({"image_column": "image"}, "need dataset_name or data_files"),
        ({"train_dir": "x", "label_column": "label"}, "train_dir has no columns"),
    ],
)
def test_open_source_rejects_contradictions(arguments, message):
    with pytest.raises(ValueError, match=message):
        open_source(**arguments)


def test_hold_out_takes_the_first_rows_of_each_streamed_shard_away(tmp_path):
    for index in range(3):
        write_parquet(tmp_path / f"{index}.parquet", range(10 * index, 10 * index + 10))
    source = DatasetSource("parquet", data_files=f"{tmp_path}/*.parquet")
    rest, held_out = hold_out(source, 5)  # two rows of each of three shards

    def values(part):
        records = [record for shard in range(part.num_shards) for record in part.read_shard(shard, 0)]
        images = part.decode_batch([record.payload for record in records], 8)
        return {record.key: int(image.canvas[0, 0, 0]) for record, image in zip(records, images, strict=True)}

    everything = values(source)
    assert sorted(values(held_out).values()) == [0, 1, 10, 11, 20, 21]
    assert values(held_out) | values(rest) == everything and not values(held_out).keys() & values(rest).keys()
    assert (
        rest.has_labels
        and held_out.label_names == ["even", "odd"]
        and rest.where(next(rest.read_shard(1, 0))).endswith("row 2")
    )


def test_hold_out_takes_paths_evenly(tmp_path):
    for index in range(10):
        save_image(tmp_path / ("a" if index < 5 else "b") / f"{index}.png")
    rest, held_out = hold_out(FolderSource(tmp_path, labels=True), 4)
    assert [record.key for record in held_out.read_shard(0, 0)] == [0, 2, 5, 7]
    assert [record.key for record in rest.read_shard(0, 0)] == [1, 3, 4, 6, 8, 9]


def test_hold_out_leaves_at_least_half_of_each_shard(tmp_path):
    write_parquet(tmp_path / "a.parquet", range(5))
    for index in range(5):
        save_image(tmp_path / f"{index}.png")
    for source in (FolderSource(tmp_path), DatasetSource("parquet", data_files=f"{tmp_path}/*.parquet")):
        rest, held_out = hold_out(source, 100)
        assert [len(list(part.read_shard(0, 0))) for part in (rest, held_out)] == [3, 2]


# ---------------------------------------------------------------------------------------------- what a run resumes over


def test_identity_is_of_the_names_and_moves_with_the_images(photos, tmp_path):
    moved = shutil.copytree(photos, tmp_path / "moved", copy_function=shutil.copyfile)  # with other times
    assert FolderSource(photos).identity == FolderSource(moved).identity
    shutil.copy(next(moved.rglob("*.jpg")), moved / "new.jpg")
    assert FolderSource(photos).identity != FolderSource(moved).identity
    rest, held_out = hold_out(FolderSource(photos), 4)
    assert len({FolderSource(photos).identity, rest.identity, held_out.identity}) == 3
    assert SpritesSource(8).identity == SpritesSource(8).identity != SpritesSource(9).identity


def test_identity_of_files_of_a_dataset_is_of_their_names_and_sizes(photos, tmp_path):
    for name, number in (("a", 4), ("b", 4), ("c", 5)):
        write_parquet(tmp_path / name / "train.parquet", range(number))
    first, second, third = (
        DatasetSource("parquet", data_files=str(tmp_path / name / "*.parquet")).identity for name in "abc"
    )
    assert first == second != third
    places = (photos, shutil.copytree(photos, tmp_path / "d"))
    folders = [DatasetSource("imagefolder", data_files={"train": str(place / "**")}) for place in places]
    assert folders[0].identity == folders[1].identity


def test_images_of_a_run_inside_the_folder_are_left_out(photos, tmp_path):
    folder = shutil.copytree(photos, tmp_path / "photos")
    samples = folder / "runs" / "mine" / "samples"
    samples.mkdir(parents=True)
    shutil.copy(next(photos.rglob("*.jpg")), samples / "step-3.jpg")
    assert len(FolderSource(folder)) == 25
    (tmp_path / "link").symlink_to(folder)
    for root in (folder, f"{folder}/**", tmp_path / "link"):
        assert len(FolderSource(root, leave_out=tmp_path / "link" / "runs" / "mine")) == 24
    assert len(FolderSource(samples, leave_out=folder / "runs")) == 1  # all of them: the images that were asked for
    assert len(open_source(train_dir=folder, leave_out=folder / "runs")) == 24


# ----------------------------------------------------------------------------------------- other ways to save a dataset


def labels_of(source):
    return [
        (source.decode_batch([record.payload], 4)[0].canvas[0, 0, 0], record.label)
        for record in source.read_shard(0, 0)
    ]


def test_a_folder_of_save_to_disk_is_read_as_it_is(tmp_path):
    import datasets

    write_parquet(tmp_path / "data.parquet", range(3))
    rows = datasets.Dataset.from_parquet(str(tmp_path / "data.parquet"), cache_dir=str(tmp_path / "cache"))
    rows.select([2, 0, 1]).save_to_disk(tmp_path / "saved", num_shards=1)
    source = open_source(str(tmp_path / "saved"))
    assert labels_of(source) == [(2, 0), (0, 0), (1, 1)] and source.label_names == ["even", "odd"]


@pytest.mark.parametrize("root", ["", "photos/"])
@pytest.mark.parametrize("name", ["imagefolder", None])
def test_a_zip_of_class_folders_is_labeled_by_them(root, name, tmp_path):
    import zipfile

    (tmp_path / "set").mkdir()
    with zipfile.ZipFile(tmp_path / "set" / "train.zip", "w") as archive:
        for value in range(4):
            archive.writestr(f"{root}{('even', 'odd')[value % 2]}/{value}.png", png(value))
    source = (
        open_source(name, data_files=str(tmp_path / "set" / "*.zip")) if name else open_source(str(tmp_path / "set"))
    )
    assert sorted(labels_of(source)) == [(0, 0), (1, 1), (2, 0), (3, 1)] and source.label_names == ["even", "odd"]
