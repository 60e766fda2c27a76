"""What the page shows against the model called directly, and the code that it offers."""

import os
import re
import subprocess
import sys
import time

import gradio as gr
import pytest
import torch
from tests.patience import PATIENCE

from controls import ALL_CONTROLS
from demo import Demo
from eqcohvit import EqCohViTConfig, EqCohViTForPreTraining
from eqcohvit.publish.folder import save_hub_folder
from eqcohvit.transforms import make_path
from probe import fit_probe
from snippet import snippet
from walk import SplitModel

STARTS = [control.start for control in ALL_CONTROLS]


def values(**named):
    return [named.get(control.name, control.neutral) for control in ALL_CONTROLS]


def test_show_writes_the_numbers_of_the_walk(demo, model, picture_files, make_picture):
    shown = demo.show({"path": str(picture_files[0])}, "rotation", 2, 3, *values(angle=-35))
    film, _, table, similarity, along, code, clickable, _, _ = shown
    walk = model.walk(make_picture(0), demo.choices["rotation"], {"angle": -35})
    assert re.findall(r'data-psnr="\d">([\d.]+) dB', film) == [f"{value:.2f}" for value in walk.psnr]
    assert re.search(r'data-true="angle">([-\d.]+)°', table)[1] == "-35.0"
    assert "data-equivariant" in table and "data-invariant" in table
    assert len(similarity) == 14 and similarity["similarity to the start"].max() == pytest.approx(1, abs=1e-4)
    assert set(along["value"]["part"]) == {"true", "equivariant", "invariant"}
    assert 'make_path("se2+color_jitter"), torch.tensor([[-0.610865, 0, 0, 0, 0, 0, 0]])' in code
    assert clickable.size == (demo.click_side,) * 2


def test_show_of_an_untrained_transformation_says_so(demo, picture_files):
    _, _, table, _, along, _, _, _, _ = demo.show({"path": str(picture_files[0])}, "zoom", 1, 1, *values(zoom=1.3))
    assert "trained on" in table and "data-true" not in table and along["visible"] is False


def test_show_says_whether_the_reconstructions_beat_the_nearer_view(demo, model, picture_files, make_picture):
    film = demo.show({"path": str(picture_files[0])}, "rotation", 1, 1, *values(angle=30))[0]
    walk = model.walk(make_picture(0), demo.choices["rotation"], {"angle": 30})
    gains = [made > copied for made, copied in zip(walk.psnr, walk.nearest_psnr, strict=True)]
    assert f"are {'better' if all(gains) else 'partly better, partly worse' if any(gains) else 'worse'}." in film
    still = demo.show({"path": str(picture_files[0])}, "rotation", 1, 1, *values())[0]
    assert "Nothing moves here" in still


def test_show_patch_marks_the_patch_and_stays_within_the_grid(demo, picture_files):
    assert "--row:1;--column:2;--grid:4" in demo.show_patch({"path": str(picture_files[0])}, "rotation", 2, 3, *STARTS)
    assert "--row:3;--column:0;--grid:4" in demo.show_patch(
        {"path": str(picture_files[0])}, "rotation", 99, -5, *STARTS
    )


@pytest.mark.parametrize("kind", ["nothing", "text", "huge"])
def test_show_of_a_bad_picture_is_a_message(demo, tmp_path, kind):
    file = tmp_path / "file.png"
    file.write_bytes(b"not a picture" if kind == "text" else b"\0" * (11 * 1024**2))
    with pytest.raises(gr.Error) as caught:
        demo.show(None if kind == "nothing" else {"path": str(file)}, "rotation", 1, 1, *STARTS)
    assert {"nothing": "Choose one", "text": "cannot be read", "huge": "11.0 MB; the limit is 10 MB"}[
        kind
    ] in caught.value.message


def test_restore_takes_only_what_the_page_knows(demo):
    class Request:
        query_params = {
            "picture": "house",
            "transformation": "se2+color_jitter",
            "angle": "12",
            "shift_x": "900",
            "hue": "x",
        }

    picture, name, key, *sliders = demo.restore(Request)
    assert picture.endswith("house.png") and name == "house" and key == "se2+color_jitter"
    shown = {control.name: slider.value for control, slider in zip(ALL_CONTROLS, sliders, strict=True)}
    starts = {control.name: control.start for control in ALL_CONTROLS}
    assert shown == {**starts, "angle": 12}
    Request.query_params = {"picture": "../../etc/passwd", "transformation": "<script>"}
    picture, name, key, *_ = demo.restore(Request)
    assert key == demo.start and picture == name == gr.skip()


def test_snippet_prints_the_numbers_of_the_page(demo, model, folder, tmp_path, make_picture):
    settings = {"angle": 20, "shift_x": -3, "brightness": 25, "hue": -30}
    choice = demo.choices["se2+color_jitter"]
    make_picture(4, (60, 44)).save(tmp_path / "photo.png")
    code = snippet(str(folder), choice, settings)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    printed = [float(number) for number in re.search(r"in dB: \[(.*)\]", done.stdout)[1].split(",")]
    assert printed == pytest.approx(model.walk(make_picture(4, (60, 44)), choice, settings).psnr, abs=0.006)


@pytest.mark.slow
def test_show_of_a_vit_s_at_224_pixels_takes_less_than_two_seconds(tmp_path, examples, picture_files):
    """A whole interaction without the network, in seconds of all cores, which the page uses for one request."""
    torch.manual_seed(0)
    folder = save_hub_folder(
        tmp_path / "vits", EqCohViTForPreTraining(EqCohViTConfig.from_preset("small", 224, 16, path="se2"))
    )
    model = SplitModel(str(folder))
    demo = Demo(model, fit_probe(model, make_path("se2"), 16), examples)
    torch.set_num_threads(os.cpu_count())
    seconds = []
    for angle in (10, 20, 30, 40):
        started = time.process_time()  # which other work on the machine does not change
        demo.show({"path": str(picture_files[0])}, "rotation", 1, 1, *values(angle=angle))
        seconds.append((time.process_time() - started) / os.cpu_count())
    print("seconds:", [round(s, 2) for s in seconds])
    assert sorted(seconds)[1] < 2
