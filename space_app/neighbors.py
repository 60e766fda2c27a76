"""Pictures near to the visitor's, in the features of each part: the example scenes in several poses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from PIL import Image

from controls import Choice, Control
from probe import Probe
from walk import PARTS, Canvas, SplitModel, views

NUM_POSES = 9
NUM_SHOWN = 5
THUMB_SIDE = 96
OWN = "your picture"
_SAME_POSE = 0.06  # of the range: views of the visitor's picture this close to the present one are left out


@dataclass(frozen=True)
class Neighbor:
    """A view of the gallery: its picture, what it shows, the sliders' values, whether it shows the same thing as the
    query, and how far its pose is from the query's, as a share of the range."""

    image: torch.Tensor
    name: str
    values: dict[str, float]
    is_same: bool
    distance: float


@dataclass(frozen=True)
class Neighbors:
    """The nearest views of a part. chance: the mean distance in pose of all views that it chose from."""

    nearest: list[Neighbor]
    chance: float

    @property
    def num_same(self) -> int:
        return sum(neighbor.is_same for neighbor in self.nearest)

    @property
    def distance(self) -> float:
        return sum(neighbor.distance for neighbor in self.nearest) / len(self.nearest)


@dataclass(frozen=True)
class _Things:
    """Pooled features of N things by part: at the start (N, 2 d) and in K poses (N, K, 2 d); thumbnails (N, K, ...).

    said: (N, K, P), what the equivariant part says about each pose.
    """

    names: list[str]
    start: dict[str, torch.Tensor]
    posed: dict[str, torch.Tensor]
    said: torch.Tensor
    thumbs: torch.Tensor


class Gallery:
    """The example scenes in the poses of each transformation, encoded at their first use."""

    def __init__(self, model: SplitModel, probe: Probe, pictures: dict[str, Image.Image]):
        self._model = model
        self._probe = probe
        self._pictures = pictures
        self._examples = lru_cache(maxsize=None)(self._pose_examples)

    def search(
        self, name: str, canvas: Canvas, choice: Choice, parameters: torch.Tensor, pooled: dict, black: bool
    ) -> dict[str, Neighbors]:
        """The nearest views of each part.

        The invariant part compares the moved picture with all views; only the picture itself in the same pose is left
        out. The equivariant part compares the motions: it finds the best pose of each other thing, by what it says
        about the motion, or without training on this transformation by the direction in which its features changed.

        Args:
            name: of the example, or OWN.
            parameters: (P,), where the picture was moved to.
            pooled: part -> (2, 2 d), features of the picture before and after.
        """
        things = self._examples(choice, black)
        if name not in things.names:
            things = _joined(self._encode([name], canvas, choice, black), things)
        own = things.names.index(name)
        away = _distances(choice, poses(choice), parameters)
        number, count = len(things.names), len(away)
        is_own = torch.arange(number)[:, None].expand(-1, count) == own
        invariant = things.posed["invariant"]
        center = things.start["invariant"].mean(dim=0)
        likeness = F.cosine_similarity(invariant - center, pooled["invariant"][1] - center, dim=-1)
        allowed = ~(is_own & (away < _SAME_POSE))
        same = likeness.masked_fill(~allowed, -2).flatten().topk(NUM_SHOWN).indices
        motion = self._motion(things, choice, pooled["equivariant"], black)
        best = motion.masked_fill(is_own, -torch.inf).max(dim=1)
        rows = best.values.topk(min(NUM_SHOWN, number - 1)).indices
        places = {"invariant": (same // count, same % count), "equivariant": (rows, best.indices[rows])}
        chance = {"invariant": away.expand(number, -1)[allowed].mean().item(), "equivariant": away.mean().item()}
        found = {}
        for part, (of_thing, of_pose) in places.items():
            nearest = [
                Neighbor(
                    things.thumbs[i, k], things.names[i], choice.values(poses(choice)[k]), i == own, away[k].item()
                )
                for i, k in zip(of_thing.tolist(), of_pose.tolist(), strict=True)
            ]
            found[part] = Neighbors(nearest, chance[part])
        return found

    def _motion(self, things: _Things, choice: Choice, ends: torch.Tensor, black: bool) -> torch.Tensor:
        """How much each view (N, K) has moved in the same way as the query, whose features at both ends are `ends`."""
        if choice.trained:
            said = self._probe.read("equivariant", ends, black)[1]
            off = (things.said - said) / (self._probe.limits[:, 1] - self._probe.limits[:, 0])
            return -off[..., list(choice.controls)].norm(dim=-1)
        change = things.posed["equivariant"] - things.start["equivariant"][:, None]
        return F.cosine_similarity(change, ends[1] - ends[0], dim=-1)

    def _pose_examples(self, choice: Choice, black: bool) -> _Things:
        canvas = self._model.canvas(list(self._pictures.values()), choice.path)
        return self._encode(list(self._pictures), canvas, choice, black)

    def _encode(self, names: list[str], canvas: Canvas, choice: Choice, black: bool) -> _Things:
        moves = poses(choice)
        everything = torch.cat([torch.zeros_like(moves[:1]), moves]).repeat(len(names), 1)
        images = views(canvas, choice.path, everything, 1.0, self._model.side, black)
        pooled = self._model.pooled(images.flatten(0, 1))
        features = {part: values.unflatten(0, (len(names), -1)) for part, values in pooled.items()}
        said = torch.stack([self._probe.read("equivariant", own, black)[1:] for own in features["equivariant"]])
        return _Things(
            names,
            {part: values[:, 0] for part, values in features.items()},
            {part: values[:, 1:] for part, values in features.items()},
            said,
            views(canvas, choice.path, moves.repeat(len(names), 1), 1.0, THUMB_SIDE, black),
        )


def poses(choice: Choice) -> torch.Tensor:
    """Parameters (NUM_POSES, P) that cover the ranges of a choice's sliders evenly."""
    generator = torch.Generator().manual_seed(0)
    moved = torch.zeros(NUM_POSES, choice.path.num_parameters)
    steps = torch.linspace(0, 1, NUM_POSES)
    for order, (index, control) in enumerate(choice.controls.items()):
        low, high = _ends(control)
        shuffled = torch.randperm(NUM_POSES, generator=generator) if order else torch.arange(NUM_POSES)
        moved[:, index] = low + (high - low) * steps[shuffled]
    return moved


def _ends(control: Control) -> tuple[float, float]:
    """The slider's range as parameters."""
    return control.unit.parameter(control.low), control.unit.parameter(control.high)


def _distances(choice: Choice, moves: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """How far poses (K, P) are from one (P,): the mean over the sliders, as a share of their ranges."""
    shares = []
    for index, control in choice.controls.items():
        low, high = _ends(control)
        shares.append((moves[:, index] - parameters[index]).abs() / (high - low))
    return torch.stack(shares).mean(dim=0)


def _joined(first: _Things, others: _Things) -> _Things:
    return _Things(
        first.names + others.names,
        {part: torch.cat([first.start[part], others.start[part]]) for part in PARTS},
        {part: torch.cat([first.posed[part], others.posed[part]]) for part in PARTS},
        torch.cat([first.said, others.said]),
        torch.cat([first.thumbs, others.thumbs]),
    )
