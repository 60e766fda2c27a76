"""Code that reproduces the numbers on the page, as a start for your own."""

from __future__ import annotations

from controls import Choice

_CODE = """import math

import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForPreTraining

import eqcohvit  # registers the model
from eqcohvit.evaluation.pairs import band_limited, strict_crop
from eqcohvit.hub.image_reading_eqcohvit import read_image
from eqcohvit.transforms import Transformation, intermediate_fractions, make_path, ops

NAME = "{name}"  # folder or repository
model = AutoModelForPreTraining.from_pretrained(NAME).eval()
processor = AutoImageProcessor.from_pretrained(NAME)
mean = torch.tensor(processor.image_mean)[:, None, None]
std = torch.tensor(processor.image_std)[:, None, None]

# {parameter_names}
path = make_path("{path}")
g = torch.tensor([[{parameters}]])

# the middle of your picture, and the real pixels around it that a motion brings into view
side, crop = model.config.square_image_size, strict_crop(path)
photo = read_image(open("photo.png", "rb").read())
square = ImageOps.fit(photo, (math.ceil(2 * side / crop),) * 2, Image.Resampling.BICUBIC)
pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
pixels = pixels.view(1, *square.size, 3).permute(0, 3, 1, 2) / 255
sides = torch.tensor([float(min(photo.size))])
canvas = band_limited(pixels, sides, side / crop, math.ceil(4 * side / crop))

# the picture, its states on the way, and its end
t = torch.tensor([0.0, *intermediate_fractions(model.config.num_intermediates), 1.0])
step = path.at(g.expand(len(t), -1), t)
motion = torch.eye(3).expand(1, len(t), 3, 3) if step.matrix is None else step.matrix[None]
view = torch.diag(torch.tensor([crop, crop, 1.0])).expand_as(motion)
grid, coverage = ops.sampling_grid(view, motion, side, "{border}")
states = ops.sample(canvas, grid)[0].clamp(0, 1)
if step.color is not None:
    states = ops.adjust_color(states, step.color, ops.luminance(states[:1]).mean().expand(len(t)))
if step.sigma is not None:
    states = Transformation(sigma=step.sigma)(states)
states = states.clamp(0, 1) if coverage is None else states.clamp(0, 1) * coverage[0]

with torch.no_grad():
    outputs = model((states[:1] - mean) / std, (states[-1:] - mean) / std)
rebuilt = (outputs.reconstructions * std + mean).clamp(0, 1)  # (1, K, 3, H, H)
psnr = -10 * (rebuilt[0] - states[1:-1]).square().mean(dim=(1, 2, 3)).log10()
print("PSNR of the intermediate states in dB:", [round(value, 2) for value in psnr.tolist()])

# both parts of every token, (1, 1 + patches, d) each
print(outputs.invariant_features.shape, outputs.equivariant_features.shape)
"""


def snippet(name: str, choice: Choice, values: dict[str, float], border: str) -> str:
    """Code for this model, transformation and values of sliders. `border`: of the moved picture, as
    `ops.sampling_grid` takes it."""
    parameters = ", ".join(f"{value:.6g}" for value in choice.parameters(values)[0].tolist())
    return _CODE.format(
        name=name,
        path=choice.path.name,
        parameters=parameters,
        parameter_names=", ".join(choice.path.parameter_names),
        border=border,
    )
