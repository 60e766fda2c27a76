"""The notebooks run from top to bottom, each in its own kernel, and are kept with what they printed and drew."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tests.patience import PATIENCE

NOTEBOOKS = sorted((Path(__file__).parents[1] / "scripts" / "notebooks").glob("*.ipynb"))
QUICK = {  # in place of the cell of parameters
    "features": "NUM_TURNED, NUM_FITTED, NUM_TESTED = 4, 30, 20",
    "pretraining": "STEPS, NUM_PROBED = 3, 96",
    "use": "NUM_PICTURES, NUM_FITTED, NUM_TESTED, NUM_FRAMES, NUM_THINGS, NUM_POSES = 24, 40, 20, 12, 6, 9",
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path):
    notebook = nbformat.read(path, as_version=4)
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    cell.source = QUICK[path.stem]
    place = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=int(PATIENCE), startup_timeout=int(PATIENCE), resources=place).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_with_their_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    kind = "image/jpeg" if path.stem == "use" else "image/png"  # it shows many photograph-like pictures
    assert any(kind in output.get("data", {}) for output in outputs)
    assert path.stat().st_size < 600_000
    links = re.findall(
        r"\]\((?!https?://)([^)\s]+)\)", "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    )
    assert links and all((path.parent / link).exists() for link in links)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_one_title_and_sections_below_it(path):
    notebook = nbformat.read(path, as_version=4)
    levels = [
        len(marks)
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for marks in re.findall(r"^(#*) ", cell.source, re.M)
    ]
    assert levels[0] == 1 and levels.count(1) == 1 and levels.count(2) >= 3 and 0 not in levels
