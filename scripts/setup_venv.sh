# Sourced by quickstart.sh and test.sh: .venv with the package and the extra "$1", installed once for each state of
# pyproject.toml.
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "error: Python 3.11 or newer is needed, found $("$python" --version)" >&2; exit 2; }
stamp=.venv/.installed-$1
wanted=$(cat pyproject.toml constraints.txt | cksum)
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
  echo "Installing into .venv ..."
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  # torch first and pinned: an open requirement could fetch another build of it
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$1]"
  echo "$wanted" > "$stamp"
fi
