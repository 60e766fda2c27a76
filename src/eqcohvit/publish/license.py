"""The model that a run continued from, and the license that follows from it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError, HTTPError
from yaml import YAMLError

from ..files import CARD_FILE, MODEL_FOLDER

# The Hub's identifiers, https://huggingface.co/docs/hub/repositories-licenses
LICENSE_PATTERN = r"[a-z0-9][a-z0-9.+-]*"


@dataclass(frozen=True)
class License:
    """The license of a model.

    Args:
        fields: of a card's front-matter: `license`, and for `other` also `license_name` and `license_link`.
        text: what the card says.
    """

    fields: dict[str, str]
    text: str


def hub_id(name: Any) -> str | None:
    """The name if it is one of the Hub; None if it is a place on this machine."""
    is_id = isinstance(name, str) and re.fullmatch(r"(?!\.)[\w.-]+(/[\w.-]+)?", name) and not Path(name).exists()
    return name if is_id else None


def describe_base(settings: dict[str, Any]) -> str | None:
    """The model that the run continued from, as Markdown; None if it began with random weights."""
    if not settings.get("init_from"):
        # Published settings do not name places of the machine.
        return None if settings.get("model_preset") else "another checkpoint"
    name = hub_id(settings["init_from"])
    return f"[{name}](https://huggingface.co/{name})" if name else "another checkpoint"


def license_of(settings: dict[str, Any]) -> License:
    """Apache-2.0 for weights that began at random; for others the license in the card of the base model.

    That card is read from its folder or from the Hub. If it cannot be read, or does not name one of the Hub's
    licenses, the license is `other`, and the text asks the owner to name it.
    """
    base = describe_base(settings)
    source = settings.get("init_from")
    if base is None:
        return License({"license": "apache-2.0"}, "Apache-2.0.")
    fields = _read_license(source) if source else {}
    if fields:
        name = fields.get("license_name", fields["license"])
        return License(fields, f"`{name}`, the license of {base}, whose weights were trained further.")
    name = hub_id(source)
    fields = {"license": "other", "license_name": "license-of-the-base-model"}
    fields |= {"license_link": f"https://huggingface.co/{name}"} if name else {}
    return License(
        fields,
        f"The weights of {base} were trained further, and its license applies. That license could not be read when "
        "this card was written. Name it in the front-matter before you share the model.",
    )


def _read_license(source: str) -> dict[str, str]:
    """The license fields in the card of a model folder, a run's folder or a Hub repository; empty without one."""
    folder = Path(source)
    name = hub_id(source)
    place = next((path for path in (folder / CARD_FILE, folder / MODEL_FOLDER / CARD_FILE) if path.is_file()), name)
    if place is None:
        return {}
    try:
        data = ModelCard.load(place, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, HTTPError, EntryNotFoundError, YAMLError):
        return {}
    if not _matches(LICENSE_PATTERN, data.get("license")):
        return {}
    fields = {"license": data["license"]}
    if data["license"] == "other" and _matches(r"[\w.+-]+", data.get("license_name")):
        fields["license_name"] = data["license_name"]
        link = data.get("license_link")
        if name and _matches(r"[\w.-]+", link):  # a file of that repository
            link = f"https://huggingface.co/{name}/blob/main/{link}"
        fields |= {"license_link": link} if _matches(r"https://\S+", link) else {}
    return fields


def _matches(pattern: str, value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None
