"""Data as people have them: odd columns, empty shards, broken files, dead links; each works or is named in one line."""

import base64
import http.server
import io
import json
import tarfile
import threading
from itertools import islice

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.data_tools import Numbers, png

from eqcohvit.data import (
    BadImage,
    CanvasStream,
    DatasetSource,
    FolderSource,
    ReadError,
    check_first_rows,
    open_source,
    retry,
)
from eqcohvit.evaluation.images import shuffle_window

GRAYS = range(0, 120, 10)


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The pauses that were made, without their waiting."""
    made: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", made.append)
    return made


def read(source, canvas_size=8):
    payloads = [record.payload for shard in range(source.num_shards) for record in source.read_shard(shard, 0)]
    return source.decode_batch(payloads, canvas_size)


def grays(decoded):
    return [int(item.canvas[0, 0, 0]) for item in decoded]


def write_table(path, **columns):
    pq.write_table(pa.table(columns), path)
    return str(path)


def write_images(path, values, column="image"):
    features = datasets.Features({column: datasets.Image()})
    datasets.Dataset.from_dict(
        {column: [{"bytes": png(v), "path": None} for v in values]}, features=features
    ).to_parquet(path)
    return str(path)


# ----------------------------------------------------------------------------------------------------- what is left out


def test_a_folder_says_how_many_images_it_has_and_what_is_left_out(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(png(i))
    for name in [f"{i}.HEIC" for i in range(40)] + ["one", "two", "three", "notes.txt", ".hidden"]:
        (tmp_path / name).touch()
    expected = (
        f"4 images in {tmp_path}; left out: 40 .heic, 3 without an ending, 1 .txt (no ending of a format that is read)"
    )
    assert FolderSource(tmp_path).summary == expected
    assert FolderSource(f"{tmp_path}/*.jpg").summary == f"4 images in {tmp_path}/*.jpg"
    for i in range(4):
        (tmp_path / f"{i}.jpg").unlink()
    with pytest.raises(ValueError, match=r"no images found in .*; left out: 40 .heic"):
        FolderSource(tmp_path)


# -------------------------------------------------------------------------------------------------------------- columns


def test_base64_text_is_decoded_and_is_not_printed_whole(tmp_path):
    texts = [base64.b64encode(png(value)).decode() for value in GRAYS] + [
        f"data:image/png;base64,{base64.b64encode(png(200)).decode()}"
    ]
    source = open_source(data_files=write_table(tmp_path / "b.parquet", text=texts), image_column="text")
    assert grays(read(source)) == [*GRAYS, 200]
    long = "captions are no images " * 10_000
    source = open_source(data_files=write_table(tmp_path / "c.parquet", text=[long] * 3), image_column="text")
    message = r"none of the first 3 images of .*row 0 \(captions are no images .*neither a file nor base64"
    with pytest.raises(ValueError, match=message) as caught:
        check_first_rows(source, 8)
    assert len(str(caught.value)) < 400
    with pytest.raises(Exception, match="could not be decoded"):
        list(islice(CanvasStream(source, 8, 2, bad_images_path=tmp_path / "bad.jsonl"), 3))
    assert all(len(line) < 500 for line in (tmp_path / "bad.jsonl").read_text().splitlines())


def test_long_texts_are_weighed_where_images_are_shuffled(tmp_path):
    source = open_source(data_files=write_table(tmp_path / "b.parquet", text=["A" * 100_000] * 3), image_column="text")
    assert shuffle_window(source) == (1 << 28) // 100_000


@pytest.mark.parametrize("kind", ["list of images", "labels"])
def test_columns_without_one_image_a_row_are_refused_at_once(tmp_path, kind, pauses):
    if kind == "labels":
        column, file, held = "label", write_table(tmp_path / "l.parquet", label=[1, 2]), "Value"
    else:
        column, held, file = "images", "List", str(tmp_path / "i.parquet")
        features = datasets.Features({"images": datasets.List(datasets.Image())})
        datasets.Dataset.from_dict({"images": [[{"bytes": png(1), "path": None}]]}, features=features).to_parquet(file)
    with pytest.raises(
        ValueError, match=rf"image_column={column} of parquet train holds {held}.*; expected one image a row: images,"
    ):
        open_source(data_files=file, image_column=column)
    assert pauses == []


def test_rows_of_pixels_are_images_by_the_rule_of_arrays(tmp_path):
    pixels = (np.arange(64).reshape(8, 8) / 63).tolist()
    source = open_source(data_files=write_table(tmp_path / "f.parquet", pixels=[pixels]), image_column="pixels")
    assert np.abs(read(source)[0].canvas[0] - np.arange(64).reshape(8, 8) / 63 * 255).max() <= 1


def test_a_csv_names_files_and_one_without_files_is_refused(tmp_path):
    for value in GRAYS:
        (tmp_path / f"{value}.png").write_bytes(png(value))
    (tmp_path / "list.csv").write_text("file,label\n" + "".join(f"{tmp_path}/{value}.png,1\n" for value in GRAYS))
    source = DatasetSource("csv", data_files=str(tmp_path / "list.csv"), image_column="file", label_column="label")
    assert grays(read(source)) == list(GRAYS)
    with pytest.raises(ValueError, match="dataset_name=csv reads files: say which with data_files"):
        DatasetSource("csv")


# ----------------------------------------------------------------------------------------------------- empty and broken


@pytest.mark.parametrize("empty", ["a", "z"])
def test_an_empty_shard_is_passed_over(tmp_path, empty, pauses):
    write_images(tmp_path / "m.parquet", GRAYS)
    table = pq.read_table(tmp_path / "m.parquet")
    with pq.ParquetWriter(tmp_path / f"{empty}.parquet", table.schema) as writer:
        writer.write_table(table.slice(0, 0))
    source = open_source(data_files=str(tmp_path / "*.parquet"))
    assert grays(read(source)) == list(GRAYS) and pauses == []
    assert grays(read(DatasetSource("parquet", data_files={"train": str(tmp_path / "*.parquet")}))) == list(GRAYS)
    check_first_rows(source, 8)
    assert shuffle_window(source) > 2048
    assert len(source.read_columns(["image"])[0]) == len(GRAYS)


def test_a_later_shard_without_the_column_is_named_before_anything_is_read(tmp_path):
    write_images(tmp_path / "a.parquet", GRAYS)
    write_images(tmp_path / "b.parquet", GRAYS, column="picture")
    with pytest.raises(ValueError, match=r"b\.parquet has no column image; its columns: picture"):
        open_source(data_files=str(tmp_path / "*.parquet"))


def write_tar(path, values):
    with tarfile.open(path, "w") as archive:
        for value in values:
            member = tarfile.TarInfo(f"{value:03}.png")
            member.size = len(png(value))
            archive.addfile(member, io.BytesIO(png(value)))
    return path.read_bytes()


def test_a_cut_archive_is_named_without_a_pause(tmp_path, pauses):
    write_tar(tmp_path / "a.tar", GRAYS)
    (tmp_path / "b.tar").write_bytes(write_tar(tmp_path / "b.tar", GRAYS)[:6000])
    source = open_source(data_files=f"{tmp_path}/*.tar")
    with pytest.raises(
        ReadError,
        match=r"cannot read webdataset train, shard 1 of 2, file .*/b\.tar: ReadError: unexpected end of data",
    ):
        read(source)
    with pytest.raises(ReadError, match=r"/b\.tar") as caught:
        list(islice(CanvasStream(source, 8, 5, num_workers=1), 20))
    assert pauses == [] and "\n" not in str(caught.value)
    del caught  # which holds the workers


@pytest.mark.parametrize("broken", ["a", "z"])
def test_a_cut_parquet_file_is_named(tmp_path, broken):
    write_images(tmp_path / "m.parquet", GRAYS)
    (tmp_path / f"{broken}.parquet").write_bytes((tmp_path / "m.parquet").read_bytes()[:-30])
    with pytest.raises(ValueError, match=rf"/{broken}\.parquet") as caught:
        open_source(data_files=f"{tmp_path}/*.parquet")
    assert "\n" not in str(caught.value)


class Mistaken(Numbers):
    """A source with a mistake that no waiting mends."""

    def read_shard(self, shard, epoch):
        yield from islice(super().read_shard(shard, epoch), 3)
        raise TypeError("not a number")


def test_what_waiting_cannot_mend_is_not_tried_again(pauses):
    with pytest.raises(
        ReadError, match="reading shard 0 of 1 of numbers from row 3 on failed: TypeError: not a number"
    ):
        list(islice(CanvasStream(Mistaken([9]), 2, 2), 9))
    with pytest.raises(ValueError, match="TypeError: not a number"):
        check_first_rows(Mistaken([9]), 2)
    assert pauses == []


def test_first_rows_are_read_and_decoded():
    check_first_rows(Numbers([0, 9], bad=range(7)), 2)  # one is good
    with pytest.raises(ValueError, match="none of the first 8 images of numbers can be read; first: number 0: spoiled"):
        check_first_rows(Numbers([0, 9], bad=range(8)), 2)
    check_first_rows(Numbers([9], bad=range(9)), 2, max_bad_fraction=1.0)
    with pytest.raises(ValueError, match="numbers has no rows"):
        check_first_rows(Numbers([0, 0]), 2)


# ----------------------------------------------------------------------------------------------------------------- URLs


@pytest.fixture
def web():
    """(address of a server on the loopback, how often each path was asked for): /GRAY is an image, /STATUS-TIMES/GRAY
    one after so many answers of that status."""
    asked: dict[str, int] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked[self.path] = asked.get(self.path, 0) + 1
            status, _, times = self.path.split("/")[1].partition("-")
            if times and asked[self.path] <= int(times):
                self.send_error(int(status))
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(png(int(self.path.split("/")[-1])))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}", asked
        running.shutdown()


def source_of_urls(tmp_path, urls):
    return open_source(data_files=write_table(tmp_path / "urls.parquet", url=urls), image_column="url")


@pytest.mark.parametrize("status", [401, 403, 408, 429, 500, 503])
def test_a_server_that_refuses_for_a_while_is_asked_again(tmp_path, web, status, pauses):
    address, asked = web
    assert grays(read(source_of_urls(tmp_path, [f"{address}/{status}-2/70"]))) == [70]
    assert pauses == [1.0, 4.0] and list(asked.values()) == [3]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_lasting_outage_is_named_and_no_image_is_called_bad(tmp_path, web, workers, monkeypatch):
    monkeypatch.setattr(retry, "RETRY_SECONDS", (0.0,))
    source = source_of_urls(tmp_path, [f"{web[0]}/503-99/70"] * 4)
    with pytest.raises(
        ReadError, match=r"reading http://127.*/503-99/70 failed 2 times in a row, .*answers 503"
    ) as caught:
        list(islice(CanvasStream(source, 8, 2, num_workers=workers, bad_images_path=tmp_path / "bad.jsonl"), 3))
    assert "\n" not in str(caught.value) and not (tmp_path / "bad.jsonl").exists()
    del caught  # which holds the workers


def test_an_unknown_host_and_a_closed_port_are_outages(tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "RETRY_SECONDS", (0.0,))
    for url in ("http://nowhere.invalid/1.png", "http://127.0.0.1:9/1.png"):
        with pytest.raises(ReadError, match="failed 2 times in a row, at last with ConnectionError: no answer"):
            read(source_of_urls(tmp_path, [url]))


@pytest.mark.parametrize("status", [404, 410])
def test_an_image_that_is_not_there_is_a_bad_image(tmp_path, web, status, pauses):
    missing, good = read(source_of_urls(tmp_path, [f"{web[0]}/{status}-99/70", f"{web[0]}/80"]))
    assert isinstance(missing, BadImage) and f"the server answers {status}" in str(missing) and grays([good]) == [80]
    assert pauses == []


def test_a_bad_image_is_listed_by_its_address(tmp_path, web):
    urls = [f"{web[0]}/404-99/1"] + [f"{web[0]}/{value}" for value in GRAYS]
    stream = CanvasStream(
        source_of_urls(tmp_path, urls), 8, 4, max_bad_fraction=0.5, bad_images_path=tmp_path / "bad.jsonl"
    )
    list(islice(stream, 3))
    (entry,) = map(json.loads, (tmp_path / "bad.jsonl").read_text().splitlines())
    assert entry["path"] == urls[0] and "404" in entry["reason"]
