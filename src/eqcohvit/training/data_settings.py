"""Settings that follow from the images and the device: the sizes of views, patches, model and batch.

| shorter side of the images | CPU | GPU |
|---|---|---|
| 96 px or more | views of 96 px, patches of 16 px, micro | views of 96 px, patches of 8 px, tiny |
| less | views of that size, in whole patches; micro | the same |

A batch is at most the largest power of two for which a folder has images. A folder with few images that continues one
of our models trains its heads and decoders alone, for a few steps. A setting that a flag, a recipe, a resumed run or
`init_from` gives stays as it is; `init_from` gives all sizes. Embedded sprites keep the defaults.
"""

from __future__ import annotations

import os
from operator import length_hint
from statistics import median
from typing import Any

import torch

from ..data import Batch, TooManyBadImages, open_source, sequential
from .output import say_once
from .start import open_start

FEW_IMAGES = 2_000  # fewer are too few to learn from random weights, and to train a backbone further
PHOTOGRAPH = 96  # pixels of the shorter side
_NUM_IMAGES = 32  # the first ones decide
_CANVAS = 32  # they are decoded to; only their original sizes matter
_FEW_BATCH = 32
# 60 such steps on 40 photographs leave R2 of the angle as it was and rebuild states better: scripts/guides/continue.md.
_CONTINUED = {
    "freeze_backbone": True,
    "learning_rate": 1e-3,
    "max_steps": 60,
    "warmup_steps": 6,
    "invariant_rank_start": 0.0,
}
_HOW = {"freeze_backbone", "peft", "learning_rate", "layer_decay", "head_warmup_steps"}  # if given, they decide how


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


def batch_for(num_images: int, batch_size: int) -> int:
    """The batch size, or the largest power of two up to the number of images; `num_images` is 0 where unknown."""
    return batch_size if num_images == 0 else min(batch_size, max(2, 1 << num_images.bit_length() - 1))


def settings_of_images(values: dict[str, Any], decided: set[str]) -> dict[str, Any]:
    """The sizes that follow from the images and replace defaults; prints them, one line for each reason.

    Args:
        values: all settings.
        decided: names of those that something else has decided.
    """
    places = ("dataset_name", "dataset_config_name", "dataset_split", "data_files", "train_dir", "image_column")
    if not (values["train_dir"] or values["dataset_name"] or values["data_files"]):
        return {}
    has_sizes = values["init_from"] or ("image_size" in decided and ("model_preset" in decided or not has_gpu()))
    has_batch = "per_device_train_batch_size" in decided or not values["train_dir"]
    may_continue = values["init_from"] and values["train_dir"] and not decided & _HOW
    if has_sizes and has_batch and not may_continue:
        return {}
    try:
        source = open_source(*(values[name] for name in places), leave_out=values["output_dir"])
        batches = list(sequential(source, _CANVAS, _NUM_IMAGES, max_samples=_NUM_IMAGES))
    except (ValueError, OSError, TooManyBadImages):  # the run itself says what is wrong
        return {}
    if not batches:
        return {}
    found = {} if has_sizes else _sizes_of(batches, values, decided)
    number = length_hint(source)  # 0 for streams
    largest = values["per_device_train_batch_size"]
    if may_continue and 0 < number < FEW_IMAGES and _continues(values):
        found |= _few_steps(number, values, decided)
        largest = min(largest, _FEW_BATCH)
    batch = batch_for(number // int(os.environ.get("WORLD_SIZE", "1")), largest)
    if not has_batch and batch != values["per_device_train_batch_size"]:
        found["per_device_train_batch_size"] = batch
        say_once(f"{number} images, so --per_device_train_batch_size {batch}")
    return found


def _continues(values: dict[str, Any]) -> bool:
    """Whether `init_from` is one of our models, and its heads are used."""
    if not values["init_heads"]:
        return False
    try:
        return open_start(values["init_from"]).is_split
    except (ValueError, OSError):  # the run itself says what is wrong
        return False


def _few_steps(number: int, values: dict[str, Any], decided: set[str]) -> dict[str, Any]:
    """How few images continue a model, without what is decided; prints it."""
    undecided = {name: value for name, value in _CONTINUED.items() if name not in decided}
    if "max_steps" in decided:
        undecided.pop("warmup_steps", None)
    shown = " ".join(f"--{name}" if value is True else f"--{name} {value:g}" for name, value in undecided.items())
    say_once(f"{number} images continue {values['init_from']}, so {shown}; flags override this")
    return undecided


def _sizes_of(batches: list[Batch], values: dict[str, Any], decided: set[str]) -> dict[str, Any]:
    """The sizes for the images of these batches, without the decided ones; prints them."""
    shorter = median(torch.cat([batch.sizes for batch in batches]).amin(dim=1).tolist())
    found = sizes_for(shorter, values["patch_size"], has_gpu())
    if "patch_size" in decided:
        found["patch_size"] = values["patch_size"]
    if "image_size" in decided:
        found.pop("patch_size")
    elif found["image_size"] % found["patch_size"]:
        found["image_size"] -= found["image_size"] % found["patch_size"]
    found = {name: value for name, value in found.items() if name not in decided}
    if found:
        shown = " ".join(f"--{name} {value}" for name, value in found.items())
        say_once(f"shorter side {shorter:.0f} px, so {shown}; flags override this")
    return found
