#!/usr/bin/env bash
# Make .venv where it is missing, install the package for development, run the linter and the tests. More arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_venv.sh dev
.venv/bin/ruff check .
.venv/bin/python -m pytest --numprocesses 2 --dist loadscope "$@"
