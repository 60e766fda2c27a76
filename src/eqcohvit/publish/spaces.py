"""The files of Spaces on the Hub: the demo with a model, and the metrics."""

from __future__ import annotations

from pathlib import Path

from ..files import STATE_FOLDER

PACKAGE = Path(__file__).parents[1]
ROOT = PACKAGE.parents[1]  # of the repository
METRICS = PACKAGE / "evaluation" / "metrics"
_METRIC_PAGE = '''"""The page of the metric."""

from evaluate.utils import launch_gradio_widget

import evaluate

launch_gradio_widget(evaluate.load("{name}.py"))
'''


def demo_files(model_folder: Path) -> dict[str, Path]:
    """The demo, by path in its Space: the page, the package next to it (nothing installs it there), and model/.

    Raises:
        ValueError: the folder is not a model folder, or the demo's page is not there.
    """
    from .folder import check_model_folder, files_of

    page = ROOT / "space_app"
    if not (page / "app.py").is_file():
        raise ValueError(f"the demo needs a clone of the repository: expected {page / 'app.py'}")
    check_model_folder(model_folder)
    files = files_of(page)
    files |= {f"eqcohvit/{name}": path for name, path in files_of(PACKAGE).items()}
    for name, path in files_of(model_folder).items():
        if not name.endswith(".py") and not name.startswith(f"{STATE_FOLDER}/"):
            files[f"model/{name}"] = path
    return files


def metric_names() -> list[str]:
    """The metrics that can be uploaded."""
    return sorted(path.name for path in METRICS.iterdir() if (path / f"{path.name}.py").is_file())


def metric_files(name: str) -> dict[str, Path | bytes]:
    """A metric, by path in its Space: its files, with a page and the page's requirements."""
    from .folder import files_of

    requirements = ["evaluate>=0.4.6", "datasets>=5.0", "numpy"]
    files: dict[str, Path | bytes] = dict(files_of(METRICS / name))
    if any("scipy" in path.read_text(encoding="utf-8") for path in (METRICS / name).glob("*.py")):
        requirements.append("scipy>=1.13")
    files["app.py"] = _METRIC_PAGE.format(name=name).encode()
    files["requirements.txt"] = ("\n".join(requirements) + "\n").encode()
    return files
