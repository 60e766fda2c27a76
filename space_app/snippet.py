"""The code that gives the numbers on the page, for whoever wants to go on from there."""

from __future__ import annotations

from controls import Choice

_CODE = """import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForPreTraining
from transformers.image_utils import load_image

import eqcohvit  # registers the model
from eqcohvit.transforms import intermediate_fractions, make_path

NAME = "{name}"  # folder or repository
model = AutoModelForPreTraining.from_pretrained(NAME).eval()
processor = AutoImageProcessor.from_pretrained(NAME)
mean, std = (torch.tensor(v)[:, None, None] for v in (processor.image_mean, processor.image_std))

# the middle square of your picture, (1, 3, H, H) in [0, 1]
side = model.config.square_image_size
photo = ImageOps.fit(load_image("photo.png"), (side, side), Image.Resampling.BICUBIC)
u = processor(photo, return_tensors="pt").pixel_values * std + mean

# {parameter_names}
path, g = make_path("{path}"), torch.tensor([[{parameters}]])
border = "zeros" if model.config.border == "zeros" else "reflection"
fractions = intermediate_fractions(model.config.num_intermediates)
u1_to_uK = torch.stack([path.at(g, t)(u, border) for t in fractions], dim=1).clamp(0, 1)
v1, v2 = u, path.at(g, 1.0)(u, border).clamp(0, 1)

with torch.no_grad():
    outputs = model((v1 - mean) / std, (v2 - mean) / std)
rebuilt = (outputs.reconstructions * std + mean).clamp(0, 1)  # (1, K, 3, H, H)
psnr = -10 * (rebuilt - u1_to_uK).square().mean(dim=(2, 3, 4)).log10()
print("PSNR of the intermediate states in dB:", [round(value, 2) for value in psnr[0].tolist()])

# both parts of every token, (1, 1 + patches, d) each
print(outputs.invariant_features.shape, outputs.equivariant_features.shape)
"""


def snippet(name: str, choice: Choice, values: dict[str, float]) -> str:
    """Code for this model, transformation and values of sliders."""
    parameters = ", ".join(f"{value:.6g}" for value in choice.parameters(values)[0].tolist())
    return _CODE.format(
        name=name, path=choice.path.name, parameters=parameters, parameter_names=", ".join(choice.path.parameter_names)
    )
