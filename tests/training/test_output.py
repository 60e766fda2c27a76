"""What is printed never ends a run."""

import io
import os
import subprocess
import sys

import pytest
from tests.patience import PATIENCE

from eqcohvit.training.output import SafeStream, safe_output

SCRIPT = """
import sys, importlib.util
spec = importlib.util.spec_from_file_location("output", {path!r})
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
with module.safe_output():
    for _ in range(3):
        print("\\u00b1" * 5000, flush=True)
        print("\\u00b1", file=sys.stderr, flush=True)
    open({done!r}, "w").close()
"""


def script(tmp_path):
    from eqcohvit.training import output

    return [sys.executable, "-S", "-c", SCRIPT.format(path=output.__file__, done=str(tmp_path / "done"))]


@pytest.mark.parametrize("place", ["closed pipe", "/dev/full", "closed descriptors"])
def test_a_program_goes_on_where_its_output_cannot_be_written(tmp_path, place):
    if place == "closed pipe":
        read, write = os.pipe()
        os.close(read)
    else:
        write = os.open("/dev/full", os.O_WRONLY)
    command = (
        ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *script(tmp_path)]
        if place == "closed descriptors"
        else script(tmp_path)
    )
    done = subprocess.run(command, stdout=write, stderr=write, env={"PYTHONIOENCODING": "utf-8"}, timeout=PATIENCE)
    os.close(write)
    assert done.returncode == 0 and (tmp_path / "done").exists()


def test_characters_that_the_stream_has_not_are_escaped(tmp_path):
    done = subprocess.run(
        script(tmp_path), capture_output=True, env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}, timeout=PATIENCE
    )
    assert done.returncode == 0 and done.stderr == b"\\xb1\n" * 3


def test_streams_come_back():
    former = sys.stdout
    with safe_output():
        assert sys.stdout is not former and sys.stdout.isatty() == former.isatty()
    assert sys.stdout is former


def test_a_stream_without_a_descriptor_is_safe_too():
    stream = io.StringIO()
    stream.close()
    safe = SafeStream(stream)
    assert safe.write("text") == 4
    safe.flush()
