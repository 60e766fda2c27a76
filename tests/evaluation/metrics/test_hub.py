import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import SCRIPTS
from tests.hub.loopback_hub import LoopbackHub
from tests.patience import PATIENCE

import eqcohvit.evaluation.metrics as metrics

LOAD = """
import evaluate, json
print(json.dumps(evaluate.load("user/r2").compute(predictions=[[1.0], [2.0], [5.0]], references=[[1.0], [2.0], [3.0]])))
"""


def test_module_is_pushed_as_a_space_and_loaded_from_there(tmp_path):
    folder = Path(metrics.__file__).parent / "r2"
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

        run(sys.executable, str(SCRIPTS / "push_to_hub.py"), "--metric", "r2", "--repo_id", "user/r2")
        files = hub.files("spaces/user/r2")
        added = {"app.py", "requirements.txt"}
        assert set(files) == {path.name for path in folder.iterdir() if path.is_file()} | added
        assert b'evaluate.load("r2.py")' in files["app.py"] and b"scipy" not in files["requirements.txt"]
        values = json.loads(run(sys.executable, "-c", LOAD).splitlines()[-1])
        assert hub.count("GET /spaces/user/r2/resolve/main/coefficients.py") == 1
    assert values == {"r2": 1 - 4 / 2, "r2_per_parameter": [1 - 4 / 2]}
