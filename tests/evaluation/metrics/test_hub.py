import json
import subprocess
import sys
from pathlib import Path

from tests.hub.loopback_hub import LoopbackHub
from tests.patience import PATIENCE

import eqcohvit.evaluation.metrics as metrics

LOAD = """
import evaluate, json
print(json.dumps(evaluate.load("user/r2").compute(predictions=[[1.0], [2.0], [5.0]], references=[[1.0], [2.0], [3.0]])))
"""


def test_module_is_pushed_as_a_space_and_loaded_from_there(tmp_path):
    folder = Path(metrics.__file__).parent / "r2"
    hf = str(Path(sys.executable).with_name("hf"))
    with LoopbackHub() as hub:
        environment = hub.environment(
            tmp_path / "hf", HF_EVALUATE_CACHE=tmp_path / "evaluate", HF_MODULES_CACHE=tmp_path / "modules"
        )

        def run(*command):
            done = subprocess.run(
                command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        run(hf, "repos", "create", "user/r2", "--repo-type", "space", "--space-sdk", "gradio")
        run(hf, "upload", "user/r2", str(folder), "--repo-type", "space", "--exclude", "__pycache__/*")
        assert set(hub.files("spaces/user/r2")) == {path.name for path in folder.iterdir() if path.is_file()}
        values = json.loads(run(sys.executable, "-c", LOAD).splitlines()[-1])
        assert hub.count("GET /spaces/user/r2/resolve/main/coefficients.py") == 1
    assert values == {"r2": 1 - 4 / 2, "r2_per_parameter": [1 - 4 / 2]}
