"""The page's functions: values of its components in, values of its components out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import gradio as gr
import pandas as pd
from gradio.data_classes import FileData
from PIL import Image

import pages
from controls import ALL_CONTROLS, Choice, Control, list_choices
from eqcohvit import EqCohViTFeatureExtractionPipeline
from probe import Probe, Reading, readings
from snippet import snippet
from walk import PARTS, SplitModel, Walk, patch_similarity, principal_colours, read_picture, similarity_to_start

FRACTION, SIMILARITY, READ, PART = "share of the way", "similarity to the start", "reading", "part"


class Demo:
    """One model, its read-outs, example pictures by name, and what the page and the API ask of them."""

    def __init__(self, model: SplitModel, probe: Probe, examples: dict[str, Path]):
        self.model, self.probe, self.examples = model, probe, examples
        self.choices = list_choices(model.config.path)
        self.extract = EqCohViTFeatureExtractionPipeline(model=model.model.eqcohvit, image_processor=model.processor)

    # ------------------------------------------------------------------------------------------------------ the page
    def show(self, picture: dict | None, key: str, row: float | None, column: float | None, *values: float) -> tuple:
        """Everything that depends on the picture and the transformation, in the order of the page's outputs."""
        choice, settings = self._choice(key), self._settings(values)
        walk = _checked(self.model.walk, _open(picture), choice, settings)
        rows = readings(choice, walk, self.probe) if choice.trained else []
        return (
            pages.film(walk),
            pages.player(walk),
            pages.readings_table(rows, self.probe.num_fitted),
            self._similarity(walk),
            self._read_along(walk, rows),
            snippet(self.model.name, choice, settings),
            pages.to_pil(walk.images[0]).resize((self.click_side,) * 2, Image.Resampling.BICUBIC),
            pages.colour_maps({part: principal_colours(values) for part, values in walk.patches.items()}),
            self._patch_maps(walk.patches, row, column),
        )

    def show_patch(
        self, picture: dict | None, key: str, row: float | None, column: float | None, *values: float
    ) -> str:
        """The similarity maps of another patch."""
        patches = _checked(self.model.patches, _open(picture), self._choice(key), self._settings(values))
        return self._patch_maps(patches, row, column)

    def pick_example(self, event: gr.SelectData) -> tuple[str, str]:
        """The picture that was clicked among the examples, and its name."""
        name = list(self.examples)[event.index]
        return str(self.examples[name]), name

    def pick_patch(self, event: gr.SelectData) -> tuple[int, int]:
        """Row and column, from 1, of the patch that was clicked in the first view."""
        x, y = event.index
        patch = self.click_side // self.model.grid
        return min(y // patch, self.model.grid - 1) + 1, min(x // patch, self.model.grid - 1) + 1

    @property
    def click_side(self) -> int:
        """Side in pixels of the first view where patches are clicked: a multiple of the model's, not too small to
        hit."""
        return self.model.side * max(1, round(320 / self.model.side))

    def sliders_of(self, key: str) -> list[gr.Slider]:
        """Show the sliders of a transformation, hide the others."""
        controls = self._choice(key).controls
        return [gr.Slider(visible=control in controls) for control in ALL_CONTROLS]

    def restore(self, request: gr.Request) -> tuple:
        """Picture, its name, transformation and sliders as the address says; what it does not say, or says wrongly,
        stays as it is."""
        asked = dict(request.query_params)
        name, key = asked.get("picture", ""), asked.get("transformation", self.start)
        choice = self.choices.get(key, self.choices[self.start])
        values = [
            gr.Slider(value=_number(asked.get(control.name, ""), control), visible=control in choice.controls)
            for control in ALL_CONTROLS
        ]
        known = name in self.examples
        return str(self.examples[name]) if known else gr.skip(), name if known else gr.skip(), choice.key, *values

    @property
    def start(self) -> str:
        """Key of the transformation that the page begins with."""
        return next(iter(self.choices))

    # ------------------------------------------------------------------------------------------------------- the API
    def features(self, picture: FileData, tokens: Literal["cls", "mean", "patches", "all"] = "cls") -> dict:
        """Both parts of a picture's features, as the pipeline `equivariant-feature-extraction` returns them."""
        _one_of("tokens", tokens, get_args(get_type_hints(self.features)["tokens"]))
        (features,) = self.extract([_open(_uploaded(picture))], tokens=tokens)
        return features

    def states(self, picture: FileData, transformation: str, values: dict) -> dict:
        """The numbers of the page: PSNR of each intermediate state, similarities along the path, and what each part
        says.

        `transformation` is a key of the page's list; `values` are the sliders' values by name, those that are left out
        change nothing.
        """
        choice = self._choice(transformation)
        if not isinstance(values, dict):
            raise gr.Error(
                f"values must be the sliders' values by name, such as {{}}, got {_short(values)}.",
                print_exception=False,
            )
        known = [control.name for control in choice.controls]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise gr.Error(
                f"{choice.key} has no slider {unknown[0]!r}; known: {', '.join(known)}.", print_exception=False
            )
        walk = _checked(self.model.walk, _open(_uploaded(picture)), choice, values)
        rows = readings(choice, walk, self.probe) if choice.trained else []
        return {
            "fractions": walk.fractions,
            "psnr": walk.psnr,
            "nearest_view_psnr": walk.nearest_psnr,
            "similarity": {part: similarity_to_start(walk.pooled[part], self.probe.centre[part]) for part in PARTS},
            "readings": {r.control.name: {"true": r.true, **{part: r.read[part][-1] for part in PARTS}} for r in rows},
            "reconstructions": [pages.data_uri(image) for image in walk.reconstructions],
        }

    # ----------------------------------------------------------------------------------------------------- in between
    def _choice(self, key: str) -> Choice:
        _one_of("transformation", key, list(self.choices))
        return self.choices[key]

    def _settings(self, values: tuple[float, ...]) -> dict[str, float]:
        return {control.name: value for control, value in zip(ALL_CONTROLS, values, strict=True)}

    def _similarity(self, walk: Walk) -> pd.DataFrame:
        curves = {part: similarity_to_start(walk.pooled[part], self.probe.centre[part]) for part in PARTS}
        return pd.DataFrame(
            [
                {FRACTION: fraction, SIMILARITY: value, PART: part}
                for part, curve in curves.items()
                for fraction, value in zip(walk.fractions, curve, strict=True)
            ]
        )

    def _read_along(self, walk: Walk, rows: list[Reading]) -> dict:
        """True and read value along the path, of the slider that is moved farthest."""
        if not rows:
            return gr.update(visible=False)
        reading = max(rows, key=lambda r: abs(r.true - r.control.neutral) / (r.control.high - r.control.low))
        control = reading.control
        true = [control.neutral + fraction * (reading.true - control.neutral) for fraction in walk.fractions]
        points = [
            {FRACTION: fraction, READ: value, PART: name}
            for name, curve in {"true": true, **reading.read}.items()
            for fraction, value in zip(walk.fractions, curve, strict=True)
        ]
        reached = [point[READ] for point in points]
        limits = [min(control.low, *reached), max(control.high, *reached)]
        return gr.update(
            value=pd.DataFrame(points), y_title=f"{control.label} ({control.unit})", y_lim=limits, visible=True
        )

    def _patch_maps(self, patches: dict, row: float | None, column: float | None) -> str:
        y, x = (min(max(int(index or 1), 1), self.model.grid) - 1 for index in (row, column))
        return pages.similarity_maps({part: patch_similarity(values, y, x) for part, values in patches.items()}, y, x)


def _number(text: str, control: Control) -> float:
    """A slider's value from the address, or the one that it starts with."""
    try:
        value = float(text)
    except ValueError:
        return control.start
    return value if control.low <= value <= control.high else control.start


def _one_of(name: str, value: Any, known: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in known:
        raise gr.Error(f"Unknown {name} {_short(value)}; known: {', '.join(known)}.", print_exception=False)


def _uploaded(picture: Any) -> Any:
    """What a program sends as a picture, where Gradio has taken the file in; a path on this server is no such thing."""
    if not isinstance(picture, dict) or (picture.get("meta") or {}).get("_type") != "gradio.FileData":
        message = f"picture must be an uploaded file (in Python handle_file('photo.jpg') of gradio_client), got {_short(picture)}."
        raise gr.Error(message, title="No picture here", print_exception=False)
    return picture


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _open(picture: FileData | dict | None) -> Image.Image:
    """The visitor's picture, of which Gradio tells the path, or a message of what is wrong with it."""
    file = Path(dict(picture or {}).get("path") or "")
    if not file.is_file():
        message = "Choose one of the pictures, upload your own, or take one with your camera."
        raise gr.Error(message, title="No picture here", print_exception=False)
    return _checked(read_picture, file)


def _checked(function: Callable, *arguments):
    """What a function returns; what it says is wrong with the visitor's input goes to the visitor."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise gr.Error(str(error), title="This does not work", print_exception=False) from None
