"""The page: its components, their events, its texts and its looks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr

from demo import Demo
from walk import MAX_BYTES, SplitModel

_HERE = Path(__file__).parent
MAX_QUEUE = 100
MAX_SESSIONS = 500
FILE_LIFE = (300, 1800)  # seconds: how often the visitors' files are looked through, and how old they become

_INTRODUCTION = """
# Which part notices?

Move a picture. In this vision transformer, the <b class="equivariant">equivariant part</b> of the features should say
how it moved; the <b class="invariant">invariant part</b> should only say what it shows.
"""
_PATCHES_TEXT = """
Each patch has its own features. **Colors**: the three main directions of each part, found over both views together;
similar colors are similar features. **Similarity**: how similar all patches are to the one that you choose, from black
(not at all) to light yellow (equal).
"""
_CODE_TEXT = """
Save your picture as `photo.png` and run this where the package `eqcohvit` is installed. It prints the PSNR values of
the tab *Between the views*. Other programs can use this page with `gradio_client`: the endpoints `/features` (both
parts of a picture) and `/states` are described under *Use via API* at the foot of the page.
"""
# Gradio applies a style sheet only inside of the page's own components. It hides the API's link on phones.
_HEAD = """<style>
@media (max-width: 760px) {
  footer .show-api, footer .show-api-divider { display: inline-flex !important; }
  main.app, .gradio-container > main { padding: 8px !important; }
}
</style>"""
# The address follows the page, so that a link shows what its sender saw. An uploaded picture is in no link.
_WRITE_URL = """(example, kind, black, ...values) => {
  const names = NAMES, shown = SHOWN[kind] || [], query = new URLSearchParams();
  if (example) query.set("picture", example);
  query.set("transformation", kind);
  if (black) query.set("black", "true");
  names.forEach((name, i) => { if (shown.includes(name)) query.set(name, values[i]); });
  for (const kept of ["__theme", "view"]) {
    const value = new URLSearchParams(location.search).get(kept);
    if (value) query.set(kept, value);
  }
  history.replaceState(null, "", "?" + query.toString());
}"""


def build(demo: Demo, file_life: tuple[int, int] = FILE_LIFE) -> gr.Blocks:
    """The page. `file_life`: seconds between two looks through visitors' files, and how old they become."""
    with gr.Blocks(title="Which part notices?", analytics_enabled=False, delete_cache=file_life) as page:
        gr.Markdown(_INTRODUCTION, elem_id="introduction")
        with gr.Row(elem_id="demo"):
            gallery, picture, example = _pictures(demo)
            kind, black, sliders = _motion(demo)
            with gr.Column(elem_id="seen", min_width=0):
                stage = gr.HTML(elem_id="stage")
                near = gr.HTML(elem_id="near")
        with gr.Tabs():
            with gr.Tab("Between the views", id="states"):
                film = gr.HTML(elem_id="film")
            with gr.Tab("Patch maps", id="patches"):
                colors, clickable, row, column, alike = _patches_tab(demo.model)
            with gr.Tab("Use it", id="code"):
                gr.Markdown(_CODE_TEXT)
                code = gr.Code(
                    language="python", interactive=False, label="What is on this page, as code", elem_id="snippet"
                )
        gr.Markdown(_about(demo.model), elem_classes="about")

        # The model answers one request at a time, with all cores. Of a slider's many values only the last one waits.
        model = {"concurrency_id": "model", "concurrency_limit": 1}
        # Without Gradio's preprocessing: the page itself says what is wrong with a bad file.
        on_model = {"trigger_mode": "always_last", "preprocess": False, "api_visibility": "private", **model}
        at_once: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        settings = [kind, black, *sliders]
        inputs = [picture, kind, black, row, column, *sliders]
        outputs = [stage, near, film, code, clickable, colors, alike]
        changed = [component.change for component in (picture, *settings, row, column)]
        # One function makes everything on the page from one set of inputs, so that all of it is of one moment.
        gr.on([page.load, *changed], demo.show, inputs, outputs, show_progress="hidden", **on_model)
        gallery.select(demo.pick_example, None, [picture, example], **at_once)
        gr.on([picture.upload, picture.input, picture.clear], lambda: "", None, example, **at_once)
        clickable.select(demo.pick_patch, None, [row, column], **at_once)
        kind.input(demo.sliders_of, kind, sliders, **at_once)
        page.load(demo.restore, None, [picture, example, *settings], **at_once)
        gr.on(
            [component.change for component in (example, *settings)],
            None,
            [example, *settings],
            js=_write_url(demo),
            **at_once,
        )
        gr.api(demo.features, api_name="features", **model)
        gr.api(demo.states, api_name="states", **model)
    return page.queue(max_size=MAX_QUEUE)


def _pictures(demo: Demo) -> tuple:
    first = next(iter(demo.examples))
    with gr.Column(elem_id="pick", min_width=0):
        gallery = gr.Gallery(
            [(str(path), name) for name, path in demo.examples.items()],
            label="examples",
            show_label=False,
            columns=4,
            height="auto",
            allow_preview=False,
            buttons=[],
            object_fit="cover",
            interactive=False,
            container=False,
            elem_id="examples",
        )
    with gr.Column(elem_id="own", min_width=0):
        gr.Markdown(f"or your own, up to {MAX_BYTES // 1024**2} MB", elem_id="own-label")
        picture = gr.Image(
            str(demo.examples[first]),
            type="filepath",
            sources=["upload", "webcam", "clipboard"],
            height=190,
            buttons=[],
            show_label=False,
            label="picture",
            alt_text="the picture that you chose",
            elem_id="picture",
        )
        example = gr.Textbox(first, visible="hidden", elem_id="example", label="name of the example")
    return gallery, picture, example


def _motion(demo: Demo) -> tuple:
    with gr.Column(elem_id="move", min_width=0):
        kind = gr.Dropdown(
            [(choice.label, key) for key, choice in demo.choices.items()],
            value=demo.start,
            label="transformation",
            show_label=False,
            filterable=False,
            elem_id="transformation",
        )
        sliders = [
            gr.Slider(
                control.low,
                control.high,
                control.start,
                step=control.unit.step,
                label=f"{control.label} ({control.unit.sign})" if control.unit.sign else control.label,
                buttons=[],
                visible=control in demo.choices[demo.start].controls.values(),
                elem_id=f"slider-{control.name}",
            )
            for control in demo.controls
        ]
        black = gr.Checkbox(False, label="Black corners instead of real pixels", elem_id="black")
    return kind, black, sliders


def _patches_tab(model: SplitModel) -> tuple:
    gr.Markdown(_PATCHES_TEXT)
    colors = gr.HTML(elem_id="colors")
    with gr.Row():
        with gr.Column(scale=1, min_width=200):
            clickable = gr.Image(
                interactive=False,
                type="pil",
                format="png",
                height=240,
                show_label=False,
                label="Click a patch",
                buttons=[],
                elem_id="clickable",
                alt_text="the first view; a click chooses a patch",
            )
            row, column = (
                gr.Slider(1, model.grid, (model.grid + 1) // 2, step=1, label=name, buttons=[], elem_id=f"patch-{name}")
                for name in ("row", "column")
            )
        with gr.Column(scale=3, min_width=300):
            alike = gr.HTML(elem_id="alike")
    return colors, clickable, row, column, alike


def _about(model: SplitModel) -> str:
    config = model.config
    patch = config.square_patch_size
    return (
        f"**Model** `{model.name}`: {model.num_parameters / 1e6:.1f} M parameters, {model.side} × {model.side} "
        f"pixels, {config.invariant_dim} invariant and {config.equivariant_dim} equivariant dimensions per patch of "
        f"{patch} × {patch}; trained on the path `{config.path}`. It sees the middle of your picture. The page keeps "
        "real pixels around that middle, which fill the corners when the picture moves.\n\n"
        "**Examples** are drawn by code and are free to use. **Your picture** stays on this server for at most "
        f"{sum(FILE_LIFE) // 60} minutes, is in no link and is used for nothing else. "
        "[Paper](https://arxiv.org/abs/2503.18753)"
    )


def _write_url(demo: Demo) -> str:
    names = json.dumps([control.name for control in demo.controls])
    shown = json.dumps(
        {key: [control.name for control in choice.controls.values()] for key, choice in demo.choices.items()}
    )
    return _WRITE_URL.replace("NAMES", names).replace("SHOWN", shown)


def launch(page: gr.Blocks, **kwargs) -> tuple:
    """Serve the page; `kwargs` go to Gradio's launch."""
    system = ["system-ui", "sans-serif"]  # no font is fetched from anywhere
    return page.launch(
        theme=gr.themes.Soft(primary_hue="orange", font=system, font_mono=["ui-monospace", "monospace"]),
        css_paths=[_HERE / "style.css"],
        head=_HEAD,
        max_file_size=MAX_BYTES,
        state_session_capacity=MAX_SESSIONS,
        ssr_mode=False,
        share=False,
        show_error=False,
        **kwargs,
    )
