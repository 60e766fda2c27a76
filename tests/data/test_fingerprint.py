import os
import shutil

from datasets import Dataset

from eqcohvit.data import DatasetSource, FolderSource, SpritesSource, describe_data, hold_out
from eqcohvit.data.fingerprint import MARKED_FILES, SAMPLE_BYTES, content_mark, file_mark


def test_fingerprint_of_a_folder_follows_its_files(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "copy")
    first = FolderSource(tmp_path / "copy").fingerprint
    assert (
        first == FolderSource(tmp_path / "copy").fingerprint != FolderSource(tmp_path / "copy", labels=True).fingerprint
    )
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
    sources = [
        SpritesSource(),
        SpritesSource(seed=1),
        SpritesSource(offset=5),
        SpritesSource(num_samples=5),
        rest,
        held_out,
    ]
    assert len({source.fingerprint for source in sources}) == len(sources)


def test_file_mark_of_a_small_file_sees_each_byte_and_no_time(tmp_path):
    path = tmp_path / "x"
    marks = set()
    for place in (None, 0, 1500, 2999):
        content = bytearray(3000)
        if place is not None:
            content[place] = 1
        path.write_bytes(content)
        marks.add(file_mark(str(path)))
        os.utime(path, ns=(1, 1))
        marks.add(file_mark(str(path)))
    assert len(marks) == 4


def test_file_mark_of_a_large_file_sees_samples_and_its_time(tmp_path):
    """10,000 bytes in 64 samples of 10: the first one of bytes 0 to 9, the second one of 158 to 167."""
    path = tmp_path / "x"

    def mark(place=None, time=5):
        content = bytearray(10_000)
        if place is not None:
            content[place] = 1
        path.write_bytes(content)
        os.utime(path, ns=(time, time))
        return file_mark(str(path), whole_bytes=1000, sample_bytes=10)

    before = mark()
    assert mark() == before
    assert before not in {mark(0), mark(160), mark(9999)}
    assert mark(50) == before  # between two samples, and the time restored: what can be missed
    assert mark(50, time=6) != before


def test_content_mark_sees_sizes_beginnings_and_ends_and_no_time(tmp_path):
    path, size = tmp_path / "x", 3 * SAMPLE_BYTES

    def mark(place=None, size=size, time=5):
        content = bytearray(size)
        if place is not None:
            content[place] = 1
        path.write_bytes(content)
        os.utime(path, ns=(time, time))
        return content_mark([str(path)])

    before = mark()
    assert mark(time=6) == before
    assert len({before, mark(0), mark(size - 1), mark(size=size + 1)}) == 4
    assert mark(size // 2) == before  # what can be missed
    missing = [str(tmp_path / "missing"), "hf://datasets/a/b@0/c.parquet", str(tmp_path)]
    assert content_mark([]) == content_mark(missing) != before


def test_content_mark_reads_a_limited_number_of_files(tmp_path, monkeypatch):
    files = [str(tmp_path / str(index)) for index in range(2 * MARKED_FILES + 1)]
    opened = []

    def open_file(path, mode):
        opened.append(files.index(path))
        raise OSError

    monkeypatch.setattr("builtins.open", open_file)
    content_mark(files)
    assert opened == list(range(0, len(files), 3))


def test_data_are_described_by_first_rows_that_are_remote_or_only_named(photos, tmp_path, monkeypatch):
    """A table of paths stays the same while its images change; of remote files nothing else is known."""
    files = [shutil.copy(file, tmp_path) for file in sorted(photos.rglob("*.jpg"))[:3]]
    table = tmp_path / "paths.csv"
    table.write_text("\n".join(["image", *files]))
    source = DatasetSource("csv", data_files=str(table), image_column="image")
    before = describe_data(source)
    assert before == describe_data(DatasetSource("csv", data_files=str(table), image_column="image"))
    shutil.copy(files[0], files[1])
    after = describe_data(source)
    assert after["identity"] == before["identity"] and after["content"] != before["content"]

    contents = []
    for value in (1, 2):
        write(tmp_path / "x.parquet", [0, value])
        source = DatasetSource("parquet", data_files=str(tmp_path / "x.parquet"), image_column="image")
        monkeypatch.setattr(DatasetSource, "content", "")  # as of remote files
        contents.append(describe_data(source)["content"])
    assert contents[0] != contents[1]
