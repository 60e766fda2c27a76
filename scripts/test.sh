#!/usr/bin/env bash
# Make .venv where it is missing, install the package for development, run the linter, the type checker, the tests, and the set that kills
# and resumes runs. With arguments: only what these make pytest do.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_venv.sh dev
.venv/bin/ruff check .
.venv/bin/pyrefly check
.venv/bin/python -m pytest --numprocesses 2 --dist loadscope "$@"
if [ $# -eq 0 ]; then
  .venv/bin/python -m pytest --numprocesses 2 --dist loadscope -m chaos
fi
