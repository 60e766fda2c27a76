"""The page: its components, their events, its texts and its looks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr

import pages
from controls import ALL_CONTROLS
from demo import FRACTION, PART, READ, SIMILARITY, Demo
from walk import MAX_BYTES, SplitModel

_HERE = Path(__file__).parent
MAX_QUEUE = 100
MAX_SESSIONS = 500
FILE_LIFE = (300, 1800)  # seconds: how often the visitors' files are looked through, and how old they become

_INTRODUCTION = """
# What lies between two views?

A vision transformer looks at a picture and at a transformed copy of it. Its features come in two parts: an **invariant** part, which
should not care about the transformation, and an **equivariant** part, which should follow it. In training, the equivariant part had to
rebuild what neither view shows: the states *between* them ([arXiv:2503.18753](https://arxiv.org/abs/2503.18753)). Move the sliders and see
how well it does.
"""
_PARTS_TEXT = """
If the parts do their work, the transformation can be read from the equivariant part, and moving the picture moves the equivariant part
away from where it started while the invariant part stays.
"""
_PATCHES_TEXT = """
Each patch has features of its own. **Colours**: the three main directions of each part, found over both views together; alike colours are
alike features. **Similarity**: how alike all patches are to the one that you choose, from black (not at all) to light yellow (the same).
"""
_CODE_TEXT = """
Save your picture as `photo.png` and run this where the package `eqcohvit` is installed. It prints the PSNR values of the first tab.
Other programs can ask this page itself, with `gradio_client`: the endpoints `/features` (both parts of a picture) and `/states` are
described under *Use via API* at the foot of the page.
"""
# Gradio drops this rule from a style sheet; without it the player's frames would not step.
_HEAD = '<style>@property --frame { syntax: "<number>"; inherits: true; initial-value: 0; }</style>'
# The address follows the page, so that a link shows what its sender saw; an uploaded picture is in no link.
_WRITE_URL = """(example, kind, ...values) => {
  const names = NAMES, shown = SHOWN[kind] || [], asked = new URLSearchParams();
  if (example) asked.set("picture", example);
  asked.set("transformation", kind);
  names.forEach((name, i) => { if (shown.includes(name)) asked.set(name, values[i]); });
  for (const kept of ["__theme", "view"]) {
    const value = new URLSearchParams(location.search).get(kept);
    if (value) asked.set(kept, value);
  }
  history.replaceState(null, "", "?" + asked.toString());
}"""


def build(demo: Demo, note: str = "", file_life: tuple[int, int] = FILE_LIFE) -> gr.Blocks:
    """The page. `note` stands on top of it; `file_life`: seconds between two looks through visitors' files, and how old
    they become."""
    with gr.Blocks(title="Between two views", analytics_enabled=False, delete_cache=file_life) as page:
        gr.Markdown(_INTRODUCTION)
        if note:
            gr.Markdown(note, elem_classes="notice")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                gallery, picture, example, kind, sliders = _inputs(demo)
            with gr.Column(scale=5, min_width=320), gr.Tabs(overflow_behavior="wrap"):
                with gr.Tab("Intermediate states", id="states"):
                    film, player = gr.HTML(elem_id="film"), gr.HTML(elem_id="player")
                with gr.Tab("What each part knows", id="parts"):
                    table, similarity, along = _parts_tab()
                with gr.Tab("Patch maps", id="patches"):
                    colours, clickable, row, column, alike = _patches_tab(demo.model)
                with gr.Tab("Use it", id="code"):
                    gr.Markdown(_CODE_TEXT)
                    code = gr.Code(
                        language="python", interactive=False, label="What is on this page, as code", elem_id="snippet"
                    )
        gr.Markdown(_about(demo.model), elem_classes="about")

        # The model answers one request at a time, with all cores; of a slider's many values only the last one waits.
        model = {"concurrency_id": "model", "concurrency_limit": 1}
        # Without Gradio's preprocessing: the page itself says what is wrong with a bad file.
        on_model = {"trigger_mode": "always_last", "preprocess": False, "api_visibility": "private", **model}
        at_once: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        asked = [picture, kind, row, column, *sliders]
        moved = [c.change for c in (picture, kind, *sliders)]
        shown = [film, player, table, similarity, along, code, clickable, colours, alike]
        gr.on([page.load, *moved], demo.show, asked, shown, show_progress="minimal", **on_model)
        gr.on([row.change, column.change], demo.show_patch, asked, alike, show_progress="hidden", **on_model)
        gallery.select(demo.pick_example, None, [picture, example], **at_once)
        gr.on([picture.upload, picture.input], lambda: "", None, example, **at_once)
        clickable.select(demo.pick_patch, None, [row, column], **at_once)
        kind.input(demo.sliders_of, kind, sliders, **at_once)
        page.load(demo.restore, None, [picture, example, kind, *sliders], **at_once)
        gr.on(
            [c.change for c in (example, kind, *sliders)],
            None,
            [example, kind, *sliders],
            js=_write_url(demo),
            **at_once,
        )
        gr.api(demo.features, api_name="features", **model)
        gr.api(demo.states, api_name="states", **model)
    return page.queue(max_size=MAX_QUEUE)


def _inputs(demo: Demo) -> tuple:
    examples, first = demo.examples, next(iter(demo.examples))
    gr.Markdown("### 1. Choose a picture")
    gallery = gr.Gallery(
        [(str(path), name) for name, path in examples.items()], label="examples", show_label=False, columns=6, height="auto",
        allow_preview=False, buttons=[], object_fit="cover", interactive=False, container=False, elem_id="examples",
    )  # fmt: skip
    picture = gr.Image(
        str(examples[first]), type="filepath", sources=["upload", "webcam", "clipboard"], height=240, buttons=[],
        label=f"or your own, up to {MAX_BYTES // 1024**2} MB", alt_text="the picture that the model sees", elem_id="picture",
    )  # fmt: skip
    example = gr.Textbox(first, visible="hidden", elem_id="example", label="name of the example")
    gr.Markdown("### 2. Choose a transformation")
    kind = gr.Dropdown(
        [(choice.label, key) for key, choice in demo.choices.items()], value=demo.start, label="transformation", show_label=False,
        filterable=False, elem_id="transformation",
    )  # fmt: skip
    sliders = [
        gr.Slider(
            control.low,
            control.high,
            control.start,
            step=control.step,
            label=f"{control.label} ({control.unit})",
            buttons=[],
            visible=control in demo.choices[demo.start].controls,
            elem_id=f"slider-{control.name}",
        )  # fmt: skip
        for control in ALL_CONTROLS
    ]
    return gallery, picture, example, kind, sliders


def _parts_tab() -> tuple:
    gr.Markdown(_PARTS_TEXT)
    table = gr.HTML(elem_id="readings")
    lines: dict[str, Any] = {
        "x": FRACTION,
        "color": PART,
        "x_lim": [0, 1],
        "color_title": " ",
        "buttons": [],
        "min_width": 280,
    }
    with gr.Row():
        similarity = gr.LinePlot(
            y=SIMILARITY, y_lim=[-0.25, 1], color_map=pages.PART_COLOURS, label="How alike each part stays to the start",
            elem_id="similarity", **lines,
        )  # fmt: skip
        colours = {"true": "#888888", **pages.PART_COLOURS}
        along = gr.LinePlot(
            y=READ,
            y_lim=[-1, 1],
            color_map=colours,
            label="What each part says along the path",
            elem_id="along",
            **lines,
        )
    return table, similarity, along


def _patches_tab(model: SplitModel) -> tuple:
    gr.Markdown(_PATCHES_TEXT)
    colours = gr.HTML(elem_id="colours")
    with gr.Row():
        with gr.Column(scale=1, min_width=200):
            clickable = gr.Image(
                interactive=False, type="pil", format="png", height=240, label="Click a patch", buttons=[], elem_id="clickable",
                alt_text="the first view; a click chooses a patch",
            )  # fmt: skip
            row, column = (
                gr.Slider(1, model.grid, (model.grid + 1) // 2, step=1, label=name, buttons=[], elem_id=f"patch-{name}")
                for name in ("row", "column")
            )
        with gr.Column(scale=3, min_width=300):
            alike = gr.HTML(elem_id="alike")
    return colours, clickable, row, column, alike


def _about(model: SplitModel) -> str:
    config = model.config
    return (
        f"**Model** `{model.name}`: {model.num_parameters / 1e6:.1f} M parameters, {model.side} × {model.side} pixels, "
        f"{config.invariant_dim} invariant and {config.equivariant_dim} equivariant dimensions per patch of {config.square_patch_size} × "
        f"{config.square_patch_size}; trained on the path `{config.path}`. It sees the middle square of your picture.\n\n"
        f"**Your picture** stays on this server for at most {sum(FILE_LIFE) // 60} minutes, is in no link and is used for nothing else."
    )


def _write_url(demo: Demo) -> str:
    names = json.dumps([control.name for control in ALL_CONTROLS])
    shown = json.dumps({key: [control.name for control in choice.controls] for key, choice in demo.choices.items()})
    return _WRITE_URL.replace("NAMES", names).replace("SHOWN", shown)


def launch(page: gr.Blocks, **kwargs) -> tuple:
    """Serve the page; `kwargs` go to Gradio's launch."""
    system = ["system-ui", "sans-serif"]  # no font is fetched from anywhere
    return page.launch(
        theme=gr.themes.Soft(primary_hue="orange", font=system, font_mono=["ui-monospace", "monospace"]),
        css_paths=[_HERE / "style.css"], head=_HEAD, max_file_size=MAX_BYTES, state_session_capacity=MAX_SESSIONS, ssr_mode=False,
        share=False, show_error=False, **kwargs,
    )  # fmt: skip
