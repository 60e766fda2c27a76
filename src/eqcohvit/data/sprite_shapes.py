"""The shapes of sprites as signed distance functions: float32 (b, s, s) -> (b, s, s), negative inside, in the unit of
the bounding circle's radius.

Local coordinates: x right, y up, upright. None of the shapes is symmetric under any rotation.
"""

from collections.abc import Callable

import numpy as np


def _length(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y)


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    """Exact inside and on the faces, a lower bound beyond the corners, which is all that edges and soft shadows
    need."""
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _half_plane(x: np.ndarray, y: np.ndarray, x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """Negative to the left of the line from (x0, y0) to (x1, y1)."""
    nx, ny = y1 - y0, x0 - x1
    norm = float(np.hypot(nx, ny))
    return x * (nx / norm) + y * (ny / norm) - (nx * x0 + ny * y0) / norm


def _segment(x: np.ndarray, y: np.ndarray, x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """Distance to a line segment."""
    dx, dy = x1 - x0, y1 - y0
    px, py = x - x0, y - y0
    t = np.clip((px * dx + py * dy) / (dx * dx + dy * dy), 0.0, 1.0)
    return _length(px - t * dx, py - t * dy)


def _arrow(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    head = np.maximum(_half_plane(x, y, 0.72, 0.08, 0.0, 0.98), 0.08 - y)
    return np.minimum(head, _box(x, y + 0.3, 0.26, 0.65))


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x) / 1.55, (y + 0.86) / 1.55
    lobe = _length(x - 0.25, y - 0.75) - 0.35355339
    fold = 0.5 * np.maximum(x + y, 0.0)
    point = np.minimum(_length(x, y - 1.0), _length(x - fold, y - fold))
    return 1.55 * np.where(x + y > 1.0, lobe, np.where(x > y, point, -point))


def _drop(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), y + 0.36
    radius, height = 0.6, 1.34  # of the ball at the origin; of the tip above it
    sine, cosine = radius / height, float(np.sqrt(1.0 - (radius / height) ** 2))
    side = sine * y + cosine * x - radius
    return np.where(cosine * y > sine * x, side, _length(x, y) - radius)


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A disc of radius 0.9 minus one of radius 0.72, open to the upper right; round the two tips the distance to the
    nearer one."""
    x, y = 0.96 * (x + 0.06) + 0.28 * y, np.abs(0.96 * y - 0.28 * (x + 0.06))
    outer, inner, offset = 0.9, 0.72, 0.43
    tip_x = (outer**2 - inner**2 + offset**2) / (2.0 * offset)
    tip_y = float(np.sqrt(outer**2 - tip_x**2))
    beyond = x * tip_y - y * tip_x > offset * np.maximum(tip_y - y, 0.0)
    return np.where(
        beyond, _length(x - tip_x, y - tip_y), np.maximum(_length(x, y) - outer, inner - _length(x - offset, y))
    )


def _key(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    ring = np.abs(_length(x, y - 0.52) - 0.31) - 0.14
    shaft = _box(x, y + 0.38, 0.12, 0.54)
    teeth = np.minimum(_box(x - 0.22, y + 0.8, 0.22, 0.12), _box(x - 0.19, y + 0.44, 0.19, 0.11))
    return np.minimum(np.minimum(ring, shaft), teeth)


def _house(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    walls = np.maximum(_box(x, y + 0.3, 0.58, 0.5), -_box(x + 0.18, y + 0.56, 0.15, 0.28))
    mirrored = np.abs(x)
    roof = np.maximum(_half_plane(mirrored, y, 0.88, -0.02, 0.0, 0.84), -0.02 - y)
    chimney = _box(x - 0.46, y - 0.42, 0.12, 0.36)
    return np.minimum(np.minimum(walls, roof), chimney)


def _fish(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    mirrored = np.abs(y)
    body = _length(x - 0.22, mirrored + 0.42) - 0.86
    tail = np.maximum((mirrored + 0.75 * (x + 0.25)) * 0.8, -0.92 - x)
    tail = np.maximum(tail, (1.4 * (-0.7 - x) - mirrored) * 0.58)
    fin = np.maximum(
        _half_plane(x, y, 0.35, 0.35, -0.1, 0.72), np.maximum(_half_plane(x, y, -0.1, 0.72, -0.2, 0.3), 0.2 - y)
    )
    return np.maximum(np.minimum(np.minimum(body, tail), fin), 0.1 - _length(x - 0.6, y - 0.1))


def _flag(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    pole = _box(x + 0.5, y, 0.09, 0.86)
    cloth = np.maximum(_box(x - 0.1, y - 0.42, 0.58, 0.38), (1.2 * (x - 0.36) - np.abs(y - 0.42)) * 0.64)
    return np.minimum(pole, cloth)


def _letter_r(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    stem = _box(x + 0.4, y, 0.14, 0.88)
    bowl = _length(np.maximum(x - 0.08, 0.0), y - 0.42)
    bowl = np.maximum(np.abs(bowl - 0.33) - 0.13, -0.4 - x)
    leg = _segment(x, y, -0.05, 0.0, 0.45, -0.74) - 0.14
    return np.minimum(np.minimum(stem, bowl), leg)


def _mushroom(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    cap = np.maximum(_length(x * 0.9, y - 0.08) - 0.76, 0.08 - y)
    stem = np.maximum((np.abs(x) + 0.14 * y - 0.22) * 0.99, np.abs(y + 0.29) - 0.59)
    return np.minimum(cap, stem)


ShapeDistance = Callable[[np.ndarray, np.ndarray], np.ndarray]
SHAPE_DISTANCES: dict[str, ShapeDistance] = {
    "arrow": _arrow,
    "heart": _heart,
    "drop": _drop,
    "crescent": _crescent,
    "key": _key,
    "house": _house,
    "fish": _fish,
    "flag": _flag,
    "letter_r": _letter_r,
    "mushroom": _mushroom,
}
SHAPES: tuple[str, ...] = tuple(SHAPE_DISTANCES)
