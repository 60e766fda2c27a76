#!/usr/bin/env python
"""Render the demo's example pictures: small scenes with light, shade and texture, drawn by this code.

python scripts/space_examples.py --output_dir space_app/examples
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE = 384  # of the files, in pixels
_SCALE = 2  # scenes are painted this much larger, then reduced
_N = SIDE * _SCALE
_Y, _X = np.mgrid[0:_N, 0:_N] / _N  # from 0 to 1, downwards and to the right


def noise(seed: int, slope: float = 1.6, flatness: float = 1.0) -> np.ndarray:
    """Fractal noise (N, N) with mean 0 and deviation 1; a `flatness` below 1 draws it out sideways."""
    draw = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(_N)[:, None], np.fft.rfftfreq(_N) / flatness) * _N
    amplitude = 1 / np.maximum(frequency, 1) ** slope
    amplitude[0, 0] = 0
    phases = np.exp(2j * np.pi * draw.random(amplitude.shape))
    field = np.fft.irfft2(amplitude * phases, s=(_N, _N))
    return field / field.std()


def rgb(text: str) -> np.ndarray:
    return np.array([int(text[i : i + 2], 16) for i in (0, 2, 4)]) / 255


def mix(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Colors blended by a map of shares (N, N)."""
    share = np.clip(share, 0, 1)[..., None]
    return first * (1 - share) + second * share


def gradient(*stops: tuple[float, str]) -> np.ndarray:
    """Colors from top to bottom, given at heights from 0 to 1."""
    places = [place for place, _ in stops]
    colors = np.array([rgb(color) for _, color in stops])
    return np.stack([np.interp(_Y, places, colors[:, c]) for c in range(3)], axis=-1)


def shape(points: list[tuple[float, float]], soft: float = 0.6) -> np.ndarray:
    """Mask (N, N) of a polygon with corners in [0, 1]."""
    mask = Image.new("L", (_N, _N))
    ImageDraw.Draw(mask).polygon([(x * _N, y * _N) for x, y in points], fill=255)
    return np.asarray(mask.filter(ImageFilter.GaussianBlur(soft))) / 255


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return shape([(left, top), (right, top), (right, bottom), (left, bottom)])


def disc(x: float, y: float, rx: float, ry: float | None = None, soft: float = 0.003) -> np.ndarray:
    """Mask of an ellipse."""
    distance = np.hypot((_X - x) / rx, (_Y - y) / (ry or rx))
    return np.clip((1 - distance) * rx / soft + 0.5, 0, 1)


def cover(
    picture: np.ndarray, mask: np.ndarray, color: np.ndarray | str, light: np.ndarray | float = 1.0
) -> np.ndarray:
    """The picture with a shape of this color, or texture, laid over it."""
    color = rgb(color) if isinstance(color, str) else color
    lit = np.clip(color * (light[..., None] if isinstance(light, np.ndarray) else light), 0, 1)
    return picture * (1 - mask[..., None]) + lit * mask[..., None]


def clouds(picture: np.ndarray, seed: int, lowest: float, amount: float = 0.0, color: str = "ffffff") -> np.ndarray:
    """Clouds over the part above `lowest`."""
    field = noise(seed, 1.75, 0.45) + 0.15 * noise(seed + 1, 1.0, 0.6)
    thickness = np.clip((field - 0.5 + amount) * 0.75, 0, 1) * np.clip((lowest - _Y) * 5, 0, 1)
    shade = 0.86 + 0.14 * np.clip(field - np.roll(field, -14, axis=0) + 0.6, 0, 1)
    return cover(picture, thickness * 0.92, color, shade)


def ridge(seed: int, height: float, rough: float, slope: float = 1.7) -> np.ndarray:
    """Mask of everything below a rugged line."""
    line = height + rough * noise(seed, slope)[0]
    return np.clip((_Y - line[None]) * _N / 1.5, 0, 1)


def mirrored(picture: np.ndarray, level: float, seed: int, tint: str, darkness: float = 0.75) -> np.ndarray:
    """The picture with water below `level`, which mirrors what is above it."""
    ripples = noise(seed, 1.0, 0.06) * (_Y - level + 0.01) * 0.035
    source = np.clip(2 * level - _Y + ripples, 0, level - 0.002)
    sideways = np.clip(_X + ripples * 0.3, 0, 0.999)
    reflection = picture[(source * _N).astype(int), (sideways * _N).astype(int)]
    water = mix(reflection * darkness, rgb(tint), 0.18 + 0.5 * np.clip(_Y - level, 0, 1))
    glints = np.clip(noise(seed + 1, 0.8, 0.05) - 1.5, 0, 1) * np.clip((_Y - level) * 6, 0, 1)
    return cover(picture, (level <= _Y).astype(float), water + 0.25 * glints[..., None])


def globe(x: float, y: float, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A ball lit from the upper left: its mask, its light and its highlight."""
    u = (_X - x) / radius
    v = (_Y - y) / radius
    depth = np.sqrt(np.clip(1 - u**2 - v**2, 0, 1))
    lambert = np.clip(-0.5 * u - 0.6 * v + 0.62 * depth, 0, 1)
    bounce = 0.12 * np.clip(v, 0, 1)
    highlight = np.clip(-0.36 * u - 0.46 * v + 0.81 * depth, 0, 1) ** 60
    return disc(x, y, radius), 0.22 + 0.95 * lambert + bounce, highlight


# ------------------------------------------------------------------------------------------------------------ scenes


def mountains() -> np.ndarray:
    picture = gradient((0, "3f6fa8"), (0.3, "9db9cf"), (0.5, "f4d6ac"), (0.62, "f7b27a"), (1, "f7b27a"))
    glow = np.exp(-(((_X - 0.68) / 0.3) ** 2 + ((_Y - 0.44) / 0.22) ** 2))
    picture = mix(picture, rgb("ffe9b8"), 0.8 * glow)
    picture = cover(picture, disc(0.68, 0.42, 0.045, soft=0.01), "fffbe6")
    picture = clouds(picture, 3, 0.45, -0.2, "ffe6cf")
    layers = [
        (11, 0.42, 0.06, "8fa0bd"),
        (26, 0.47, 0.05, "6d7f9f"),
        (38, 0.54, 0.03, "4a6070"),
        (44, 0.6, 0.018, "2c453f"),
    ]
    for seed, height, rough, color in layers:
        relief = noise(seed + 100, 1.5)
        light = 1 + 0.9 * np.clip(relief - np.roll(relief, 9, axis=1), -0.3, 0.3)
        mask = ridge(seed, height, rough)
        picture = cover(picture, mask, color, light)
        if seed == 11:
            line = height + rough * noise(seed, 1.7)[0][None]
            snow = mask * np.clip((0.05 - (_Y - line) + 0.02 * relief) * 40, 0, 1) * np.clip((0.43 - _Y) * 14, 0, 1)
            picture = cover(picture, snow, "f3f4fa", light)
    return mirrored(picture, 0.68, 51, "2b4f66", 0.85)


def boat() -> np.ndarray:
    picture = gradient((0, "3d86cf"), (0.5, "bfe0f2"), (0.58, "e6f1f4"), (1, "e6f1f4"))
    picture = clouds(picture, 60, 0.55, 0.25)
    picture = cover(picture, ridge(62, 0.53, 0.012), "7d98a0")
    waves = noise(63, 1.25, 0.25) * np.clip((_Y - 0.56) * 2, 0.1, 1)
    sea = gradient((0, "2f7f98"), (0.57, "5fb0bd"), (0.75, "1f6f93"), (1, "0d4269"))
    picture = cover(picture, np.clip((_Y - 0.57) * _N / 2, 0, 1), sea, 1 + 0.22 * waves)
    foam = np.clip(waves - 1.15, 0, 1) * (_Y > 0.6)
    picture = cover(picture, np.clip(foam * 2, 0, 0.8), "f4fbfb")
    picture = cover(picture, box(0.497, 0.16, 0.507, 0.67), "5a4030")
    main = shape([(0.515, 0.17), (0.78, 0.6), (0.515, 0.61)])
    jib = shape([(0.487, 0.21), (0.487, 0.61), (0.26, 0.62)])
    picture = cover(picture, main, "f2eee2", 0.78 + 0.5 * (_X - 0.45))
    seams = shape([(0.515, 0.17), (0.78, 0.6), (0.515, 0.61)]) * ((_Y * 13) % 1 < 0.06)
    picture = cover(picture, seams * 0.5, "a99f8c")
    picture = cover(picture, jib, "d8452f", 1.15 - 0.9 * (0.487 - _X))
    hull = shape([(0.22, 0.635), (0.82, 0.635), (0.73, 0.74), (0.32, 0.74)])
    picture = cover(picture, hull, "7c3b22", 1.25 - 2.2 * (_Y - 0.62) + 0.08 * noise(64, 1.2, 0.1))
    picture = cover(picture, hull * (_Y < 0.655), "f0e2c0")
    shadow = disc(0.52, 0.775, 0.3, 0.035, soft=0.12) * (_Y > 0.74)
    return cover(picture, shadow * 0.5, "06304a", 1 + 0.2 * waves)


def house() -> np.ndarray:
    picture = gradient((0, "4c93d9"), (0.6, "cfe6f3"), (1, "cfe6f3"))
    picture = clouds(picture, 70, 0.6, 0.1)
    leaves = noise(71, 1.1)
    picture = cover(picture, ridge(72, 0.57, 0.025), "4f7f45", 1 + 0.25 * leaves)
    lawn = gradient((0, "6fa548"), (0.64, "79ae4b"), (1, "3f7a2c"))
    picture = cover(picture, ridge(73, 0.67, 0.006), lawn, 1 + 0.14 * noise(74, 0.7))
    brick = 1 - 0.16 * (((_Y * 60) % 1 < 0.12) | (((_X * 30 + 0.5 * (np.floor(_Y * 60) % 2)) % 1) < 0.06))
    brick = brick + 0.05 * noise(75, 0.6)
    picture = cover(picture, box(0.28, 0.42, 0.66, 0.76), "c9764f", brick)
    picture = cover(picture, shape([(0.66, 0.42), (0.78, 0.46), (0.78, 0.73), (0.66, 0.76)]), "8f4f35", brick)
    picture = cover(picture, box(0.56, 0.17, 0.62, 0.33), "8a4b33", brick)
    tiles = 1 - 0.22 * ((_Y * 42) % 1 < 0.2) + 0.06 * noise(76, 0.7)
    picture = cover(picture, shape([(0.23, 0.44), (0.47, 0.2), (0.71, 0.44)]), "6d3434", tiles)
    picture = cover(picture, shape([(0.47, 0.2), (0.6, 0.26), (0.81, 0.475), (0.71, 0.44)]), "4a2227", tiles)
    for left in (0.33, 0.54):
        picture = cover(picture, box(left - 0.012, 0.488, left + 0.092, 0.602), "f3ead6")
        picture = cover(picture, box(left, 0.5, left + 0.08, 0.59), "3a5a78", 1.5 - 2.2 * (_X - left) - (_Y - 0.5))
        picture = cover(
            picture, box(left + 0.037, 0.5, left + 0.043, 0.59) + box(left, 0.542, left + 0.08, 0.548), "f3ead6"
        )
    picture = cover(picture, box(0.435, 0.58, 0.515, 0.76), "2f5f4a", 1.1 - 0.3 * ((_X * 40) % 1 < 0.12))
    picture = cover(picture, disc(0.503, 0.675, 0.007), "f2d060")
    picture = cover(
        picture, shape([(0.43, 0.76), (0.52, 0.76), (0.68, 1), (0.36, 1)]), "c7b595", 1 + 0.08 * noise(77, 0.6)
    )
    picture = cover(picture, box(0.875, 0.5, 0.905, 0.79), "5b402b", 1 + 0.2 * noise(78, 0.8))
    for x, y, radius in ((0.89, 0.4, 0.13), (0.82, 0.48, 0.08), (0.96, 0.49, 0.09), (0.88, 0.29, 0.09)):
        mask, light, _ = globe(x, y, radius)
        crown = np.clip(mask + 0.0, 0, 1) * np.clip(1.6 - np.hypot(_X - x, _Y - y) / radius + 0.25 * leaves, 0, 1)
        picture = cover(picture, np.clip(crown * 2, 0, 1), "4c8a35", light * (0.9 + 0.3 * noise(79, 0.8)))
    return picture


def fruit() -> np.ndarray:
    wall = gradient((0, "51607a"), (0.5, "8793a6"), (1, "8793a6")) * (1.1 - 0.5 * _X[..., None])
    picture = wall * (1 + 0.03 * noise(80, 1.0)[..., None])
    grain = np.sin(60 * (_Y * 2.2 + 0.03 * noise(81, 1.6, 0.12))) * 0.06 + 0.1 * noise(82, 1.2, 0.06)
    depth = np.clip((_Y - 0.55) * 2.2, 0, 1)
    picture = cover(picture, np.clip((_Y - 0.56) * _N / 3, 0, 1), "9a6338", (1 + grain) * (0.75 + 0.45 * depth))
    balls = [(0.63, 0.5, 0.17, "e88a1a"), (0.34, 0.55, 0.19, "b3202a"), (0.53, 0.7, 0.125, "8fae2b")]
    for index, (x, y, radius, color) in enumerate(balls):
        shadow = disc(x + 0.11, y + radius * 0.86, radius * 1.25, radius * 0.3, soft=0.1)
        picture = cover(picture, shadow * 0.75 * (_Y > 0.56), "2a170c")
        mask, light, highlight = globe(x, y, radius)
        skin = 1 + (0.05 * noise(83 + index, 0.5) if index == 0 else 0.12 * noise(83 + index, 1.3))
        if index == 1:
            streaks = np.sin(np.arctan2(_X - x, (_Y - y) + 0.16) * 26 + 2 * noise(87, 1.6))
            body = mix(np.broadcast_to(rgb(color), (_N, _N, 3)), rgb("e9b04a"), 0.22 * streaks + 0.12 - (_Y - y))
        else:
            body = np.broadcast_to(rgb(color), (_N, _N, 3))
        picture = cover(picture, mask, body, light * skin)
        picture = np.clip(picture + 0.75 * (mask * highlight)[..., None], 0, 1)
    picture = cover(picture, shape([(0.335, 0.4), (0.35, 0.4), (0.39, 0.28), (0.372, 0.275)]), "4a2f1a")
    leaf = shape([(0.375, 0.31), (0.43, 0.25), (0.51, 0.26), (0.47, 0.32), (0.42, 0.335)], 3)
    picture = cover(picture, leaf, "4f8f3a", 1.25 - 3 * (_Y - 0.25))
    return picture


def balloon() -> np.ndarray:
    picture = gradient((0, "2f6fc0"), (0.7, "d7e6ee"), (1, "f3e4cf"))
    picture = clouds(picture, 90, 0.75, 0.05)
    for seed, height, color in ((91, 0.76, "8ba7b4"), (92, 0.82, "6e9560"), (93, 0.9, "4d7a3a")):
        picture = cover(picture, ridge(seed, height, 0.02), color, 1 + 0.15 * noise(seed + 9, 1.1, 0.3))
    x, y, radius = 0.47, 0.36, 0.255
    narrowed = np.where(y < _Y, 1 - 0.62 * np.clip((_Y - y) / 0.34, 0, 1) ** 1.5, 1)
    u = (_X - x) / (radius * narrowed)
    v = np.where(y < _Y, (_Y - y) / 0.34, (_Y - y) / radius)
    inside = np.where(y < _Y, np.abs(u) < np.sqrt(np.clip(1 - 0.35 * v**2, 0, 1)), u**2 + v**2 < 1) & (y + 0.33 > _Y)
    mask = np.asarray(Image.fromarray((inside * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))) / 255
    gore = np.floor((np.arcsin(np.clip(u, -1, 1)) / np.pi + 0.5) * 9).astype(int) % 3
    colors = np.stack([rgb("d63a2f"), rgb("f2c230"), rgb("2d57a5")])[gore]
    light = 0.45 + 0.75 * np.clip(0.6 * np.sqrt(np.clip(1 - u**2, 0, 1)) - 0.55 * u - 0.25 * v, 0, 1)
    picture = cover(picture, mask, colors, light)
    band = mask * (np.abs(v + 0.05) < 0.09)
    picture = cover(picture, band, "f7efe0", light)
    for side in (-1, 1):
        rope = shape(
            [(x + side * 0.09, 0.68), (x + side * 0.094, 0.68), (x + side * 0.036, 0.79), (x + side * 0.032, 0.79)]
        )
        picture = cover(picture, rope, "4b3a2a")
    weave = 0.85 + 0.25 * (((_X * 90) % 1 < 0.5) ^ ((_Y * 90) % 1 < 0.5))
    return cover(picture, box(x - 0.042, 0.785, x + 0.042, 0.85), "8a5a2e", weave * (1.3 - 4 * (_X - x + 0.04)))


def lighthouse() -> np.ndarray:
    picture = gradient((0, "1f2d5a"), (0.35, "6a5a8c"), (0.58, "ee9a6b"), (0.66, "ffd39a"), (1, "ffd39a"))
    picture = clouds(picture, 112, 0.6, 0.05, "e7a58f")
    waves = noise(113, 1.2, 0.2)
    sea = gradient((0, "6d6a8f"), (0.66, "c98f7f"), (0.8, "3f4d72"), (1, "1d2a4a"))
    picture = cover(picture, np.clip((_Y - 0.66) * _N / 2, 0, 1), sea, 1 + 0.16 * waves)
    relief = noise(115, 1.4)
    rock_light = 0.9 + 1.6 * np.clip(relief - np.roll(relief, (6, 8), axis=(0, 1)), -0.3, 0.45)
    line = 0.73 + 0.03 * noise(116, 1.5)[0][None] + 1.6 * np.clip(np.abs(_X - 0.42) - 0.17, 0, 1) ** 1.3
    picture = cover(picture, np.clip((_Y - line) * _N / 2, 0, 1), "4d4038", rock_light)
    foam = np.clip(waves + 0.4, 0, 1) * np.clip(1 - np.abs(_Y - line - 0.0) * 45, 0, 1) * (_Y > 0.8)
    picture = cover(picture, np.clip(foam, 0, 0.8), "f6e9e2")
    beam = shape([(0.42, 0.2), (1.1, 0.02), (1.1, 0.28)], 10) * np.clip(1.3 - 1.5 * (_X - 0.42), 0, 1)
    picture = mix(picture, rgb("fff1c2"), 0.5 * beam)
    tower = shape([(0.375, 0.25), (0.465, 0.25), (0.5, 0.76), (0.34, 0.76)])
    stripes = np.where(((_Y - 0.25) * 8.2).astype(int) % 2 == 0, 0.0, 1.0)
    colors = mix(np.broadcast_to(rgb("f4efe6"), (_N, _N, 3)), rgb("c02f2b"), stripes)
    across = (_X - 0.42) / (0.045 + 0.07 * (_Y - 0.25))
    picture = cover(picture, tower, colors, 0.5 + 0.62 * np.sqrt(np.clip(1 - (across - 0.35) ** 2 / 2.2, 0, 1)))
    picture = cover(picture, box(0.36, 0.235, 0.48, 0.255), "2b2b35")
    picture = cover(picture, box(0.388, 0.16, 0.452, 0.236), "ffe9a0")
    picture = cover(picture, box(0.4, 0.16, 0.406, 0.236) + box(0.434, 0.16, 0.44, 0.236), "2b2b35")
    picture = cover(picture, shape([(0.375, 0.162), (0.42, 0.095), (0.465, 0.162)]), "9a2623", 1.3 - 6 * (_X - 0.38))
    for y in (0.36, 0.52):
        picture = cover(picture, box(0.412, y, 0.43, y + 0.04), "37404f")
    glow = np.exp(-(((_X - 0.42) ** 2 + (_Y - 0.2) ** 2) / 0.004))
    return mix(picture, rgb("fff3cc"), 0.75 * glow)


def city() -> np.ndarray:
    picture = gradient((0, "0b1437"), (0.4, "33396f"), (0.62, "c0688a"), (0.7, "f4a27a"), (1, "f4a27a"))
    stars = (np.random.default_rng(120).random((_N, _N)) > 0.9996) * np.clip(0.4 - _Y, 0, 1) * 2.5
    dots = np.asarray(
        Image.fromarray((stars * 255).clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.8))
    )
    picture = np.clip(picture + 3 * dots[..., None] / 255, 0, 1)
    picture = cover(picture, disc(0.2, 0.17, 0.06), "f3ecd2", 1 + 0.08 * noise(121, 1.4))
    draw = np.random.default_rng(5)
    for layer, (color, low) in enumerate((("474a7a", 0.44), ("2a2d57", 0.36), ("14173a", 0.42))):
        left = -0.02
        while left < 1:
            width = draw.uniform(0.06, 0.13)
            top = low + draw.uniform(0, 0.24) - (0.12 if layer == 1 and 0.45 < left < 0.6 else 0)
            building = box(left, top, left + width, 0.74)
            picture = cover(picture, building, color, 1.25 - 1.2 * (_X - left))
            if layer:
                columns = ((_X - left) / width * max(3, int(width * 70))) % 1
                rows = ((_Y - top) * 48) % 1
                cells = np.floor((_X - left) / width * max(3, int(width * 70))) * 31 + np.floor((_Y - top) * 48) * 17
                lit = (np.sin(cells * 12.9898 + layer * 7 + left * 99) * 43758.5453) % 1 > 0.52
                window = building * lit * (np.abs(columns - 0.5) < 0.28) * (np.abs(rows - 0.5) < 0.3)
                picture = cover(picture, window, "ffd98a" if draw.random() < 0.7 else "cfe4ff")
            if layer == 1 and draw.random() < 0.4:
                picture = cover(
                    picture, box(left + width / 2 - 0.003, top - 0.07, left + width / 2 + 0.003, top), color
                )
            left += width * draw.uniform(0.85, 1.25)
    return mirrored(picture, 0.74, 130, "141a3f", 0.8)


def flower() -> np.ndarray:
    picture = mix(np.broadcast_to(rgb("2f5d34"), (_N, _N, 3)), rgb("9fbf5a"), 0.45 + 0.3 * noise(140, 2.3))
    draw = np.random.default_rng(141)
    for _ in range(26):
        x, y = draw.random(2)
        radius = draw.uniform(0.02, 0.07)
        color = mix(np.broadcast_to(rgb("d9e58a"), (1, 1, 3)), rgb("f6f3d2"), np.array([[draw.random()]]))[0, 0]
        picture = cover(picture, 0.35 * disc(x, y, radius, soft=0.03), color)
    bend = 0.5 + 0.05 * np.sin((_Y - 0.4) * 4)
    stem = np.clip((0.014 - np.abs(_X - bend)) * _N / 2, 0, 1) * (_Y > 0.42)
    picture = cover(picture, stem, "3f7a2f", 1.2 - 18 * (_X - bend))
    for tip, base in (((0.8, 0.72), 0.86), ((0.2, 0.66), 0.8)):
        middle = (0.5 + tip[0]) / 2
        leaf = shape([(0.53 if tip[0] > 0.5 else 0.54, base), (middle, base - 0.13), tip, (middle, base + 0.0)], 4)
        picture = cover(picture, leaf, "4b8f38", 1.3 - 2.2 * np.abs(_Y - (base + tip[1]) / 2 + 0.02))
    x, y = 0.5, 0.38
    angle = np.arctan2(_Y - y, _X - x)
    distance = np.hypot(_X - x, _Y - y)
    for count, length, turn, color in ((13, 0.3, 0.1, "d98a1c"), (13, 0.27, 0.34, "f6c62f")):
        phase = ((angle + turn) * count / (2 * np.pi)) % 1 - 0.5
        reach = length * (1 - 1.1 * np.abs(phase) ** 1.7 * 1.6)
        petals = np.clip((reach - distance) * _N / 3, 0, 1)
        light = 0.8 + 0.35 * np.cos(phase * np.pi) - 0.5 * np.clip(0.14 - distance, 0, 1) * 4 - 0.25 * (_Y - y)
        picture = cover(picture, petals, color, light + 0.04 * np.sin(phase * 60) + 0.08 * (phase < 0))
    mask, light, _ = globe(x, y, 0.105)
    seeds = 0.85 + 0.35 * np.sin(angle * 21 + distance * 190) * np.sin(angle * -13 + distance * 190)
    return cover(picture, mask, "5b3413", light * seeds * 1.2)


SCENES: dict[str, Callable[[], np.ndarray]] = {
    scene.__name__: scene for scene in (boat, house, fruit, lighthouse, mountains, balloon, city, flower)
}


def render(scene: Callable[[], np.ndarray], seed: int) -> Image.Image:
    """A scene as a picture, with the grain and the dark corners of a camera."""
    vignette = 1 - 0.22 * ((_X - 0.5) ** 2 + (_Y - 0.5) ** 2)
    grain = 0.012 * np.random.default_rng(seed).standard_normal((_N, _N))
    pixels = np.clip(scene() * vignette[..., None] + grain[..., None], 0, 1)
    picture = Image.fromarray((pixels * 255).round().astype(np.uint8))
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).parent.parent / "space_app" / "examples"
    parser.add_argument("--output_dir", type=Path, default=default, help="default: space_app/examples")
    folder = parser.parse_args(argv).output_dir
    folder.mkdir(parents=True, exist_ok=True)
    for index, (name, scene) in enumerate(SCENES.items()):
        render(scene, index).save(folder / f"{name}.jpg", quality=88)


if __name__ == "__main__":
    main()
