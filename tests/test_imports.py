"""The direction of imports between the rooms, read from the source."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "eqcohvit"
# Rooms and root modules of ours that each may import, in addition to itself.
ALLOWED = {
    "files": set(),
    "hub": set(),
    "registration": {"hub"},
    "loading": {"files", "hub"},
    "preprocessing": {"files", "hub", "loading"},
    "transforms": set(),
    "objectives": {"cli"},  # suggestions for misspelled options
    "data": {"hub"},  # the one reader of images travels with the checkpoints
    "html_page": set(),
    "cli": {"files"},
    "evaluation": {"hub", "transforms", "data", "loading", "files", "preprocessing", "html_page", "cli"},
    "publish": {"hub", "evaluation", "loading", "files", "preprocessing"},
    "training": {
        *("files", "cli", "html_page", "hub", "loading", "preprocessing", "objectives", "transforms", "data"),
        *("evaluation", "publish"),
    },
    "downstream": {"cli", "hub", "data", "training", "evaluation", "loading", "files", "preprocessing"},
    "commands": {path.stem for path in ROOT.iterdir()} - {"__init__"},
    "__init__": {"hub", "registration", "commands", "evaluation"},
}
# Libraries that a room may import, apart from the standard library.
LIBRARIES = {
    "hub": {"torch", "transformers", "huggingface_hub", "numpy", "PIL"},
    "transforms": {"torch"},
    "objectives": {"torch"},
    "data": {"torch", "numpy", "PIL", "datasets", "pyarrow", "psutil"},  # and simplejpeg, by its name
}


def imports(path: Path) -> set[str]:
    """Absolute names of all imported modules; relative ones as eqcohvit...."""
    package = ("eqcohvit", *path.relative_to(ROOT).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            found |= {module} if node.module else {f"{module}.{alias.name}" for alias in node.names}
    return found


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_plan(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    names = imports(path)
    assert not any(name == "torchvision" or name.startswith("torchvision.") for name in names)
    ours = {name.split(".")[1] for name in names if name.startswith("eqcohvit.")}
    assert room in ALLOWED, f"{room} is not in the plan; add it to ALLOWED"
    assert ours <= ALLOWED[room] | {room}, f"{room} imports {sorted(ours - ALLOWED[room] - {room})}"
    if room in LIBRARIES:
        others = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"eqcohvit"}
        assert others <= LIBRARIES[room], f"{room} imports {sorted(others - LIBRARIES[room])}"
