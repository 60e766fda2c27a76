import shutil

import pytest
from datasets import Dataset

from eqcohvit.data import DatasetSource, FolderSource, SpritesSource, hold_out
from eqcohvit.data.fingerprint import digest, file_mark


def test_fingerprint_of_a_folder_follows_its_files(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "copy")
    first = FolderSource(tmp_path / "copy").fingerprint
    assert first == FolderSource(tmp_path / "copy").fingerprint != FolderSource(tmp_path / "copy", labels=True).fingerprint
    (tmp_path / "copy" / "a" / "1.jpg").write_bytes(b"other")
    second = FolderSource(tmp_path / "copy").fingerprint
    (tmp_path / "copy" / "a" / "1.jpg").unlink()
    assert len({first, second, FolderSource(tmp_path / "copy").fingerprint}) == 3


def write(path, values):
    Dataset.from_dict({"image": [bytes([value]) for value in values], "label": values}).to_parquet(path)
    return DatasetSource("parquet", data_files=str(path), image_column="image").fingerprint


def test_fingerprint_of_a_dataset_follows_the_content_and_not_the_place(tmp_path):
    (tmp_path / "b").mkdir()
    first = write(tmp_path / "x.parquet", [1, 2, 3])
    assert write(tmp_path / "b" / "x.parquet", [1, 2, 3]) == first
    assert write(tmp_path / "b" / "x.parquet", [1, 2, 4]) != first


def test_fingerprints_of_sprites_and_parts_differ():
    rest, held_out = hold_out(SpritesSource(), 100)
    sources = [SpritesSource(), SpritesSource(seed=1), SpritesSource(offset=5), SpritesSource(num_samples=5), rest, held_out]
    assert len({source.fingerprint for source in sources}) == len(sources)


@pytest.mark.parametrize("size", [10, 3000])
def test_file_mark_sees_beginning_and_end(tmp_path, size):
    path, content = tmp_path / "x", bytearray(size)
    marks = set()
    for place in (None, 0, size - 1):
        changed = bytearray(content)
        if place is not None:
            changed[place] = 1
        path.write_bytes(changed)
        marks.add(digest([file_mark(str(path), num_bytes=1000)]))
    assert len(marks) == 3
