import os
import re
import subprocess
import sys

import pytest
from tests.conftest import save_tiny_encoder
from tests.patience import PATIENCE

from eqcohvit.publish.upload import push_hub_folder

PUSH = """
import sys
from eqcohvit.publish.upload import push_hub_folder
try:
    push_hub_folder(sys.argv[1], "user/name", token="hf_x", max_attempts=2, wait_seconds=0.01)
except (ConnectionError, ValueError) as error:
    print(f"{type(error).__name__}: {error}")
"""


def push(folder, **environment):
    command = [sys.executable, "-c", PUSH, str(folder)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.parametrize(
    ("folder", "repo_id", "message"),
    [
        ("missing", "user/name", "missing is not a model folder: expected config.json and"),
        ("no-weights", "user/name", "no-weights has no weights: expected"),
        ("model", "user/name/more", "expected a repository name like user/name, got 'user/name/more'"),
        ("model", "user/na me", "expected a repository name like user/name, got 'user/na me'"),
    ],
)
def test_wrong_uploads_are_named_before_anything_is_sent(folder, repo_id, message, tmp_path):
    save_tiny_encoder(tmp_path / "model")
    (tmp_path / "no-weights").mkdir()
    (tmp_path / "no-weights" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=message):
        push_hub_folder(tmp_path / folder, repo_id)


def test_unreachable_hub_is_a_connection_error_after_the_last_attempt(tmp_path):
    folder = save_tiny_encoder(tmp_path / "model")
    done = push(folder, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="0")
    expected = (
        r"ConnectionError: upload to user/name failed 2 times, last: .*refused.*; check the connection to "
        r"http://127.0.0.1:9 and run it again to continue\n"
    )
    assert re.fullmatch(expected, done.stdout), done


def test_offline_is_said_to_be_offline(tmp_path):
    done = push(save_tiny_encoder(tmp_path / "model"), HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="1")
    assert done.stdout == "ValueError: cannot upload to user/name offline: unset HF_HUB_OFFLINE\n", done
