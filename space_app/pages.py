"""Numbers and pictures -> the page's HTML. Pictures travel inside of it, so that none is left in a file of the
server."""

from __future__ import annotations

import base64
import io

import torch
from PIL import Image

from controls import Control
from probe import Reading
from walk import MAX_PSNR, PARTS, Walk

ERROR_RANGE = 0.5  # mean absolute error of the channels that the error map shows as its brightest colour
_HEAT = torch.tensor([[0, 0, 0], [0.34, 0.06, 0.43], [0.74, 0.21, 0.33], [0.98, 0.55, 0.04], [0.99, 1.0, 0.64]])
PART_COLOURS = {"equivariant": "#e07b00", "invariant": "#2f7ed8"}


def heat(values: torch.Tensor) -> torch.Tensor:
    """(H, W) in [0, 1] -> colours (3, H, W) from black over red to light yellow."""
    position = values.clamp(0, 1) * (len(_HEAT) - 1)
    low = position.floor().long().clamp(max=len(_HEAT) - 2)
    colours = torch.lerp(_HEAT[low], _HEAT[low + 1], (position - low)[..., None])
    return colours.permute(2, 0, 1)


def to_pil(image: torch.Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] -> picture."""
    return Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def data_uri(image: torch.Tensor) -> str:
    """(3, H, W) in [0, 1] -> WebP in a data: address; without loss where it is small."""
    buffer = io.BytesIO()
    if image.shape[-2] <= 96:
        to_pil(image).save(buffer, "WEBP", lossless=True)
    else:
        to_pil(image).save(buffer, "WEBP", quality=90)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _cell(image: torch.Tensor, alt: str, caption: str, kind: str = "") -> str:
    return f'<figure class="cell {kind}"><img src="{data_uri(image)}" alt="{alt}"><figcaption>{caption}</figcaption></figure>'


def _note(text: str) -> str:
    return f'<p class="note">{text}</p>'


def _fraction(step: int, num_states: int) -> str:
    return f"{step}/{num_states + 1}"


def film(walk: Walk) -> str:
    """The two views, the true states between them, the reconstructions below and their error maps below these."""
    k = len(walk.states)
    head = [_cell(walk.images[0], "first view: the picture itself", "<b>start</b> v1, seen", "seen")]
    head += [
        _cell(walk.images[step], f"true state {_fraction(i, k)} of the way", f"<b>{_fraction(i, k)}</b> u{i}, hidden")
        for i, step in enumerate(walk.states, start=1)
    ]
    head.append(_cell(walk.images[-1], "end view: the picture transformed", "<b>end</b> v2, seen", "seen"))
    made = [
        _cell(
            image,
            f"reconstruction of the state {_fraction(i, k)} of the way, {value:.2f} dB",
            f'<b data-psnr="{i}">{value:.2f} dB</b>',
        )
        for i, (image, value) in enumerate(zip(walk.reconstructions, walk.psnr, strict=True), start=1)
    ]
    maps = []
    for i, (image, step) in enumerate(zip(walk.reconstructions, walk.states, strict=True), start=1):
        error = (image - walk.images[step]).abs().mean(dim=0)
        maps.append(
            _cell(
                heat(error / ERROR_RANGE),
                f"error map of the state {_fraction(i, k)} of the way",
                f"mean {error.mean():.3f}",
            )
        )
    rows = [
        ("The true path", head),
        (
            "Rebuilt from the equivariant part",
            [_note("The model sees <b>v1</b> …"), *made, _note("… and <b>v2</b>, nothing between.")],
        ),
        (f"Error, black 0 to yellow {ERROR_RANGE:g}", ["<span></span>", *maps, "<span></span>"]),
    ]
    body = "".join(
        f'<h3>{title}</h3><div class="strip" style="--n:{k + 2}">{"".join(cells)}</div>' for title, cells in rows
    )
    return f'<div class="film">{body}{_film_text(walk)}</div>'


def _film_text(walk: Walk) -> str:
    if min(walk.nearest_psnr) == MAX_PSNR:
        return '<p class="verdict">Nothing moves here: start, states and end are one picture.</p>'
    gains = [made - copied for made, copied in zip(walk.psnr, walk.nearest_psnr, strict=True)]
    copied = " and ".join(f"{value:.2f}" for value in walk.nearest_psnr)
    verdict = "better" if min(gains) > 0 else "worse" if max(gains) < 0 else "partly better, partly worse"
    return (
        f'<p class="verdict">Showing whichever of v1 and v2 is closer would reach {copied} dB: the reconstructions are {verdict}. '
        "PSNR compares pixels; more is better, 3 dB is half the squared error.</p>"
    )


def _sheet(images: torch.Tensor) -> str:
    """Frames (T, 3, H, W) side by side, for a window that shows one of them."""
    return data_uri(torch.cat(list(images), dim=-1))


_SCRUB = (
    "this.closest('.player').classList.add('held'); this.closest('.player').style.setProperty('--frame', this.value)"
)
_PLAY = (
    "const p = this.closest('.player'), held = p.classList.toggle('held'); p.style.removeProperty('--frame');"
    "if (!held) { p.classList.remove('run'); void p.offsetWidth; p.classList.add('run') }"
)


def player(walk: Walk) -> str:
    """The last state while the end view moves along the path: plays by itself, stops, and follows a slider."""
    count, k = len(walk.fractions), len(walk.states)
    windows = [
        (walk.images, "end view, seen"),
        (walk.sweep_targets, f"true state {_fraction(k, k)}, hidden"),
        (walk.sweep, "rebuilt"),
    ]
    cells = "".join(
        f'<figure class="cell"><div class="window" role="img" aria-label="{title}, moving along the path" '
        f"style=\"background-image:url('{_sheet(images)}')\"></div><figcaption>{title}</figcaption></figure>"
        for images, title in windows
    )
    return (
        f'<div class="player run" style="--count:{count};--steps:{count};--last:{count - 1}">'
        "<h3>Move the end, and the rebuilt state follows</h3>"
        f'<div class="strip" style="--n:3">{cells}</div><div class="bar">'
        f'<button type="button" onclick="{_PLAY}" aria-label="play or stop">▶ / ■</button>'
        f'<input type="range" min="0" max="{count - 1}" step="1" value="{count - 1}" aria-label="how far the end view is moved" '
        f'oninput="{_SCRUB}"></div></div>'
    )


def readings_table(readings: list[Reading], num_fitted: int) -> str:
    """True parameters beside what the read-out of each part says; none where the model was not trained on the
    transformation."""
    if not readings:
        return _note(
            "The read-outs know only the transformations that this model was trained on, and this is another one. The curve below still "
            "shows how much each part moves."
        )
    rows = "".join(
        f'<tr><th scope="row">{reading.control.label}</th>'
        f'<td data-true="{reading.control.name}">{with_unit(reading.true, reading.control)}</td>'
        + "".join(
            f'<td data-{part}="{reading.control.name}">{with_unit(reading.read[part][-1], reading.control)} '
            f"<small>R² {reading.r2[part]:.2f}</small></td>"
            for part in PARTS
        )
        + "</tr>"
        for reading in readings
    )
    heads = "".join(f'<th scope="col"><span class="dot {part}"></span> {part} part says</th>' for part in PARTS)
    about = _note(
        f"What a part says is read by a ridge regression on its pooled features of the two views, fitted on {num_fitted} drawn sprites "
        "when this page first started, not on photographs. R² is measured on other sprites: 1 is perfect, 0 is always guessing the mean."
    )
    head = f'<thead><tr><th scope="col"></th><th scope="col">true</th>{heads}</tr></thead>'
    return f'<div class="readings"><table>{head}<tbody>{rows}</tbody></table>{about}</div>'


def with_unit(value: float, control: Control) -> str:
    """A slider's value with a short unit: 12.3°, 1.20×, 4.0 %, 1.8 px."""
    if control.unit.startswith("%"):
        return f"{value:.1f} %"
    return f"{value:.2f}×" if control.unit == "×" else f"{value:.1f}°" if control.unit == "°" else f"{value:.1f} px"


def colour_maps(maps: dict[str, torch.Tensor]) -> str:
    """Principal components as colours (2, h, w, 3) by part: the first view's and the end view's patches."""
    images = {part: values.permute(0, 3, 1, 2) for part, values in maps.items()}
    return _pairs(images, "main directions of the {part} part as colours, {view}")


def similarity_maps(maps: dict[str, torch.Tensor], row: int, column: int) -> str:
    """Similarities (2, h, w) by part to the patch at row and column of the first view, marked there; 0 and below is
    black."""
    marked = (
        f'<span class="mark" style="--row:{row};--column:{column};--grid:{next(iter(maps.values())).shape[-1]}"></span>'
    )
    images = {part: torch.stack([heat(values) for values in pair]) for part, pair in maps.items()}
    return _pairs(images, f"similarity of the {{part}} part to row {row + 1}, column {column + 1}, {{view}}", marked)


def _pairs(images: dict[str, torch.Tensor], alt: str, mark: str = "") -> str:
    cells = []
    for part in PARTS:
        for image, view, extra in zip(images[part], ("start", "end"), (mark, ""), strict=True):
            picture = f'<img class="patches" src="{data_uri(image)}" alt="{alt.format(part=part, view=view)}">'
            caption = f"<figcaption><b>{part}</b>, {view}</figcaption>"
            cells.append(f'<figure class="cell"><div class="frame">{picture}{extra}</div>{caption}</figure>')
    return f'<div class="strip pairs" style="--n:4">{"".join(cells)}</div>'
