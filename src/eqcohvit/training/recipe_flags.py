"""A recipe, as `yaml` reads it, as flags of the command line."""

from __future__ import annotations

import dataclasses
from typing import Any


def as_flags(recipe: dict[str, Any], settings: type) -> list[str]:
    """The settings of a recipe as flags of the command line; `settings` is the dataclass whose fields they are.

    Raises:
        ValueError: a value is none that the setting can have; the message names both.
    """
    flags, fields = [], {f.name: f for f in dataclasses.fields(settings)}
    for key, value in recipe.items():
        is_switch = fields[key].type == "bool"
        if value is False and "no" in (fields[key].metadata["choices"] or ()):  # YAML's word for it
            value = "no"
        if value is not None and isinstance(value, bool) != is_switch:
            raise ValueError(
                f"{key} in the recipe must be {'true or false' if is_switch else 'text or a number'}, got {_as_yaml(value)}"
            )
        if isinstance(value, list) or (isinstance(value, dict) and key != "objective_options"):
            raise ValueError(f"{key} in the recipe must be a single value, got {value!r:.200}")
        if isinstance(value, bool):
            flags.append(f"--{key}" if value else f"--no-{key}")
        elif isinstance(value, dict):  # objective_options, written out
            flags.append(
                f"--{key}="
                + ",".join(f"{name}={str(v).lower() if isinstance(v, bool) else v}" for name, v in value.items())
            )
        elif value is not None:
            flags.append(f"--{key}={value}")
    return flags


def _as_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)[:200]
