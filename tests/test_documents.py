"""What the documents say is true: their commands have flags that exist, their Python runs, their paths and links lead
somewhere.

Commands are parsed by the scripts' own parsers and not run; Python is run, on a tiny model and a small image in place
of those it names.
"""

import ast
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import load_script
from tests.evaluation.latent_renders import write_3diebench
from transformers import Dinov2Config, Dinov2Model

from eqcohvit import EqCohViTConfig, EqCohViTForPreTraining
from eqcohvit.publish.folder import save_hub_folder
from eqcohvit.training.arguments import parse_arguments

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path
    for pattern in (
        "*.md",
        ".github/**/*.md",
        "model_cards/**/*.md",
        "src/**/*.md",
        "scripts/**/*.md",
        "space_app/*.md",
        "docs/**/*.md",
    )
    for path in ROOT.glob(pattern)
)
INDENTED = re.compile(
    r"^(?:# {3}| {4})((?:accelerate|torchrun|python|bash) (?:.*\\\n)*.*)$", re.MULTILINE
)  # in headers
LOOP = re.compile(r"^for (\w+) in (.+); do\n(.*?)^done$", re.DOTALL | re.MULTILINE)
LAUNCHERS = {"python": 1, "bash": 1, "accelerate": 2, "torchrun": 1}  # words before the launcher's own flags


def blocks(path: Path) -> list[tuple[int, str, str]]:
    """Fenced blocks of a document: line, language, text."""
    text = path.read_text()
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [(text[: match.start()].count("\n") + 1, match[1], match[2]) for match in found]


def unroll(loop: re.Match[str]) -> str:
    """The lines of a shell loop, once for each value."""
    return "".join(re.sub(rf"\$({loop[1]}\b|{{{loop[1]}}})", value, loop[3]) for value in loop[2].split())


def all_commands() -> list:
    """Commands of the documents, in blocks and in the text, and in the headers of scripts and recipes; each without its
    line breaks."""
    found = []
    for path in DOCUMENTS:
        for line, language, text in blocks(path):
            if text.startswith("#!"):  # a batch script: its calls of ours
                found += [
                    (path, line, call) for call in re.findall(r"python scripts/[^'\n]*", re.sub(r"\\\n\s*", " ", text))
                ]
            elif language in ("bash", "sh"):
                lines = re.sub(LOOP, unroll, re.sub(r"\\\n\s*", " ", text)).splitlines()
                found += [(path, line, command.strip()) for command in lines if not command.startswith("#")]
        for match in re.finditer(r"(?<!`)`((?:accelerate launch|python|bash) [^`]+)`(?!`)", path.read_text()):
            found.append((path, path.read_text()[: match.start()].count("\n") + 1, " ".join(match[1].split())))
    headers = [
        (path, ast.get_docstring(ast.parse(path.read_text()), clean=False))
        for path in sorted([*ROOT.glob("scripts/*.py"), *ROOT.glob("src/eqcohvit/commands/*.py")])
    ]
    headers += [(path, path.read_text()) for path in sorted(ROOT.glob("src/eqcohvit/recipes/*.yaml"))]
    for path, text in headers:
        for match in INDENTED.finditer(text):
            found.append((path, text[: match.start(1)].count("\n") + 1, re.sub(r"\\\n[#\s]*", " ", match[1])))
    return [
        pytest.param(command, id=f"{path.relative_to(ROOT)}:{line}") for path, line, command in found if command.strip()
    ]


@pytest.mark.parametrize("command", all_commands())
def test_commands_name_scripts_and_flags_that_exist(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command, comments=True)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # settings of the environment
        words = words[1:]
    program = words[0].removeprefix(".venv/bin/")
    if program == "pip":
        extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"\w+", "".join(re.findall(r"\[(.*?)\]", command)))) <= set(extras)
        return
    if program in ("cd", "git", "hf", "export", "pytest", "source") or words[1:3] == ["-m", "venv"]:
        return
    words = words[LAUNCHERS[program] :]
    if "-m" in words and (module := words[words.index("-m") + 1]).startswith("eqcohvit.commands."):
        words[words.index("-m") : words.index("-m") + 2] = [f"scripts/{module.rsplit('.', 1)[1]}.py"]
    while words[0].startswith("--"):  # the launcher's own
        words = words[1 if "=" in words[0] or words[1].startswith("--") or words[1].endswith(".py") else 2 :]
    if words[:2] == ["-m", "pytest"]:
        return
    if words[0] == "-c":  # its imports are run, the rest is parsed
        imports = [node for node in ast.parse(words[1]).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        exec(compile(ast.Module(imports, type_ignores=[]), "document", "exec"), {})
        return
    script, flags = words[0], words[1:]
    assert Path(script).is_file()
    if script.startswith("scripts/") and script.endswith(".py") and flags != ["--help"]:
        module = load_script(script.removeprefix("scripts/").removesuffix(".py"))
        (module.parse if hasattr(module, "parse") else parse_arguments)(flags)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    """Of the size that the quickstart trains."""
    model = EqCohViTForPreTraining(EqCohViTConfig.from_preset("micro"))
    return save_hub_folder(tmp_path_factory.mktemp("tiny") / "model", model)


PYTHON = [
    pytest.param(path, text, id=f"{path.relative_to(ROOT)}:{line}")
    for path in DOCUMENTS
    for line, language, text in blocks(path)
    if language == "python"
]


@pytest.mark.parametrize(("path", "text"), PYTHON)
def test_python_blocks_run(path, text, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = re.sub(r"{{\s*repo_id\s*}}", "user/model", text)
    for name in set(re.findall(r'"([\w./-]+/model)"', text)):
        shutil.copytree(tiny_folder, name)
    for name in set(re.findall(r'"(model_cards/[\w.-]+)"', text)):
        shutil.copytree(ROOT / name, name)
    if (
        path.parent / "config.json"
    ).is_file():  # the card of a released checkpoint, which it calls by the name of its folder
        shutil.copytree(path.parent, path.parent.name)
    for name in re.findall(r'"(path/to/\w+)"', text):  # the folder of a metric, in its own README
        shutil.copytree(path.parent, name)
    if '"vit-small-focus"' in text:
        sizes = {"hidden_size": 16, "num_hidden_layers": 12, "num_attention_heads": 2, "image_size": 28}
        Dinov2Model(Dinov2Config(**sizes)).save_pretrained("vit-small-focus")
        Path("vit-small-focus/preprocessor_config.json").write_text("{}")
    if "3DIEBench" in text:
        write_3diebench(tmp_path, {"train": 2, "val": 1})
    for name in re.findall(r'"([\w./-]+\.(?:jpg|png))"', text):
        Image.fromarray(np.full((40, 52, 3), 99, dtype=np.uint8)).save(name)
    exec(compile(text, str(path), "exec"), {"__name__": "document"})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(path):
    text = path.read_text()
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)\s]+)\)", text)
    places = re.findall(
        r"^((?:src|scripts|tests|space_app|model_cards)/[\w./]+)", text, flags=re.MULTILINE
    )  # maps of the files
    assert not [
        place for place in [*links, *places] if not (path.parent / place).exists() and not (ROOT / place).exists()
    ]
    assert {language for _, language, _ in blocks(path)} <= {"", "bash", "sh", "python", "bibtex", "yaml", "json"}


@pytest.mark.parametrize("path", ["README.md", "scripts/guides/pretrain.md"])
def test_documents_lead_with_plain_python_for_one_process(path):
    (first, *_) = re.findall(r"^.*scripts/pretrain\.py .*$", (ROOT / path).read_text(), flags=re.MULTILINE)
    assert first.startswith("python scripts/pretrain.py --train_dir ")


def test_loops_are_unrolled():
    text = "for x in a b; do\n  python $x.py --y ${x}\ndone\nls"
    assert re.sub(LOOP, unroll, text) == "  python a.py --y a\n  python b.py --y b\n\nls"


def test_blocks_are_found_with_their_lines(tmp_path):
    (tmp_path / "a.md").write_text("x\n\n```bash\nls\n```\n```\nplain\n```\n")
    assert blocks(tmp_path / "a.md") == [(3, "bash", "ls\n"), (6, "", "plain\n")]
    assert ROOT / "README.md" in DOCUMENTS and ROOT / "src" / "eqcohvit" / "publish" / "TEMPLATE.md" in DOCUMENTS
