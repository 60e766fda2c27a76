"""From a dataclass of settings to the flags and recipes of a command.

Nothing here or in a module of settings imports torch, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml

from .files import message_of, write_text_whole

PACKAGE = Path(__file__).parent
RECIPES = PACKAGE / "recipes"


def registered(folder: str, variable: str) -> tuple[str, ...]:
    """The names in a registry of the package, a dict literal or a tuple, read from its source.

    Raises:
        LookupError: there is none in the folder.
    """
    for path in sorted((PACKAGE / folder).glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if variable not in text:
            continue
        for node in ast.parse(text).body:
            if not isinstance(node, (ast.Assign, ast.AnnAssign)):
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if not any(isinstance(target, ast.Name) and target.id == variable for target in targets):
                continue
            items = getattr(node.value, "keys", None) or getattr(node.value, "elts", None)
            if items:
                return tuple(item.value for item in items)
    raise LookupError(f"no dict or tuple {variable} in {folder}")


def setting(default: Any, text: str, choices: Sequence[str] = (), common: bool = False) -> Any:
    """A field of a dataclass of settings: a flag and a key of a recipe with the field's name.

    Args:
        default: `dataclasses.MISSING` if the setting must be given.
        choices: allowed values; none if all are.
        common: whether `--help` shows it first.
    """
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices, "common": common})


def kind_of(field: dataclasses.Field) -> type:
    """The type of a setting, or of each value of a list: bool, int, float or str."""
    return next(kind for kind in (bool, int, float, str) if kind.__name__ in field.type)


def is_list(field: dataclasses.Field) -> bool:
    """Whether a setting takes several values."""
    return str(field.type).startswith("list")


def choices_of(field: dataclasses.Field) -> tuple[str, ...]:
    """The values that a setting allows; empty if it allows any."""
    return tuple(field.metadata.get("choices", ()))


def check_choices(settings: Any, registries: Mapping[str, Iterable[str]] | None = None) -> None:
    """Raise a `ValueError` for the first setting that has a value it does not allow; None is always allowed.

    Args:
        registries: the allowed values of some settings, as they are now instead of as in the source.
    """
    for field in dataclasses.fields(settings):
        known = tuple((registries or {}).get(field.name, choices_of(field)))
        value = getattr(settings, field.name)
        for item in value if isinstance(value, list) else [value]:
            if known and item is not None and item not in known:
                hint = did_you_mean(str(item), known)
                raise ValueError(f"{field.name} must be one of {', '.join(known)}, got {item!r}{hint}")


def check_numbers(settings: Any, positive: Iterable[str] = (), not_negative: Iterable[str] = ()) -> None:
    """Raise a `ValueError` for the first setting of type float that is not finite, or of `positive` that is not above
    0, or of `not_negative` that is below; None is always allowed."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.name} must be a finite number, got {value}")
    for name in positive:
        if (value := getattr(settings, name)) is not None and value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    for name in not_negative:
        if (value := getattr(settings, name)) is not None and value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")


def did_you_mean(text: str, known: Iterable[str]) -> str:
    """A suggestion to append to an error message, or nothing: the nearest name, or all with these initials."""
    names = {name.lstrip("-"): name for name in known}
    wanted = text.lstrip("-")
    near = difflib.get_close_matches(wanted, names, n=1) or [name for name in names if _initials(name) == wanted]
    return f"; did you mean {' or '.join(repr(names[name]) for name in near)}?" if near else ""


def given_settings(values: Mapping[str, Any], settings: type) -> dict[str, Any]:
    """The settings that a Python caller gives, with paths as text; None leaves a default.

    Raises:
        ValueError: one of them does not exist.
    """
    known = [field.name for field in dataclasses.fields(settings) if "help" in field.metadata]
    for name in values:
        if name not in known:
            raise ValueError(f"unknown setting {name!r}{did_you_mean(name, known)}")
    given = {name: value for name, value in values.items() if value is not None}
    return {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in given.items()}


def as_call(function: str, settings: dict[str, Any]) -> str:
    """A call of a function of the package as text."""
    return f"eqcohvit.{function}({', '.join(f'{name}={value!r}' for name, value in settings.items())})"


def _initials(name: str) -> str:
    return "".join(word[0] for word in name.split("_") if word)


class RunSettings:
    """Base of the dataclasses of a run's settings, which the run writes into its folder as a recipe."""

    file_name: ClassVar[str]
    may_change: ClassVar[frozenset[str]]  # when a run is resumed: these change no step that is done
    output_dir: str
    resume_from_checkpoint: str | None

    def to_dict(self) -> dict[str, Any]:
        """All settings by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # pyrefly: ignore

    def save(self, path: Path) -> None:
        """Write all settings as a recipe."""
        write_text_whole(path, yaml.safe_dump(self.to_dict(), sort_keys=False))

    @classmethod
    def saved(cls, path: str | Path) -> dict[str, Any]:
        """All settings that a run has written, also those that are None (`load_recipe`)."""
        return load_recipe(path, cls, keep_null=True)

    @classmethod
    def of_run(cls, output_dir: str | Path) -> dict[str, Any]:
        """The settings of the run in a folder, which `latest` resumes; empty if it has not started."""
        path = Path(output_dir).expanduser() / cls.file_name
        settings = cls.saved(path) if path.is_file() else {}
        return {name: value for name, value in settings.items() if name not in ("output_dir", "resume_from_checkpoint")}

    def check_resumable(self, saved: dict[str, Any]) -> None:
        """Raise a `ValueError` that names each setting in which a resumed run differs from the saved one."""
        given = self.to_dict()
        fixed = given.keys() & saved.keys() - self.may_change
        changed = [name for name in given if name in fixed and saved[name] != given[name]]
        if changed:
            differences = "; ".join(f"{name} was {saved[name]!r}, is {given[name]!r}" for name in changed)
            raise ValueError(f"cannot resume with other settings: {differences}")


class CommandParser(argparse.ArgumentParser):
    """A parser with a short usage line, whose errors are a `ValueError` with a suggestion for misspelled flags."""

    def __init__(self, description: str | None, usage: str):
        super().__init__(
            usage=usage,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise a `ValueError` of one line."""
        hint = ""
        if message.startswith("unrecognized arguments"):
            unknown = re.findall(r"--[\w-]+", message)
            hint = did_you_mean(unknown[0], self._option_string_actions) if unknown else ""
        raise ValueError(f"{message}{hint}")


def add_settings(parser: argparse.ArgumentParser, settings: type, groups: dict[str, str]) -> None:
    """A flag for each field of a dataclass; flags that are not given leave no value.

    Args:
        groups: title of the group that begins with each of these fields, in the order of `--help`; fields marked as
            common come first.
    """
    common = parser.add_argument_group("common settings")
    made = {title: parser.add_argument_group(title) for title in dict.fromkeys(groups.values())}
    group: Any = parser
    for field in dataclasses.fields(settings):
        if field.name in groups:
            group = made[groups[field.name]]
        if "help" in field.metadata:
            add_setting(common if field.metadata["common"] else group, field)


def add_setting(group: Any, field: dataclasses.Field) -> None:
    """The flag of one field; a flag that is not given leaves no value."""
    kind = kind_of(field)
    text = field.metadata["help"].replace("%", "%%")
    choices = choices_of(field)
    if choices:
        text += f" ({', '.join(choices)})"
    if kind is bool:
        text += f" (default: {'on' if field.default else 'off'})"
        action = argparse.BooleanOptionalAction
        group.add_argument(f"--{field.name}", action=action, default=argparse.SUPPRESS, help=text)
        return
    is_required = field.default is dataclasses.MISSING
    if field.default not in (None, "", ()) and not is_required:
        default: Any = field.default
        text += f" (default: {' '.join(default) if is_list(field) else default})"
    group.add_argument(
        f"--{field.name}",
        type=kind,
        nargs="+" if is_list(field) else None,
        default=argparse.SUPPRESS,
        metavar=kind.__name__.upper(),
        required=is_required,
        help=text,
    )


# ------------------------------------------------------------------------------------------------------------ recipes


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def list_recipes() -> str:
    """A line for each recipe: its name, and the beginning of its header in at most 100 columns."""
    width = max(map(len, recipe_names()))
    lines = []
    for name in recipe_names():
        first = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        lines.append(f"{name:<{width}}  {first}"[:100].rstrip())
    return "\n".join(lines)


def load_recipe(name: str | Path, settings: type, keep_null: bool = False) -> dict[str, Any]:
    """The settings of a recipe that is given by its name or its path, a flat YAML mapping.

    Args:
        keep_null: whether null is a value, as in the settings that a run has written; in a recipe it leaves a default.

    Raises:
        ValueError: the file is missing or not a mapping, or has an unknown key or a value of another type.
    """
    ours = RECIPES / f"{name}.yaml"
    path = ours if ours.is_file() else Path(name).expanduser()
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = did_you_mean(str(name), recipe_names())
        raise ValueError(f"cannot read the recipe {name}: {error.strerror}{hint}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"the recipe {name} is not valid YAML: {message_of(error)}") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"the recipe {name} must be a mapping of settings, got {type(recipe).__name__}")
    fields = {field.name: field for field in dataclasses.fields(settings)}
    for key in recipe:
        if key not in fields:
            raise ValueError(f"unknown setting {key!r} in {name}{did_you_mean(str(key), fields)}")
    nulls = {key: None for key, value in recipe.items() if value is None and keep_null}
    return nulls | {key: recipe_value(fields[key], value) for key, value in recipe.items() if value is not None}


def recipe_value(field: dataclasses.Field, value: Any) -> Any:
    """A value as YAML has read it, as the type of a setting.

    Raises:
        ValueError: the setting cannot have this value.
    """
    kind = kind_of(field)
    if value is False and "no" in choices_of(field):  # YAML reads a bare `no` as false
        return "no"
    if isinstance(value, bool) != (kind is bool):
        wanted = "true or false" if kind is bool else "text or a number"
        raise ValueError(f"{field.name} in the recipe must be {wanted}, got {_as_yaml(value)}")
    if isinstance(value, dict) and field.name.endswith("_options"):
        return ",".join(f"{name}={_as_yaml(item) if isinstance(item, bool) else item}" for name, item in value.items())
    if isinstance(value, (list, dict)):
        raise ValueError(f"{field.name} in the recipe must be a single value, got {value!r:.200}")
    if kind is bool:
        return value
    try:
        return kind(str(value))
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise ValueError(f"{field.name} in the recipe must be {wanted}, got {value!r:.200}") from None


def _as_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)[:200]


# ------------------------------------------------------------------------------------------------------- command lines


def settings_of_command(settings: type, parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> dict[str, Any]:
    """The settings that a command line gives: the recipe of `--config`, overridden by flags."""
    flags = vars(parser.parse_args(argv))
    if flags.pop("list_recipes"):
        print(list_recipes())
        raise SystemExit(0)
    recipe = flags.pop("config")
    return (load_recipe(recipe, settings) if recipe else {}) | flags


def typed(module: str, argv: Sequence[str] | None) -> str:
    """The command line of a module of ours as text; `argv` is None for what this process was started with."""
    return shlex.join(["python", "-m", f"eqcohvit.commands.{module}", *(sys.argv[1:] if argv is None else argv)])


def exit_code_of(function: Callable[[], Any], *failures: type[Exception]) -> int:
    """Run a function, print what went wrong in one line, and return the exit code.

    It is 2 for bad input (`ValueError`, or a file that does not exist), and 1 for an error of the network, of the disk,
    or of the kinds `failures`.
    """
    try:
        function()
        return 0
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {message_of(error, 2000)}", file=sys.stderr)
        return 2
    except (OSError, *failures) as error:
        print(f"error: {message_of(error, 2000)}", file=sys.stderr)
        return 1


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """`--config` and `--list_recipes`."""
    text = "a recipe, by name or as a YAML file: values for any of the settings below; flags override it"
    parser.add_argument("--config", metavar="RECIPE", help=text)
    parser.add_argument("--list_recipes", action="store_true", help="list the recipes that come with the package")
