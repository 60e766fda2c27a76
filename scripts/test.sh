#!/usr/bin/env bash
# Make .venv if it is missing, install the package for development, run the linter, the formatter, the type checker, the
# tests, and the set that kills and resumes runs. With arguments: only the tests that pytest selects by them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_venv.sh dev
if ! command -v chromium chromium-browser google-chrome >/dev/null &&
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "Installing chromium for the tests of the demo's page ..."
  { apt-get -qq update && apt-get -qq install --yes --no-install-recommends chromium; } >/dev/null ||
    echo "chromium cannot be installed: these tests will be skipped" >&2
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/pyrefly check
.venv/bin/python -m pytest --numprocesses 2 --dist loadscope "$@"
if [ $# -eq 0 ]; then
  .venv/bin/python -m pytest --numprocesses 2 --dist loadscope -m chaos
fi
