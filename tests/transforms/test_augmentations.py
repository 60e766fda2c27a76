import dataclasses
import math
import random

import pytest
import torch

from eqcohvit.transforms import AUGMENTATIONS
from eqcohvit.transforms.augmentations import sample_view
from eqcohvit.transforms.random import uniforms


def reference_crop(height, width, scale, generator, ratio=(3 / 4, 4 / 3)):
    """left, top, width, height by the rule of `RandomResizedCrop`, one at a time."""
    for _ in range(10):
        area = height * width * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return generator.randint(0, width - w), generator.randint(0, height - h), w, h
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (width - w) // 2, (height - h) // 2, w, h


def drawn_crops(height, width, scale, number, seed=0):
    keys = torch.arange(number)
    draws = uniforms(seed, keys=keys, epochs=torch.zeros_like(keys), stream=0, count=33)
    augmentation = dataclasses.replace(AUGMENTATIONS["simclr"][0], crop_scale=scale)
    return sample_view(augmentation, draws, torch.tensor([[height, width]]).expand(number, 2), 24).box.double()


def iou(first, second):
    """Mean overlap of pairs of boxes (N, 4)."""
    left, top = torch.maximum(first[:, 0], second[:, 0]), torch.maximum(first[:, 1], second[:, 1])
    right = torch.minimum(first[:, 0] + first[:, 2], second[:, 0] + second[:, 2])
    bottom = torch.minimum(first[:, 1] + first[:, 3], second[:, 1] + second[:, 3])
    common = (right - left).clamp_min(0) * (bottom - top).clamp_min(0)
    return (common / (first[:, 2] * first[:, 3] + second[:, 2] * second[:, 3] - common)).mean().item()


def ks_distance(a, b):
    """Largest difference of the two distribution functions."""
    values = torch.cat([a, b]).unique()
    cdf_a, cdf_b = (torch.searchsorted(x.sort().values, values, right=True) / len(x) for x in (a, b))
    return (cdf_a - cdf_b).abs().max().item()


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.25, 1.0), (0.05, 0.32)])
@pytest.mark.parametrize(("height", "width"), [(375, 500), (2000, 1500), (32, 32), (40, 400)])
def test_crops_are_drawn_as_randomresized_crop_draws_them(height, width, scale):
    number = 20_000
    generator = random.Random(0)
    ours = drawn_crops(height, width, scale, number)
    theirs = torch.tensor([reference_crop(height, width, scale, generator) for _ in range(number)], dtype=torch.float64)
    assert (ours == ours.round()).all() and (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= width).all() and (ours[:, 1] + ours[:, 3] <= height).all()
    for name, value in {
        "area": lambda box: box[:, 2] * box[:, 3],
        "ratio": lambda box: box[:, 2] / box[:, 3],
        "left": lambda box: box[:, 0],
        "top": lambda box: box[:, 1],
    }.items():
        assert ks_distance(value(ours), value(theirs)) < 0.02, name
    whole_height, theirs_whole = ((box[:, 3] == height).double().mean() for box in (ours, theirs))
    assert abs(whole_height - theirs_whole) < 0.01
    second = drawn_crops(height, width, scale, number, seed=1)
    assert abs(iou(ours, second) - iou(theirs, theirs.roll(1, 0))) < 0.01


def test_crop_of_an_image_too_long_for_any_draw_is_the_largest_in_its_middle():
    assert drawn_crops(30, 3000, (0.9, 1.0), 50).unique(dim=0).tolist() == [[1480, 0, 40, 30]]
    assert drawn_crops(1, 1, (0.08, 1.0), 50).unique(dim=0).tolist() == [[0, 0, 1, 1]]


def test_orders_flips_and_probabilities_are_those_of_the_augmentation():
    keys = torch.arange(20_000)
    draws = uniforms(0, keys=keys, epochs=torch.zeros_like(keys), stream=0, count=33)
    drawn = sample_view(AUGMENTATIONS["vicreg"][1], draws, torch.full((len(keys), 2), 50), 224)
    orders, counts = drawn.order.unique(dim=0, return_counts=True)
    assert len(orders) == 24 and counts.min() > 700 and (orders.sort(dim=1).values == torch.arange(4)).all()
    for chosen, share in [(drawn.flip, 0.5), (drawn.gray, 0.2), (drawn.sigma > 0, 0.1), (drawn.solarize, 0.2)]:
        assert chosen.float().mean().item() == pytest.approx(share, abs=0.015)
    assert (drawn.color[:, 0] != 1).float().mean().item() == pytest.approx(0.8, abs=0.015)
    assert drawn.color.amin(dim=0).tolist() == pytest.approx([0.6, 0.6, 0.8, -0.1], abs=0.01)
    assert drawn.color.amax(dim=0).tolist() == pytest.approx([1.4, 1.4, 1.2, 0.1], abs=0.01)
