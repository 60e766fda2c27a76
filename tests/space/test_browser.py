"""The page in a real browser, as visitors meet it: what they do, what they see, and that it is what the model says."""

import re

import numpy as np
import pytest
from PIL import Image
from tests.patience import PATIENCE, until

from readings import read

PHONE = {"width": 390, "height": 844}


@pytest.fixture
def open_page(browser, server):
    """Open the page in a new window, wait for its first pictures; collects what it asks of other machines and
    what breaks."""
    contexts = []

    def opened(query="", **kwargs):
        context = browser.new_context(**kwargs)
        contexts.append(context)
        context.set_default_timeout(1000 * PATIENCE)  # 30 s otherwise, too little for a busy machine
        page = context.new_page()
        page.foreign, page.broken = [], []
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith((server, "data:", "blob:")) else page.foreign.append(request.url)
            ),
        )
        page.on("pageerror", lambda error: page.broken.append(str(error)))
        page.goto(server + query)
        page.locator("#stage .stage").wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()


def walk_of(demo, picture, key, **values):
    choice = demo.choices[key]
    starts = {control.name: control.start for control in choice.controls.values()}
    black = values.pop("black", False)
    return demo.model.walk(demo.model.canvas([picture], choice.path), choice, {**starts, **values}, black)


def expect(page, demo, picture, key, **values) -> None:
    """Wait until every place of the page shows the numbers of this walk."""
    walk = walk_of(demo, picture, key, **values)
    for row in read(demo.choices[key], walk, demo.probe, values.get("black", False)):
        for part, said in row.said.items():
            gauge = f".gauge[data-part={part}][data-control={row.control.name}]"
            page.locator(f"{gauge}[data-said='{said:.4f}'][data-true='{row.true:.4f}']").wait_for()
    for i, value in enumerate(walk.psnr, start=1):
        page.locator(f"[data-psnr='{i}']", has_text=f"{value:.2f} dB").wait_for(state="attached")


def type_into(page, slider: str, value: float) -> None:
    number = page.locator(f"#slider-{slider} input[type=number]")
    number.fill(str(value))
    number.press("Enter")


def upload(page, file) -> None:
    page.locator("#picture input[type=file]").set_input_files(str(file))


def click_until_changed(page, before):
    """Click on the right of the map until the picture of similar patches changes: a busy page may lose a click."""
    from playwright.sync_api import TimeoutError

    def clicked() -> bool:
        box = page.locator("#clickable img").bounding_box()
        page.locator("#clickable img").click(position={"x": box["width"] * 0.9, "y": box["height"] / 2})
        try:
            page.wait_for_function(
                "before => document.querySelector('#alike img').src !== before", arg=before, timeout=10_000
            )
        except TimeoutError:
            return False
        return True

    assert until(clicked), "no click changed the picture"


def test_page_follows_typed_and_dragged_values_the_switch_and_an_upload(
    open_page, demo, examples, picture_files, make_picture
):
    page = open_page()
    first = Image.open(next(iter(examples.values()))).convert("RGB")
    expect(page, demo, first, "rotation")
    type_into(page, "angle", -20)
    expect(page, demo, first, "rotation", angle=-20)
    page.wait_for_url(re.compile("transformation=rotation&angle=-20"))
    slider = page.locator("#slider-angle input[type=range]")
    slider.focus()
    page.keyboard.press("End")
    expect(page, demo, first, "rotation", angle=45)
    page.locator("#black input").check()
    expect(page, demo, first, "rotation", angle=45, black=True)
    page.wait_for_url(re.compile("black=true&angle=45"))

    upload(page, picture_files[5])
    expect(page, demo, make_picture(5), "rotation", angle=45, black=True)
    page.wait_for_url(re.compile(r"\?transformation=rotation&black=true&angle=45"))  # an upload is in no link
    page.locator("[data-near=invariant] figcaption", has_text="your picture").first.wait_for()
    assert page.foreign == [] and page.broken == []


def test_tabs_show_patches_and_code(open_page):
    page = open_page()
    page.get_by_role("tab", name="Patch maps").click()
    click_until_changed(page, page.locator("#alike img").first.get_attribute("src"))
    assert page.locator("#patch-column input[type=number]").input_value() == "4"
    page.get_by_role("tab", name="Use it").click()
    page.locator("#snippet", has_text='make_path("se2+color_jitter")').wait_for()


def test_link_opens_what_its_sender_saw(open_page, demo, examples):
    page = open_page("?picture=house&transformation=se2%2Bcolor_jitter&angle=10&hue=-30")
    house = Image.open(examples["house"]).convert("RGB")
    expect(page, demo, house, "se2+color_jitter", angle=10, hue=-30)
    assert page.locator("#slider-hue input[type=number]").input_value() == "-30"


def test_bad_and_removed_pictures_leave_an_empty_page_that_says_what_to_do(
    open_page, tmp_path, demo, picture_files, make_picture
):
    page = open_page()
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    upload(page, tmp_path / "broken.png")
    page.locator(".empty", has_text="This file cannot be read as a picture").wait_for()
    assert page.locator("#near img").count() == 0 and page.locator("#film img").count() == 0
    page.get_by_label("Remove Image").first.click()
    page.locator(".empty", has_text="Choose one of the examples").wait_for()
    assert page.locator(".toast-wrap .error").count() == 0
    upload(page, picture_files[6])
    expect(page, demo, make_picture(6), "rotation")


def visitors_files(folder) -> dict:
    """Pictures as visitors bring them: name -> file and what it shows."""
    y, x = np.mgrid[0:300, 0:200] / 300
    scene = np.stack([x, y, 0.5 + 0.4 * np.sin(12 * x) * np.cos(9 * y)], axis=-1)
    rgb = Image.fromarray((scene * 255).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    rgb.rotate(90, expand=True).save(folder / "portrait.jpg", exif=exif, quality=95)
    clear = rgb.convert("RGBA")
    clear.putalpha(Image.fromarray((x * 255).astype(np.uint8)))
    clear.save(folder / "transparent.png")
    rgb.resize((4600, 5400)).save(folder / "huge.jpg", quality=60)
    rgb.resize((9, 12)).save(folder / "tiny.png")
    Image.fromarray((scene[..., 2] * 65535).astype(np.uint16)).save(folder / "gray16.png")
    return {file.stem: file for file in sorted(folder.iterdir())}


def test_pictures_of_different_kinds_are_shown(open_page, demo, tmp_path):
    from walk import read_picture

    page = open_page()
    for file in visitors_files(tmp_path).values():
        upload(page, file)
        expect(page, demo, read_picture(file), "rotation")


def test_two_visitors_at_once_see_their_own_pictures(open_page, demo, picture_files, make_picture):
    pages = [open_page(), open_page()]
    for page, i in zip(pages, (7, 8), strict=True):
        upload(page, picture_files[i])
    for page, i in zip(pages, (7, 8), strict=True):
        expect(page, demo, make_picture(i), "rotation")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_the_slider_and_what_it_moves_are_on_one_screen(open_page, scheme):
    page = open_page(f"?__theme={scheme}", viewport=PHONE, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    slider = page.locator("#slider-angle input[type=range]").bounding_box()
    gauges = [gauge.bounding_box() for gauge in page.locator(".gauge").all()]
    assert slider["y"] > 0 and max(box["y"] + box["height"] for box in gauges) <= PHONE["height"]
    page.get_by_text("Use via API").wait_for()
    assert page.evaluate("[...document.querySelectorAll('img')].filter(i => i.offsetParent && !i.alt).length") == 0


def test_nothing_covers_the_uploaded_picture(open_page, picture_files):
    """At the picture's upper left corner, where a label would be, is the picture."""
    page = open_page()
    upload(page, picture_files[0])
    page.locator("#picture img").wait_for()
    box = page.locator("#picture img").bounding_box()
    at_corner = "([x, y]) => document.elementFromPoint(x, y).tagName"
    assert until(lambda: page.evaluate(at_corner, [box["x"] + 6, box["y"] + 6]) == "IMG")
