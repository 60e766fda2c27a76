"""The token of the Hub stays where it is: not in what a run prints, writes or uploads."""

import os
import subprocess
import sys

from tests.hub.loopback_hub import TOKEN, LoopbackHub
from tests.patience import PATIENCE
from tests.tiny import SCRIPTS, SIZES

SETTINGS = (
    f"{SIZES} "
    "--num_intermediates 1 "
    "--per_device_train_batch_size 4 --warmup_steps 2 --logging_steps 2 --save_steps 2 --sample_steps 2 --max_steps 4 "
    "--push_to_hub --hub_model_id user/name"
).split()


def test_a_run_that_uploads_prints_writes_and_uploads_no_token(photos, tmp_path):
    """With an upload that fails on the way, whose error could hold the request's headers."""
    with LoopbackHub() as hub:
        hub.break_next("POST /api/models/user/name/commit", times=1)
        places = ["--train_dir", str(photos), "--output_dir", str(tmp_path / "run")]
        command = [sys.executable, str(SCRIPTS / "pretrain.py"), *SETTINGS, *places]
        environment = hub.environment(tmp_path / "home", OMP_NUM_THREADS=1, PYTHONPATH=os.environ.get("PYTHONPATH", ""))
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr[-2000:]
        uploaded = hub.files("user/name")
    assert (
        "pushed to" in done.stdout and "README.md" in uploaded and "config.json" in uploaded
    )  # a wrong token is refused by this Hub
    written = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any(name.endswith("config.yaml") for name in written) and any(
        name.endswith("manifest.json") for name in written
    )
    for name, content in {
        **written,
        **uploaded,
        "stdout": done.stdout.encode(),
        "stderr": done.stderr.encode(),
    }.items():
        assert TOKEN.encode() not in content, name
