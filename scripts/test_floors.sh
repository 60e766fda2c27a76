#!/usr/bin/env bash
# Do the oldest versions that pyproject.toml allows work? They are installed into an environment of their own, and a
# quick set of tests runs with them.
#
#     bash scripts/test_floors.sh /tmp/floors                   # the folder of the environment; made where it is missing
#     bash scripts/test_floors.sh /tmp/floors torch==2.13.0     # with another version where the oldest cannot be had
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -ge 1 ] || { echo "usage: bash scripts/test_floors.sh FOLDER [NAME==VERSION ...]" >&2; exit 2; }
folder=$1
shift
python=${PYTHON:-python3}
mkdir -p "$folder"
"$python" - "$@" > "$folder/floors.txt" <<'PINS'
import re
import sys
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
pins = {}
for requirement in [*project["dependencies"], *project["optional-dependencies"]["train"], *sys.argv[1:]]:
    name, version = re.match(r"([\w.-]+)[>=]=([\d.]+)", requirement).groups()
    pins[name] = version
print(*(f"{name}=={version}" for name, version in pins.items()), sep="\n")
PINS
cat "$folder/floors.txt"
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
install="$folder/bin/python -m pip install --quiet --disable-pip-version-check --constraint $folder/floors.txt"
$install torch
$install --editable ".[train]" pytest hypothesis
"$folder/bin/python" -m pytest tests/test_registration.py tests/hub/test_modeling.py tests/hub/test_weights.py \
  tests/hub/test_pipeline.py tests/hub/test_peft.py tests/hub/test_heads.py tests/data/test_decode.py \
  tests/data/test_sources.py tests/evaluation/metrics tests/training/test_checkpoint.py tests/scripts/test_pretrain.py \
  tests/scripts/test_evaluate.py tests/scripts/test_finetune.py
