"""Features of images in a view, for all encoders at once, through a cache on disk."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from tqdm import tqdm

from .. import preprocessing
from ..data import Batch, decode, jpeg, order, sources, stream, workers
from ..hub import image_reading_eqcohvit
from ..transforms import TransformationPath, ops, paths, random
from . import features, images, pairs
from .feature_cache import FeatureCache, Features
from .features import Encoder
from .images import BLOCK_SIZE, ProbeImages
from .pairs import canvas_size, moves, render_pair

BLOCKS_PER_CHUNK = 8
_ENCODED_AT_ONCE = 256  # images
# The code that turns an image file into features, apart from the model. If it changes, cached features are not used.
_PIPELINE = (
    image_reading_eqcohvit,
    decode,
    jpeg,
    order,
    sources,
    stream,
    workers,
    pairs,
    features,
    images,
    preprocessing,
    ops,
    paths,
    random,
)
_FEATURE_CODE = (*_PIPELINE, sys.modules[__name__])
_LIBRARIES = ("torch", "transformers")  # their versions are part of the key


class View(Protocol):
    """What happens to a block of canvases before it is encoded. `name` describes it completely."""

    name: str

    def canvas_size(self, image_size: int) -> int:
        """Side in pixels of the canvas that an image of side `image_size` is cut from."""

    def __call__(self, batch: Batch, image_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """B canvases -> images (V, B, 3, H, H) in [0, 1] and parameters (B, P)."""


class CentralView:
    """The central square of each image, as the kNN guard of a training run sees it."""

    name = "central square"

    def canvas_size(self, image_size: int) -> int:
        """The size of the image."""
        return image_size

    def __call__(self, batch: Batch, image_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        return batch.canvases.float().unsqueeze(0) / 255, torch.zeros(len(batch), 0)


class PairView:
    """The image and its transformed version in a protocol. g is drawn by (seed, sample key)."""

    def __init__(self, path: TransformationPath, protocol: str, seed: int = 0):
        self.path = path
        self.protocol = protocol
        self.seed = seed
        self.name = f"{path.name} {path.limits} {protocol if moves(path) else 'in place'} {seed}"

    def canvas_size(self, image_size: int) -> int:
        """What the protocol needs."""
        return canvas_size(image_size, self.path, self.protocol)

    def __call__(self, batch: Batch, image_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        pair = render_pair(batch, self.path, self.protocol, image_size, self.seed)
        return torch.stack([pair.original, pair.transformed]), pair.parameters


def code_hash(encoder: Encoder | None = None) -> str:
    """SHA-256 of the code that makes features: of the pipeline, or of the classes of an encoder and its model.

    Classes of torch and transformers are left out, because their versions are part of the key. Classes that come with
    the repository of a model are not.
    """
    if encoder is None:
        files = {module.__file__ for module in _FEATURE_CODE}
    else:
        modules = getattr(encoder, "model", torch.nn.Module()).modules()
        classes = {type(encoder), *(type(module) for module in modules)}
        # Code of a repository is in the package transformers_modules.
        own = {kind for kind in classes if kind.__module__.split(".")[0] not in _LIBRARIES}
        files = {inspect.getsourcefile(kind) for kind in own}
    contents = sorted(Path(file).read_bytes() for file in files if file is not None)
    return hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()


def cache_of(cache_dir: str | Path, encoder: Encoder, samples: ProbeImages, part: str, view: View) -> FeatureCache:
    """Where the features of an encoder are kept."""
    code = (code_hash(), code_hash(encoder), jpeg.jpeg_decoder())
    size = str(encoder.image_size)
    return FeatureCache(cache_dir, *code, encoder.fingerprint, samples.fingerprint(part), view.name, size)


def extract(
    encoders: Sequence[Encoder], samples: ProbeImages, part: str, view: View, cache_dir: str | Path
) -> dict[str, Features]:
    """Features of all encoders, by name, for the `"train"` or `"test"` images in a view.

    What the cache holds is not computed again.

    Raises:
        ValueError: the source has no images for this part.
    """
    caches = {encoder.name: cache_of(cache_dir, encoder, samples, part, view) for encoder in encoders}
    for size in sorted({encoder.image_size for encoder in encoders}):
        group = [encoder for encoder in encoders if encoder.image_size == size]
        done = {encoder.name: caches[encoder.name].num_done() for encoder in group}
        missing = [encoder for encoder in group if not done[encoder.name][1]]
        if missing:
            partial = {encoder.name: (caches[encoder.name], done[encoder.name][0]) for encoder in missing}
            _complete(missing, partial, samples, part, view, size)
    return {encoder.name: caches[encoder.name].read() for encoder in encoders}


def _complete(
    encoders: list[Encoder],
    caches: dict[str, tuple[FeatureCache, int]],
    samples: ProbeImages,
    part: str,
    view: View,
    image_size: int,
) -> None:
    """Compute the missing chunks. An encoder that has a chunk already is not run on it.

    Args:
        caches: name of an encoder -> its cache, and the number of chunks in it.
    """
    index = min(count for _, count in caches.values())
    shortest = next(cache for cache, count in caches.values() if count == index)
    state = shortest.state(index - 1) if index else {"seen": 0, "position": None}
    assert state is not None  # the chunk was found a moment ago
    blocks = samples.blocks(part, view.canvas_size(image_size), state["seen"], state["position"])
    total = getattr(samples, f"num_{part}")
    bar = progress(f"features, {view.name.split()[0]}, {part}", total, index * BLOCK_SIZE * BLOCKS_PER_CHUNK, "img")
    chunk = list(islice(blocks, BLOCKS_PER_CHUNK))
    if not chunk:
        raise ValueError(
            f"{getattr(samples, part).name} has no images left to {'fit on' if part == 'train' else 'test on'}: "
            f"{samples.num_test} are taken for testing, lower max_test_samples"
        )
    while chunk:
        behind = [encoder for encoder in encoders if index >= caches[encoder.name][1]]
        vectors: dict[str, dict[str, list[torch.Tensor]]] = {encoder.name: defaultdict(list) for encoder in behind}
        for batch, _ in chunk:
            pixels, parameters = view(batch, image_size)
            for encoder in behind:
                _encode(encoder, pixels, parameters, batch, vectors[encoder.name])
            bar.update(len(batch))
        following = list(islice(blocks, BLOCKS_PER_CHUNK))
        batch, seen = chunk[-1]
        state = {"seen": seen, "position": batch.position, "last": not following}
        for name, own in vectors.items():
            caches[name][0].write(index, {kind: torch.cat(values) for kind, values in own.items()}, state)
        index += 1
        chunk = following
    bar.close()


def _encode(
    encoder: Encoder, pixels: torch.Tensor, parameters: torch.Tensor, batch: Batch, found: dict[str, list[torch.Tensor]]
) -> None:
    """Add to `found` the features of images (V, B, 3, H, H), and what is known about them."""
    encoded = [encoder(images) for images in pixels.flatten(0, 1).split(_ENCODED_AT_ONCE)]
    for feature in encoded[0]:
        values = torch.cat([block[feature].cpu() for block in encoded])
        found[str(feature)].append(values.unflatten(0, pixels.shape[:2]).transpose(0, 1))
    found["parameters"].append(parameters)
    found["labels"].append(batch.labels)
    found["keys"].append(batch.keys)


def progress(what: str, total: int, initial: int = 0, unit: str = "it") -> tqdm:
    """A progress bar on a terminal, which disappears at the end; in a log, a line now and then after 30 s."""
    is_terminal = sys.stderr.isatty()
    interval = 0.2 if is_terminal else 30
    return tqdm(
        desc=what,
        total=total,
        initial=min(initial, total),
        unit=unit,
        leave=False,
        dynamic_ncols=True,
        mininterval=interval,
        maxinterval=max(interval, 10),
        delay=0 if is_terminal else interval,
    )
