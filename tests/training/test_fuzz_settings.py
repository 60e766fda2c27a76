"""Recipes, settings, model configurations and manifests of any content are taken, or refused in one clear line."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import yaml
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from eqcohvit import EqCohViTConfig
from eqcohvit.cli import choices_of
from eqcohvit.objectives import OBJECTIVES
from eqcohvit.training.arguments import PretrainArguments, parse_arguments
from eqcohvit.training.checkpoint import verify_checkpoint

repeatable = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
FIELDS = {f.name: f for f in dataclasses.fields(PretrainArguments)}

words = st.sampled_from(
    ["", "none", "rotation", "rotation+zoom", "+", "user/name", "latest", "ibot", "vit", "a=1", "=", "-1", "\x1b[2J"]
)
numbers = st.integers(-3, 2**40) | st.floats() | st.sampled_from([0, 1, 2, 8, 16, 32, 64, 0.5, 1e-9, 1e300, 10**400])
anything = st.recursive(
    st.none() | st.booleans() | numbers | words | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
likely = {name: st.sampled_from(choices_of(field) or (field.default,)) | anything for name, field in FIELDS.items()}
recipes = st.lists(st.sampled_from(list(FIELDS)), max_size=5, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: likely[name] for name in names})
)


def parse(argv: list[str]) -> PretrainArguments | None:
    """The settings, or None where they are refused in the way that the command line promises."""
    try:
        return parse_arguments(argv)
    except ValueError as error:
        message = str(error)
    assert message and "\n" not in message and len(message) < 1000, message
    return None


@repeatable
@given(recipe=recipes)
def test_any_recipe_is_taken_or_refused_in_one_line(tmp_path, recipe):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    args = parse(["--config", str(path)])
    event("refused" if args is None else "taken")
    if args is None:
        return
    args.model_config()
    args.save(tmp_path / "saved.yaml")
    again = parse(["--config", str(tmp_path / "saved.yaml")])
    assert again == args


@repeatable
@given(
    content=st.binary(max_size=60)
    | st.text(max_size=60).map(str.encode)
    | anything.map(lambda value: yaml.safe_dump(value).encode())
)
def test_any_file_is_a_recipe_or_refused_in_one_line(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    try:
        assert set(PretrainArguments.saved(path)) <= FIELDS.keys()
    except ValueError as error:
        assert "\n" not in str(error)


def test_a_recipe_cannot_run_code(tmp_path):
    path, ran = tmp_path / "recipe.yaml", tmp_path / "ran"
    path.write_text(f"seed: !!python/object/apply:os.mkdir [{ran}]\n")
    with pytest.raises(ValueError, match="is not valid YAML"):
        PretrainArguments.saved(path)
    assert not ran.exists()
    yaml.load(path.read_text(), Loader=yaml.UnsafeLoader)  # it does work where it is let
    assert ran.exists()


@repeatable
@given(
    objective=st.sampled_from(list(OBJECTIVES)),
    options=st.dictionaries(
        st.sampled_from(
            [f.name for objective in OBJECTIVES.values() for f in dataclasses.fields(objective.Options)] + ["nope"]
        ),
        anything,
        max_size=3,
    )
    | anything,
)
def test_any_options_of_an_objective_are_taken_or_refused_in_one_line(tmp_path, objective, options):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump({"objective": objective, "objective_options": options}, allow_unicode=True), encoding="utf-8"
    )
    parse(["--config", str(path)])


model_fields = dict.fromkeys(
    "feature_dim equivariant_dim num_intermediates decoder_dim decoder_context decoder_patch_dropout "
    "num_prefix_tokens path border "
    "classifier_part classifier_hidden_dim out_indices scale_factors backbone_config".split(),
    anything,
)


@repeatable
@given(
    st.lists(st.sampled_from(list(model_fields)), max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: model_fields[name] for name in names})
    )
)
def test_any_model_configuration_is_taken_and_saved_alike_or_refused(fields):
    try:
        config = EqCohViTConfig(**fields)
    except (ValueError, TypeError, StrictDataclassError) as error:
        assert str(error)
        event("refused")
        return
    event("taken")
    if all(not isinstance(value, float) or math.isfinite(value) for value in fields.values()):
        assert (
            EqCohViTConfig.from_dict(json.loads(config.to_json_string(use_diff=False))).to_json_string()
            == config.to_json_string()
        )


@repeatable
@given(
    content=anything
    | st.fixed_dictionaries({"files": anything | st.dictionaries(st.text(max_size=5), anything, max_size=2)})
)
def test_any_manifest_is_refused_in_one_line(tmp_path, content):
    folder = Path(tmp_path)
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ValueError) as caught:
        verify_checkpoint(folder)
    assert "\n" not in str(caught.value)
