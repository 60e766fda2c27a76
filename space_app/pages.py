"""Numbers and pictures -> the page's HTML. Pictures are embedded in it, so the server keeps no file of them."""

from __future__ import annotations

import base64
import html
import io

import torch
from PIL import Image

from controls import Choice
from neighbors import Neighbors
from readings import Reading, verdict
from walk import MAX_PSNR, PARTS, Walk

_HEAT = torch.tensor([[0, 0, 0], [0.34, 0.06, 0.43], [0.74, 0.21, 0.33], [0.98, 0.55, 0.04], [0.99, 1.0, 0.64]])


def heat(values: torch.Tensor) -> torch.Tensor:
    """(H, W) in [0, 1] -> colors (3, H, W) from black over red to light yellow."""
    position = values.clamp(0, 1) * (len(_HEAT) - 1)
    low = position.floor().long().clamp(max=len(_HEAT) - 2)
    colors = torch.lerp(_HEAT[low], _HEAT[low + 1], (position - low)[..., None])
    return colors.permute(2, 0, 1)


def to_pil(image: torch.Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] -> picture."""
    return Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def data_uri(image: torch.Tensor) -> str:
    """(3, H, W) in [0, 1] -> data: address of a PNG if it is small, else of a JPEG; both are fast to make."""
    buffer = io.BytesIO()
    kind = "png" if image.shape[-2] <= 64 else "jpeg"
    to_pil(image).save(buffer, kind, **({"compress_level": 1} if kind == "png" else {"quality": 88}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _cell(image: torch.Tensor, alt: str, caption: str, kind: str = "") -> str:
    picture = f'<img src="{data_uri(image)}" alt="{alt}">'
    return f'<figure class="cell {kind}">{picture}<figcaption>{caption}</figcaption></figure>'


def _note(text: str) -> str:
    return f'<p class="note">{text}</p>'


def _fraction(step: int, num_states: int) -> str:
    return f"{step}/{num_states + 1}"


def empty(message: str) -> str:
    """In place of the pictures: what is wrong with the visitor's file, or what to do."""
    return f'<div class="empty"><b>No picture to show</b><p>{html.escape(message)}</p></div>'


def stage(choice: Choice, images: torch.Tensor, values: dict[str, float], rows: list[Reading], num_tested: int) -> str:
    """The upper part of the page: start, end, and the end as each part sees it, with the verdict.

    images: (2 or 4, 3, H, H). Without readings only the first two are there.
    """
    moved = ", ".join(control.text(values[control.name]) for control in choice.controls.values())
    moved = moved if len(choice.controls) <= 3 else "all sliders"
    cells = [
        _cell(images[0], "your picture", "<b>Start</b>"),
        _cell(images[1], "your picture, moved", f'<b>Moved</b> <span data-moved="{moved}">{moved}</span>'),
    ]
    if rows:
        cells += [_part(part, image, rows) for part, image in zip(PARTS, images[2:], strict=True)]
        text = verdict(choice, rows)
        tested = _tested(rows, num_tested)
    else:
        name = choice.label.rsplit(": ", 1)[-1]
        text = f"This model was not trained on {name}, so nothing reads it from the parts."
        tested = _note("The nearest pictures below still show how each part reacts.")
    title = f'<p class="verdict">{text}</p>'
    return f'<div class="stage">{title}<div class="strip" style="--n:4">{"".join(cells)}</div>{tested}</div>'


def _part(part: str, image: torch.Tensor, rows: list[Reading]) -> str:
    """A part's view of the motion: the picture moved by what it says, a sentence, and a gauge for each slider."""
    gauges = "".join(_gauge(part, row, named=len(rows) > 1) for row in rows)
    caption = f'<b><span class="dot {part}"></span> {part.capitalize()} part</b>{gauges}'
    return _cell(image, f"your picture, moved as the {part} part says", caption, f"part {part}")


def _gauge(part: str, row: Reading, named: bool) -> str:
    """The sentence, and a scale with the true value as a line and the part's value as a dot."""
    control = row.control
    said = row.said[part]
    kind = row.sentence(part).split(":")[0].replace(" ", "-")
    label = f"{control.label}: " if named else ""
    true = control.text(row.true)
    return (
        f'<div class="gauge" data-part="{part}" data-control="{control.name}" data-said="{said:.4f}" '
        f'data-true="{row.true:.4f}"><span class="sentence {kind}">{label}{row.sentence(part)}</span>'
        f'<span class="scale" role="img" aria-label="true {true}, the {part} part says {control.text(said)}">'
        f'<i class="true" style="left:{100 * control.share(row.true):.2f}%"></i>'
        f'<i class="said {part}" style="left:{100 * control.share(said):.2f}%"></i></span>'
        f"<small>says {control.text(said)}, true {true}</small></div>"
    )


def _tested(rows: list[Reading], num_tested: int) -> str:
    parts = []
    for part in PARTS:
        r2 = sum(row.r2[part] for row in rows) / len(rows)
        error = f", mean error {rows[0].control.text(rows[0].error[part])}" if len(rows) == 1 else ""
        parts.append(f'{part} R² <b data-r2="{part}">{r2:.2f}</b>{error}')
    return _note(
        f"Small networks, fitted on other pictures, read the motion from each part. On {num_tested} moves of the "
        f"examples: {'; '.join(parts)}. R² of 1 is perfect, 0 is a guess."
    )


def neighbors(choice: Choice, found: dict[str, Neighbors]) -> str:
    """Two rows of thumbnails: what is nearest to the moved picture in each part."""
    invariant = found["invariant"]
    equivariant = found["equivariant"]
    count = len(invariant.nearest)
    same = f"{invariant.num_same} of {count} show the same thing in another pose"
    off = _pose(choice, equivariant.distance)
    near = f"other things, {off} away from this pose on average ({_pose(choice, equivariant.chance)} by chance)"
    return (
        '<div class="neighbors"><h3>Nearest pictures</h3>'
        f"{_row('invariant', 'What is it?', same, choice, invariant)}"
        f"{_row('equivariant', 'How did it move?', near, choice, equivariant)}</div>"
    )


def _row(part: str, question: str, result: str, choice: Choice, found: Neighbors) -> str:
    cells = []
    for neighbor in found.nearest:
        texts = [control.text(neighbor.values[control.name]) for control in choice.controls.values()]
        pose = f" {texts[0]}" if len(texts) == 1 else ""
        kind = "same" if neighbor.is_same else "other"
        cells.append(_cell(neighbor.image, f"{neighbor.name}{pose}", f"{neighbor.name}{pose}", kind))
    return (
        f'<div class="near {part}" data-near="{part}"><p><b><span class="dot {part}"></span> {part.capitalize()} part: '
        f'{question}</b> <span class="result">{result}</span></p>'
        f'<div class="strip" style="--n:{len(cells)}">{"".join(cells)}</div></div>'
    )


def _pose(choice: Choice, distance: float) -> str:
    """A distance in pose, in the slider's units for a single slider, else in percent of the ranges."""
    controls = list(choice.controls.values())
    if len(controls) > 1 or controls[0].unit.sign == "×":
        return f"{100 * distance:.0f} % of the range"
    return controls[0].text(distance * (controls[0].high - controls[0].low))


def film(walk: Walk, is_unusual: bool) -> str:
    """The two views, the true states between them, and the reconstructions below.

    is_unusual: whether the model was trained with black corners and these views have none.
    """
    k = len(walk.states)
    head = [_cell(walk.images[0], "first view: the picture", "<b>start</b>, seen", "seen")]
    head += [
        _cell(walk.images[step], f"true state {_fraction(i, k)} of the way", f"<b>{_fraction(i, k)}</b>, hidden")
        for i, step in enumerate(walk.states, start=1)
    ]
    head.append(_cell(walk.images[-1], "end view: the moved picture", "<b>end</b>, seen", "seen"))
    made = [
        _cell(
            image,
            f"reconstruction of the state {_fraction(i, k)} of the way, {value:.2f} dB",
            f'<b data-psnr="{i}">{value:.2f} dB</b>',
        )
        for i, (image, value) in enumerate(zip(walk.reconstructions, walk.psnr, strict=True), start=1)
    ]
    note = "In training the equivariant part had to rebuild what neither view shows: the states between them."
    rows = [
        ("The true path, as the model sees it", head),
        ("Rebuilt from the equivariant part", ["<span></span>", *made, "<span></span>"]),
    ]
    body = "".join(
        f'<h3>{title}</h3><div class="strip" style="--n:{k + 2}">{"".join(cells)}</div>' for title, cells in rows
    )
    hint = _note("The decoders were trained with black corners. Switch them on to compare.") if is_unusual else ""
    return f'<div class="film">{_note(note)}{body}{_film_text(walk)}{hint}</div>'


def _film_text(walk: Walk) -> str:
    if min(walk.nearest_psnr) == MAX_PSNR:
        return _note("Nothing moves here: start, states and end are the same picture.")
    gains = [made - copied for made, copied in zip(walk.psnr, walk.nearest_psnr, strict=True)]
    copied = " and ".join(f"{value:.2f}" for value in walk.nearest_psnr)
    comparison = "better" if min(gains) > 0 else "worse" if max(gains) < 0 else "partly better, partly worse"
    return _note(
        f"A copy of the start or the end, whichever is closer, reaches {copied} dB: the reconstructions are "
        f"{comparison}. PSNR compares pixels; more is better, and 3 dB is half the squared error."
    )


def color_maps(maps: dict[str, torch.Tensor]) -> str:
    """Principal components as colors (2, h, w, 3) by part: the first view's and the end view's patches."""
    images = {part: values.permute(0, 3, 1, 2) for part, values in maps.items()}
    return _pairs(images, "main directions of the {part} part as colors, {view}")


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
