import os
import stat

import pytest

from eqcohvit.files import first_line, path_beside, write_folder_whole, write_text_whole


def test_first_line_of_an_error():
    assert first_line(ValueError("\n no model \nmore")) == "no model "
    assert first_line(EOFError()) == "EOFError"


def test_text_replaces_the_old_content_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "config.yaml"
    path_beside(path).write_text("half, from a killed process")
    write_text_whole(path, "old")
    write_text_whole(path, "newé")
    assert path.read_text(encoding="utf-8") == "newé" and os.listdir(tmp_path) == ["config.yaml"]


def test_folder_replaces_the_old_one_whole(tmp_path):
    for content in ("old", "new"):
        with write_folder_whole(tmp_path / "model") as new:
            (new / content).mkdir()
            (new / content / "weights").write_text(content)
            assert not (tmp_path / "model" / "new").exists()
    assert os.listdir(tmp_path) == ["model"] and os.listdir(tmp_path / "model") == ["new"]
    assert (tmp_path / "model" / "new" / "weights").read_text() == "new"


def test_folder_stays_as_it_was_when_writing_fails(tmp_path):
    with write_folder_whole(tmp_path / "model") as new:
        (new / "weights").write_text("old")
    with pytest.raises(RuntimeError, match="disk"), write_folder_whole(tmp_path / "model") as new:
        (new / "weights").write_text("half")
        raise RuntimeError("disk")
    assert os.listdir(tmp_path) == ["model"] and (tmp_path / "model" / "weights").read_text() == "old"


def test_whoever_may_read_the_folder_may_read_its_files(tmp_path):
    umask = os.umask(0o027)
    try:
        with write_folder_whole(tmp_path / "model") as new:
            (new / "part").mkdir()
            (new / "part" / "weights").touch(mode=0o600)
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "model" / "part" / "weights").stat().st_mode) == 0o640
