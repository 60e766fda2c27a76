"""Settings that follow from the images and the device: the sizes of the views, of their patches and of the model.

| shorter side of the images | CPU | GPU |
|---|---|---|
| 96 px or more | views of 96 px, patches of 16 px, micro | views of 96 px, patches of 8 px, tiny |
| less | views of that size, in whole patches; micro | the same |

A setting that a flag, a recipe, a resumed run or `init_from` gives stays as it is. Embedded sprites keep the defaults.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import torch

from ..data import TooManyBadImages, open_source, sequential
from .output import say_once

PHOTOGRAPH = 96  # pixels of the shorter side
_NUM_IMAGES = 32  # the first ones decide
_CANVAS = 32  # they are decoded to; only their original sizes matter


def has_gpu() -> bool:
    """Whether the run has a GPU."""
    return torch.cuda.is_available()


def sizes_for(shorter_side: float, patch_size: int, on_gpu: bool) -> dict[str, Any]:
    """`image_size`, `patch_size` and `model_preset` for images whose shorter side has so many pixels (the table)."""
    if shorter_side >= PHOTOGRAPH:
        if on_gpu:
            return {"image_size": PHOTOGRAPH, "patch_size": 8, "model_preset": "tiny"}
        return {"image_size": PHOTOGRAPH, "patch_size": 16, "model_preset": "micro"}
    patches = max(2, int(shorter_side) // patch_size)
    return {"image_size": patches * patch_size, "patch_size": patch_size, "model_preset": "micro"}


def settings_of_images(values: dict[str, Any], decided: set[str]) -> dict[str, Any]:
    """The sizes that follow from the first images, in place of defaults; says on one line what they are.

    Args:
        values: all settings.
        decided: names of those that something else has decided.
    """
    places = ("dataset_name", "dataset_config_name", "dataset_split", "data_files", "train_dir", "image_column")
    if not (values["train_dir"] or values["dataset_name"] or values["data_files"]) or values["init_from"]:
        return {}
    if "image_size" in decided and ("model_preset" in decided or not has_gpu()):
        return {}
    try:
        source = open_source(*(values[name] for name in places), leave_out=values["output_dir"])
        batches = list(sequential(source, _CANVAS, _NUM_IMAGES, max_samples=_NUM_IMAGES))
    except (ValueError, OSError, TooManyBadImages):  # the run itself says what is wrong
        return {}
    if not batches:
        return {}
    shorter = median(torch.cat([batch.sizes for batch in batches]).amin(dim=1).tolist())
    found = sizes_for(shorter, values["patch_size"], has_gpu())
    if "patch_size" in decided:
        found["patch_size"] = values["patch_size"]
    if "image_size" in decided:
        found.pop("patch_size")
    elif found["image_size"] % found["patch_size"]:
        found["image_size"] -= found["image_size"] % found["patch_size"]
    found = {name: value for name, value in found.items() if name not in decided}
    shown = " ".join(f"--{name} {value}" for name, value in found.items())
    say_once(f"images of {shorter:.0f} px, so {shown}; flags override")
    return found
