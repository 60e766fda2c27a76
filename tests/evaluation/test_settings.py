import dataclasses

import pytest

from eqcohvit.cli import choices_of, registered
from eqcohvit.commands.evaluate import parse
from eqcohvit.downstream import DENSE_TASKS, task_class
from eqcohvit.evaluation.features import POOLINGS
from eqcohvit.evaluation.pairs import PROTOCOLS
from eqcohvit.evaluation.r2_tasks import R2_HEADS
from eqcohvit.evaluation.run import FROZEN_TASKS
from eqcohvit.evaluation.settings import EvaluationSettings
from eqcohvit.evaluation.suite import SUITES
from eqcohvit.evaluation.video_tasks import VIDEO_ROWS
from eqcohvit.transforms import PATHS


@pytest.mark.parametrize(
    ("name", "registry"),
    [
        ("task", [*FROZEN_TASKS, *DENSE_TASKS, *VIDEO_ROWS]),
        ("suite", SUITES),
        ("protocol", PROTOCOLS),
        ("head", R2_HEADS),
        ("pooling", POOLINGS),
    ],
)
def test_choices_are_what_the_registries_have(name, registry):
    (field,) = [field for field in dataclasses.fields(EvaluationSettings) if field.name == name]
    assert list(choices_of(field)) == list(registry)


def test_a_registry_that_is_no_literal_is_an_error(tmp_path):
    (tmp_path / "a.py").write_text("B = {name: 1 for name in 'ab'}\nC = {'x': 1, 'y': 2}\n")
    assert registered(str(tmp_path), "C") == ("x", "y")
    with pytest.raises(LookupError, match="no dict or tuple B"):
        registered(str(tmp_path), "B")


def test_all_transformations_are_the_paths(tmp_path):
    assert parse(["--model", "x", "--transform", "all", "--cache_dir", str(tmp_path)]).transform == list(PATHS)
    assert all(path.name == name for name, path in PATHS.items())


def test_one_value_makes_a_list_and_defaults_are_not_shared():
    one = EvaluationSettings(model="x", task="knn", beside=("a", "b"))
    assert (one.model, one.task, one.beside) == (["x"], ["knn"], ["a", "b"])
    one.transform.append("zoom")
    assert EvaluationSettings().transform == ["rotation"] and EvaluationSettings().protocol is None


def test_every_dense_task_knows_its_class():
    assert [task_class(name).name for name in DENSE_TASKS] == list(DENSE_TASKS)
