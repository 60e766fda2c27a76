"""One renderer for training views, evaluation pairs and `Transformation.__call__`: their pixels, and that they stay."""

import json
from pathlib import Path

import pytest
import torch

from eqcohvit.data import Batch
from eqcohvit.evaluation.pairs import render_pair
from eqcohvit.transforms import BlockMasking, MultiCrop, Transformation, ViewRenderer, make_path, ops
from eqcohvit.transforms.render import render, still_view

STORED = Path(__file__).with_name("stored_views.json")  # written by earlier code (commit 6ec2931)
BATCH = 4
SETTINGS = {
    "vicreg, zeros": {"path": "se2+color_jitter", "augmentation": "vicreg", "border": "zeros"},
    "ibot, canvas": {"path": "rotation+gaussian_blur", "augmentation": "ibot", "border": "canvas"},
    "simclr, reflection": {"path": "perspective", "augmentation": "simclr", "border": "reflection"},
    "small, colors only": {"path": "color_jitter", "augmentation": "small", "border": "zeros"},
    "path only": {"path": "zoom+color_jitter", "augmentation": "path_only", "border": "reflection"},
}


def patterns(size):
    """uint8 (BATCH, 3, size, size) by integer arithmetic only. Waves without steps: at a step of 200 gray levels the
    rounding of a coordinate is a difference of 1e-5, and processors round differently."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    image = torch.arange(BATCH)[:, None, None, None]
    channel = torch.arange(3)[:, None, None]
    wave = (((2 + image) * x + (3 + channel) * y + 40 * channel) % 240 - 120).abs()
    other = ((3 * x - 2 * y + 60 * image) % 180 - 90).abs()
    return (wave + other).to(torch.uint8)


def views_of(path, **settings):
    settings |= {"include_final": True, "local_crops": MultiCrop(2, 12), "masking": BlockMasking(), "patch_size": 4}
    renderer = ViewRenderer(make_path(path), 32, **settings)
    keys = 2**40 + 7919 * torch.arange(BATCH)
    sizes = torch.tensor([[48, 48], [24, 130], [100, 48], [200, 200]])
    return renderer(patterns(48), sizes=sizes, keys=keys, epochs=torch.full_like(keys, 3))


def samples_of(views):
    """61 numbers of each kind of view, spread over the batch."""
    kinds = ("first", "intermediates", "local", "parameters")
    numbers = {}
    for kind in kinds:
        values = getattr(views, kind).flatten()
        numbers[kind] = values[torch.linspace(0, len(values) - 1, 61).long()].tolist()
    return numbers | {"masks": views.masks.sum(dim=-1).flatten().tolist()}


@pytest.mark.parametrize("name", SETTINGS)
def test_views_are_the_stored_ones(name):
    stored = json.loads(STORED.read_text())[name]
    found = samples_of(views_of(**SETTINGS[name]))
    assert found.keys() == stored.keys()
    for kind, values in stored.items():
        assert found[kind] == pytest.approx(values, abs=1e-5), kind


def test_order_of_the_operations():
    """Turned by 90 degrees, then brighter, then black where the view has ended; all by hand on 2 x 2 pixels."""
    picture = torch.tensor([[0.1, 0.2], [0.3, 0.4]]).expand(1, 3, 2, 2)
    turn = torch.tensor([[[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]])  # output -> input
    shift = torch.tensor([[[1.0, 0, 1], [0, 1, 0], [0, 0, 1]]])  # one pixel to the left
    color = torch.tensor([[2.0, 1, 1, 0]])
    states = Transformation.stack([Transformation(turn, color), Transformation(shift, color)])
    found = render(picture, None, states, "zeros", 2, pivot=torch.zeros(1), recolor=lambda images: images + 0.05)
    assert torch.allclose(found[0, 0, 0], torch.tensor([[0.5, 0.9], [0.3, 0.7]]))
    assert torch.allclose(found[0, 1, 0], torch.tensor([[0.5, 0.0], [0.9, 0.0]]))


@pytest.mark.parametrize("border", ["zeros", "reflection"])
def test_contrast_leaves_the_mean_of_the_view_before_the_motion(border):
    """A view that moves out of a bright frame keeps its pivot, whatever has come into the frame."""
    image = torch.zeros(1, 3, 8, 8)
    image[..., :4] = 1.0  # mean luminance 1/2
    shift = torch.tensor([[[1.0, 0, 1], [0, 1, 0], [0, 0, 1]]])  # by half the side: its bright half has left
    halved = Transformation(shift, torch.tensor([[1.0, 0.5, 1.0, 0.0]]))
    moved = halved(image, "reflection")
    assert torch.allclose(moved[..., :4], torch.tensor(0.25))  # 1/2 + (0 - 1/2) / 2


@pytest.mark.parametrize("path", ["se2+color_jitter", "rotation+gaussian_blur", "perspective"])
def test_an_evaluation_pair_is_the_transformation_of_its_original(path):
    path = make_path(path)
    keys = torch.arange(BATCH)
    sizes = torch.full((BATCH, 2), 32)
    epochs = torch.zeros_like(keys)
    batch = Batch(canvases=patterns(32), sizes=sizes, keys=keys, epochs=epochs, labels=keys, position={})
    pair = render_pair(batch, path, "paper", 32)
    expected = path.at(pair.parameters, 1.0)(pair.original, "zeros")
    assert torch.allclose(pair.transformed, expected, atol=1e-5)


def test_still_view_of_a_crop_is_the_part_itself():
    picture = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    crop = torch.tensor([[0.5, 0, -0.5], [0, 0.5, 0.5], [0, 0, 1]])  # left half, lower half
    assert torch.allclose(still_view(picture, crop, 4), picture[..., 4:, :4], atol=1e-6)


def test_constants_are_made_once_for_each_device_and_dtype():
    like = torch.zeros(1)
    first = ops.constant((1.0, 2.0), like)
    assert ops.constant((1.0, 2.0), like) is first
    assert ops.constant((1.0, 2.0), like.double()).dtype == torch.float64
    with torch.inference_mode():
        made = ops.constant((3.0, 7.5), like)
    (made * torch.ones(2, requires_grad=True)).sum().backward()  # an inference tensor would raise
