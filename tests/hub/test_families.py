"""A backbone family is one entry of `FAMILIES`: a transformers ViT that is not in the table trains once it is added."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
TABLE = "FAMILIES: dict[str, Family] = {\n"
ENTRY = '    "pixio": Family(lambda config: config.n_cls_tokens, has_mask_token=False),\n'
FLAGS = (
    "--backbone pixio --model_preset micro --image_size 16 --patch_size 8 --feature_dim 16 --equivariant_dim 8 "
    "--decoder_dim 16 --projector_dim 16 --max_steps 2 --warmup_steps 1 --per_device_train_batch_size 4 --save_steps 2 "
    "--probe_samples 0"
)


def test_family_that_is_added_to_the_table_trains(tmp_path):
    shutil.copytree(ROOT / "src" / "eqcohvit", tmp_path / "eqcohvit")
    table = tmp_path / "eqcohvit" / "hub" / "configuration_eqcohvit.py"
    text = table.read_text()
    assert text.count(TABLE) == 1
    table.write_text(text.replace(TABLE, TABLE + ENTRY))
    command = [sys.executable, ROOT / "scripts" / "pretrain.py", *FLAGS.split(), "--output_dir", tmp_path / "run"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["backbone_config"]["model_type"] == "pixio" and config["num_prefix_tokens"] == 8
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 2 and last["grad_norm/encoder"] > 0
