"""The wheel and the source archive: what is in them, and that the wheel with its few dependencies does inference."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from tests.hub.hub_tools import link_distributions, run_python
from tests.patience import PATIENCE

import eqcohvit

ROOT = Path(__file__).parents[1]
INFERENCE = """
import eqcohvit
from PIL import Image
from transformers import AutoModel, pipeline
eqcohvit.EqCohViTModel(eqcohvit.EqCohViTConfig.from_preset("micro")).save_pretrained("model")
eqcohvit.EqCohViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained("model")
extract = pipeline("equivariant-feature-extraction", model="model")
features = extract(Image.new("RGB", (40, 30)), tokens="patches", return_tensors=True)
print(eqcohvit.__version__, tuple(features["invariant"].shape), tuple(features["equivariant"].shape))
"""


def build(source, target):
    """Wheel and source archive of the project at `source`."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(target)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    (wheel,), (archive,) = target.glob("*.whl"), target.glob("*.tar.gz")
    return wheel, archive


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(ROOT, tmp_path_factory.mktemp("dist"))


def names(wheel):
    with zipfile.ZipFile(wheel) as content:
        return {name for name in content.namelist() if ".dist-info/" not in name}


def test_wheel_holds_the_package_and_nothing_else(built):
    package = ROOT / "src" / "eqcohvit"
    tracked = {
        path.relative_to(package.parent).as_posix()
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert names(built[0]) == tracked
    with zipfile.ZipFile(built[0]) as content:
        assert any(name.endswith("licenses/LICENSE") for name in content.namelist())


def test_source_archive_builds_the_same_wheel(built, tmp_path):
    with tarfile.open(built[1]) as content:
        content.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (tmp_path / "dist").mkdir()
    wheel, _ = build(source, tmp_path / "dist")
    assert wheel.name == built[0].name and names(wheel) == names(built[0])


def test_wheel_with_its_dependencies_alone_extracts_features(built, tmp_path):
    """In an environment of the wheel and of what its metadata asks for without an extra, which is no training
    library."""
    site = tmp_path / "site"
    with zipfile.ZipFile(built[0]) as content:
        content.extractall(site)
    (info,) = site.glob("*.dist-info")
    link_distributions(site, *metadata.Distribution.at(info).requires)
    assert not any(
        (site / name).exists() for name in ("accelerate", "datasets", "peft", "scipy", "gradio", "matplotlib")
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    last = run_python(INFERENCE, tmp_path, site, environment).splitlines()[-1]
    assert last == f"{eqcohvit.__version__} (8, 8, 256) (8, 8, 256)"


def test_version_is_the_same_in_the_citation_file():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == eqcohvit.__version__
    assert citation["preferred-citation"]["doi"] in (ROOT / "README.md").read_text()


def floors(requirements):
    """name -> the oldest version allowed, of those with one."""
    found = {}
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            for specifier in requirement.specifier:
                if specifier.operator == ">=":
                    found[requirement.name.replace("_", "-")] = Version(specifier.version)
    return found


def floors_to_train():
    """The floors of the project with its extra [train]."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return floors(project["dependencies"] + project["optional-dependencies"]["train"])


def test_floors_are_high_enough_for_one_another():
    """Of the libraries that are installed as old as allowed; scripts/test_floors.sh installs them all."""
    ours = floors_to_train()
    checked = 0
    for name, oldest in ours.items():
        if Version(metadata.version(name)).release[: len(oldest.release)] == oldest.release:
            for needed, version in floors(metadata.requires(name) or []).items():
                checked += needed in ours
                assert needed not in ours or ours[needed] >= version, f"{name} {oldest} needs {needed} {version}"
    if not checked:
        pytest.skip("every library is newer than its floor")


@pytest.mark.parametrize("library", ["pyarrow", "pycocotools"])
def test_numpy_s_floor_is_what_compiled_libraries_of_training_are_built_for(library):
    """Their metadata name no version of numpy, so that pip installs them beside any. The version is in the text of the
    error that they raise at import beside an older one."""
    assert "numpy" not in floors(metadata.requires(library) or [])
    modules = [Path(file.locate()) for file in metadata.files(library) or [] if ".so" in file.suffixes]
    texts = [re.findall(rb"C-API version 0x%x \(NumPy ([\d.]+)\)", module.read_bytes()) for module in modules]
    needed = max(Version(text.decode()) for found in texts for text in found)
    oldest = floors_to_train()["numpy"]
    assert oldest >= needed, f"{library} needs numpy {needed}, [train] allows {oldest}"
