"""Datasets from strangers: the names of their files decide nothing outside the dataset."""

import io
import tarfile
import zipfile
from itertools import islice
from pathlib import Path

import pytest
from tests.data.data_tools import png

from eqcohvit.data import CanvasStream, DatasetSource


def names_that_escape(elsewhere: Path) -> list[str]:
    return [
        "../../escaped.png",
        f"{elsewhere}/absolute.png",
        "a/../../../b.png",
        "good.png",
        "..png",
        "line\nbreak\x1b.png",
    ]


def write_tar(path: Path, names: list[str], elsewhere: Path) -> None:
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(elsewhere / "secret.png")
        archive.addfile(link)
        for value, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = len(png(value))
            archive.addfile(member, io.BytesIO(png(value)))


def write_zip(path: Path, names: list[str], _elsewhere: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for value, name in enumerate(names):
            archive.writestr(name, png(value))


@pytest.mark.parametrize(("builder", "write"), [("webdataset", write_tar), ("imagefolder", write_zip)])
def test_names_in_an_archive_cannot_reach_outside(tmp_path, monkeypatch, builder, write):
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "data" / "in" / "here"
    elsewhere.mkdir()
    run.mkdir(parents=True)
    (elsewhere / "secret.png").write_bytes(png(250))
    archive = run / ("images.tar" if builder == "webdataset" else "images.zip")
    write(archive, names_that_escape(elsewhere), elsewhere)
    monkeypatch.chdir(run)
    source = DatasetSource(builder, data_files=str(archive))
    before = {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")}
    stream = CanvasStream(source, 4, 3, max_bad_fraction=1.0, bad_images_path=run / "bad_images.jsonl")
    values = {int(canvas[0, 0, 0]) for batch in islice(stream, 8) for canvas in batch.canvases}
    assert values and values <= set(range(6))  # its own images, and not the one that a link points to
    (run / "bad_images.jsonl").unlink(missing_ok=True)
    assert {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")} == before
