#!/usr/bin/env python
"""Make the README's animation of the demo, .github/space.gif: start the page, and move its slider in a headless
Chromium.

    python scripts/space_pictures.py --output_dir .github

Needs the extras `space` and `dev`, and Chromium of the system.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

_ROOT = Path(__file__).parent.parent
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_QUERY = "?__theme=light&picture=house&transformation=rotation&angle="
_ANGLES = [*range(-45, 46, 9), *range(36, -45, -9)]  # there and back
_WIDTH = 860  # of the animation, in pixels


def start_page(model: str | None) -> tuple[subprocess.Popen, str]:
    """The page in a separate process, and its address once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(_ROOT / "space_app" / "app.py"), *(["--model", model] if model else [])]
    process = subprocess.Popen(command, env={**os.environ, "GRADIO_SERVER_PORT": str(port)})
    url = f"http://127.0.0.1:{port}/"
    while process.poll() is None:
        try:
            urllib.request.urlopen(url).read()
            return process, url
        except urllib.error.URLError:
            time.sleep(0.5)
    raise ValueError(f"the page did not start: exit code {process.returncode}")


def animate(page: Page) -> list[Image.Image]:
    """The first screen while the slider goes there and back."""
    frames = []
    number = page.locator("#slider-angle input[type=number]")
    for angle in _ANGLES:
        number.fill(str(angle))
        number.press("Enter")
        page.locator(f".gauge[data-true='{angle:.4f}']").first.wait_for()
        page.wait_for_timeout(400)  # until the images are decoded
        frame = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        frames.append(frame.resize((_WIDTH, round(frame.height * _WIDTH / frame.width)), Image.Resampling.LANCZOS))
    palette = frames[len(frames) // 4].quantize(160)
    return [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", help="model to show; default: the page's own")
    parser.add_argument("--output_dir", type=Path, default=_ROOT / ".github", help="default: .github")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise ValueError("Chromium is needed: apt-get install chromium")
    process, url = start_page(args.model)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=_FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 960}, reduced_motion="reduce")
            page.set_default_timeout(600_000)  # a busy machine is slow
            page.goto(f"{url}{_QUERY}-40")
            page.locator(".gauge").first.wait_for()
            page.wait_for_timeout(2000)
            frames = animate(page)
            browser.close()
    finally:
        process.terminate()
        process.wait()
    file = args.output_dir / "space.gif"
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=220, loop=0, optimize=True)
    print(f"{file}: {file.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    try:
        main(parse())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
