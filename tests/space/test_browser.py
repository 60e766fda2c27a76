"""The page in a real browser, as visitors meet it: what they do, what they see, and that it is what the model says."""

import re

import pytest
from PIL import Image
from tests.patience import PATIENCE, until

from controls import ALL_CONTROLS

STARTS = {control.name: control.start for control in ALL_CONTROLS}


@pytest.fixture
def open_page(browser, server):
    """Open the page in a window of its own, wait for its first pictures; collects what it asks of other machines and
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
        page.locator("[data-psnr='2']").wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()


def shown_psnr(page) -> list[str]:
    return [text.removesuffix(" dB") for text in page.locator("[data-psnr]").all_inner_texts()]


def expect_psnr(page, values: list[float]) -> None:
    """Wait until the page shows these numbers."""
    for i, value in enumerate(values, start=1):
        page.locator(f"[data-psnr='{i}']", has_text=f"{value:.2f} dB").wait_for()


def rebuilt(page) -> list[str]:
    return [image.get_attribute("src") for image in page.locator("#film img[alt^='reconstruction']").all()]


def psnr_of(demo, picture, key, **values) -> list[float]:
    return demo.model.walk(picture, demo.choices[key], {**STARTS, **values}).psnr


def click_until_changed(page, before):
    """Click on the right of the map until the picture of alike patches is another: a click on a page that is still busy
    may be lost."""
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


def test_page_shows_the_model_s_numbers_and_follows_slider_upload_and_tabs(
    open_page, demo, examples, picture_files, make_picture
):
    page = open_page()
    fish = Image.open(examples["fish"]).convert("RGB")
    expect_psnr(page, psnr_of(demo, fish, "rotation"))
    before = rebuilt(page)

    number = page.locator("#slider-angle input[type=number]")  # the slider moves, and the pictures change
    number.fill("-20")
    number.press("Enter")
    expect_psnr(page, psnr_of(demo, fish, "rotation", angle=-20))
    assert rebuilt(page) != before
    page.wait_for_url(re.compile("picture=fish&transformation=rotation&angle=-20"))

    page.locator("#picture input[type=file]").set_input_files(str(picture_files[5]))  # a picture of one's own
    expect_psnr(page, psnr_of(demo, make_picture(5), "rotation", angle=-20))
    page.wait_for_url(re.compile(r"\?transformation=rotation&angle=-20"))  # which is in no link

    page.get_by_role("tab", name="What each part knows").click()
    assert page.locator("[data-true='angle']").inner_text() == "-20.0°"
    (reading,) = _readings(demo, make_picture(5), angle=-20)
    assert page.locator("[data-equivariant='angle']").inner_text().startswith(f"{reading.read['equivariant'][-1]:.1f}°")

    page.get_by_role("tab", name="Patch maps").click()
    first = page.locator("#alike img").first.get_attribute("src")
    click_until_changed(page, first)
    assert page.locator("#patch-column input[type=number]").input_value() == "4"

    page.get_by_role("tab", name="Use it").click()
    page.locator("#snippet", has_text='make_path("se2+color_jitter"), torch.tensor([[-0.349066, 0, 0').wait_for()
    assert page.foreign == [] and page.broken == []


def _readings(demo, picture, **values):
    from probe import readings

    choice = demo.choices["rotation"]
    return readings(choice, demo.model.walk(picture, choice, {**STARTS, **values}), demo.probe)


def test_link_opens_what_its_sender_saw(open_page, demo, examples):
    page = open_page("?picture=house&transformation=se2%2Bcolor_jitter&angle=10&hue=-30")
    house = Image.open(examples["house"]).convert("RGB")
    expect_psnr(page, psnr_of(demo, house, "se2+color_jitter", angle=10, hue=-30))
    assert page.locator("#slider-hue input[type=number]").input_value() == "-30"


def test_bad_upload_gets_a_message_and_the_page_goes_on(open_page, tmp_path, demo, picture_files, make_picture):
    page = open_page()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.locator("#picture input[type=file]").set_input_files(str(tmp_path / "broken.png"))
    page.get_by_text("This file cannot be read as a picture").first.wait_for()
    page.locator("#picture input[type=file]").set_input_files(str(picture_files[6]))
    expect_psnr(page, psnr_of(demo, make_picture(6), "rotation"))


def test_two_visitors_at_once_see_their_own_pictures(open_page, demo, picture_files, make_picture):
    pages = [open_page(), open_page()]
    for page, i in zip(pages, (7, 8), strict=True):
        page.locator("#picture input[type=file]").set_input_files(str(picture_files[i]))
    for page, i in zip(pages, (7, 8), strict=True):
        expect_psnr(page, psnr_of(demo, make_picture(i), "rotation"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_and_can_be_read_without_seeing_and_without_a_mouse(open_page, scheme):
    page = open_page(f"?__theme={scheme}", viewport={"width": 390, "height": 844}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    missing = page.evaluate("[...document.querySelectorAll('img')].filter(i => i.offsetParent && !i.alt).length")
    assert missing == 0
    dark = page.evaluate("document.body.classList.contains('dark')")
    assert dark == (scheme == "dark")
    slider = page.locator("#player input[type=range]")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator(".player").evaluate("e => getComputedStyle(e).getPropertyValue('--frame')") == "5"
    page.locator("#player button").focus()
    page.keyboard.press("Enter")
    assert page.locator(".player").evaluate("e => e.getAnimations().length") == 1
