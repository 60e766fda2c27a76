"""The page's functions: values of its components in, values of its components out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import gradio as gr
import torch
from gradio.data_classes import FileData
from PIL import Image

import pages
import readings
from controls import Choice, Control, all_controls, list_choices
from eqcohvit import EqCohViTFeatureExtractionPipeline
from neighbors import OWN, Gallery
from probe import Probe
from snippet import snippet
from walk import (
    BORDERS,
    PARTS,
    BadPicture,
    SplitModel,
    Walk,
    patch_similarity,
    principal_colors,
    read_picture,
    sharp_canvas,
    similarity_to_start,
    views,
)

STAGE_SIDE = 256  # of the large pictures, in pixels


class Demo:
    """One model, its read-outs and example pictures by name, and what the page and the API request from them."""

    def __init__(self, model: SplitModel, probe: Probe, examples: dict[str, Path]):
        self.model = model
        self.probe = probe
        self.examples = examples
        self.choices = list_choices(model.config.path)
        self.controls = all_controls(self.choices)
        self.gallery = Gallery(model, probe, {name: read_picture(file) for name, file in examples.items()})
        self._names = {_digest(file): name for name, file in examples.items()}
        self.extract = EqCohViTFeatureExtractionPipeline(model=model.model.eqcohvit, image_processor=model.processor)

    # ------------------------------------------------------------------------------------------------------ the page
    def show(
        self,
        picture: dict | None,
        key: str,
        black: bool,
        row: float | None,
        column: float | None,
        *values: float,
    ) -> tuple:
        """Everything that depends on the picture and the transformation, in the order of the page's outputs."""
        choice = self._choice(key)
        settings = self._settings(choice, values)
        try:
            file = _path(picture)
            opened = read_picture(file)
            parameters = choice.parameters(settings)[0]
        except ValueError as error:
            return pages.empty(str(error)), "", "", "", None, "", ""
        canvas = self.model.canvas([opened], choice.path)
        walk = self.model.walk(canvas, choice, settings, black)
        name = self._names.get(_digest(file), OWN)
        ends = {part: pooled[[0, -1]] for part, pooled in walk.pooled.items()}
        near = self.gallery.search(name, canvas, choice, parameters, ends, black)
        return (
            self._stage(opened, choice, walk, black),
            pages.neighbors(choice, near),
            pages.film(walk, self.model.config.border == "zeros" and not black),
            snippet(self.model.name, choice, settings, BORDERS[black]),
            pages.to_pil(walk.images[0]).resize((self.click_side,) * 2, Image.Resampling.BICUBIC),
            pages.color_maps({part: principal_colors(maps) for part, maps in walk.patches.items()}),
            self._patch_maps(walk.patches, row, column),
        )

    def pick_example(self, event: gr.SelectData) -> tuple[str, str]:
        """The example that was clicked, and its name."""
        name = list(self.examples)[event.index]
        return str(self.examples[name]), name

    def pick_patch(self, event: gr.SelectData) -> tuple[int, int]:
        """Row and column, from 1, of the patch that was clicked in the first view."""
        x, y = event.index
        patch = self.click_side // self.model.grid
        return min(y // patch, self.model.grid - 1) + 1, min(x // patch, self.model.grid - 1) + 1

    @property
    def click_side(self) -> int:
        """Side in pixels of the first view where patches are clicked: a multiple of the model's, and large enough to
        hit a patch."""
        return self.model.side * max(1, round(320 / self.model.side))

    def sliders_of(self, key: str) -> list[gr.Slider]:
        """Show the sliders of a transformation, hide the others."""
        controls = list(self._choice(key).controls.values())
        return [gr.Slider(visible=control in controls) for control in self.controls]

    def restore(self, request: gr.Request) -> tuple:
        """Picture, its name, transformation, border and sliders from the address. What is missing or wrong there stays
        as it is."""
        query = dict(request.query_params)
        name = query.get("picture", "")
        choice = self.choices.get(query.get("transformation", self.start), self.choices[self.start])
        values = [
            gr.Slider(value=_number(query.get(control.name, ""), control), visible=control in choice.controls.values())
            for control in self.controls
        ]
        known = name in self.examples
        file = str(self.examples[name]) if known else gr.skip()
        return file, name if known else gr.skip(), choice.key, query.get("black") == "true", *values

    @property
    def start(self) -> str:
        """The transformation that the page opens with."""
        return next(iter(self.choices))

    # ------------------------------------------------------------------------------------------------------- the API
    def features(self, picture: FileData, tokens: Literal["cls", "mean", "patches", "all"] = "cls") -> dict:
        """Both parts of a picture's features, as the pipeline `equivariant-feature-extraction` returns them."""
        _one_of("tokens", tokens, get_args(get_type_hints(self.features)["tokens"]))
        (features,) = self.extract([_open(picture)], tokens=tokens)
        return features

    def states(self, picture: FileData, transformation: str, values: dict, black_corners: bool = False) -> dict:
        """The numbers of the page: what each part says, PSNR of each intermediate state, similarities along the path.

        `transformation` is a key of the page's list. `values` are the sliders' values by name; those that are left out
        change nothing. `black_corners`: whether the moved picture is black beyond its frame.
        """
        choice = self._choice(transformation)
        if not isinstance(values, dict):
            raise gr.Error(
                f"values must be the sliders' values by name, such as {{}}, got {_short(values)}.",
                print_exception=False,
            )
        known = [control.name for control in choice.controls.values()]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise gr.Error(
                f"{choice.key} has no slider {unknown[0]!r}; known: {', '.join(known)}.", print_exception=False
            )
        if not isinstance(black_corners, bool):
            raise gr.Error(f"black_corners must be true or false, got {_short(black_corners)}.", print_exception=False)
        canvas = self.model.canvas([_open(picture)], choice.path)
        walk = _checked(self.model.walk, canvas, choice, values, black_corners)
        rows = readings.read(choice, walk, self.probe, black_corners)
        centers = {part: self.probe.center(part, black_corners) for part in PARTS}
        return {
            "fractions": walk.fractions,
            "psnr": walk.psnr,
            "nearest_view_psnr": walk.nearest_psnr,
            "similarity": {part: similarity_to_start(walk.pooled[part], centers[part]) for part in PARTS},
            "readings": {row.control.name: {"true": row.true, **row.said} for row in rows},
            "r2": {row.control.name: row.r2 for row in rows},
            "reconstructions": [pages.data_uri(image) for image in walk.reconstructions],
        }

    # ----------------------------------------------------------------------------------------------------- in between
    def _choice(self, key: str) -> Choice:
        _one_of("transformation", key, list(self.choices))
        return self.choices[key]

    def _settings(self, choice: Choice, values: tuple[float, ...]) -> dict[str, float]:
        named = {control.name: value for control, value in zip(self.controls, values, strict=True)}
        return {control.name: named[control.name] for control in choice.controls.values()}

    def _stage(self, picture: Image.Image, choice: Choice, walk: Walk, black: bool) -> str:
        """The picture, the moved picture, and the motion as each part sees it."""
        canvas = sharp_canvas(picture, choice.path, STAGE_SIDE)
        rows = readings.read(choice, walk, self.probe, black)
        moves = [torch.zeros_like(walk.parameters), walk.parameters]
        if rows:
            moves += [self.probe.read(part, walk.pooled[part], black)[-1] for part in PARTS]
        kept = torch.zeros(len(walk.parameters))
        kept[list(choice.controls)] = 1  # a rotation shows the angle that a part says, without the shift
        parameters = torch.stack(moves) * kept
        images = views(canvas, choice.path, parameters, 1.0, STAGE_SIDE, black)[0]
        return pages.stage(choice, images, choice.values(walk.parameters), rows, self.probe.num_tested)

    def _patch_maps(self, patches: dict, row: float | None, column: float | None) -> str:
        y, x = (min(max(int(index or 1), 1), self.model.grid) - 1 for index in (row, column))
        return pages.similarity_maps({part: patch_similarity(values, y, x) for part, values in patches.items()}, y, x)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


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


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _path(picture: FileData | dict | None) -> Path:
    """The file that Gradio has stored for the visitor's picture.

    Raises:
        BadPicture: there is no picture.
    """
    file = Path(dict(picture or {}).get("path") or "")
    if not file.is_file():
        raise BadPicture(
            "Choose one of the examples, drop a picture of your own here on the left, or take one with your camera."
        )
    return file


def _open(picture: Any) -> Image.Image:
    """The picture that a program sends. Gradio has taken the file in; a path on this server is refused."""
    if not isinstance(picture, dict) or (picture.get("meta") or {}).get("_type") != "gradio.FileData":
        message = (
            "picture must be an uploaded file (in Python handle_file('photo.jpg') of gradio_client), "
            f"got {_short(picture)}."
        )
        raise gr.Error(message, print_exception=False)
    return _checked(lambda: read_picture(_path(picture)))


def _checked(function: Callable, *arguments):
    """What a function returns; a ValueError becomes a message for the visitor."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from None
