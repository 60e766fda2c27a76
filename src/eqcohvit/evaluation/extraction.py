"""Images of a source -> frozen features in memory, by way of a cache on disk.

Features are made in blocks of 32 images and kept in chunks of 8 blocks, one file each. So an interrupted run goes on at
the next chunk, a second task on the same features reads them in seconds, and no number depends on workers, memory or
interruptions.
"""

from __future__ import annotations

import glob
import hashlib
import inspect
import json
import os
import re
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
import transformers
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from .. import preprocessing
from ..data import Batch, CanvasStream, Source, decode, order, sources, stream, workers
from ..hub import image_reading_eqcohvit
from ..transforms import TransformationPath, ops, paths, random
from . import features, pairs
from .features import Encoder, Feature
from .pairs import canvas_size, moves, render_pair

BLOCK_SIZE = 32
BLOCKS_PER_CHUNK = 8
DEFAULT_CACHE = Path(HF_HOME) / "eqcohvit" / "features"
TEST_SPRITES = 1 << 40  # number of the first sprite to test on: no training run reaches it
_FOLDER_NAME = re.compile("[0-9a-f]{32}")
_IN_USE_SECONDS = 3600
GROUP_SHARDS = 64  # read side by side, so that the images come from all over the data
_WINDOW_BYTES = 1 << 28  # of undecoded images that are shuffled together
_ROW_BYTES = 1 << 9  # of a path or an index, at least
_LEAST_WINDOW = 2048  # images
_ENOUGH_CLASSES = 0.8
# What makes features of an image file, besides the model: a change of this code must not find old features.
_PIPELINE = (
    image_reading_eqcohvit,
    decode,
    order,
    sources,
    stream,
    workers,
    pairs,
    features,
    preprocessing,
    ops,
    paths,
    random,
)
_FEATURE_CODE = (*_PIPELINE, sys.modules[__name__])
_LIBRARIES = ("torch", "transformers")  # their versions are part of the key


@dataclass(frozen=True)
class Samples:
    """Where probe images come from: `num_train` to fit and `num_test` to test, from sources that share no image.

    With one source for both, the first `num_test` images of its shuffled order are the test images.
    """

    train: Source
    test: Source
    num_train: int
    num_test: int
    num_workers: int = 0
    max_bad_fraction: float = 0.01

    def fingerprint(self, part: str) -> str:
        """Changes when other images could come: of another source, or others of it."""
        shared = self.train is self.test and part == "train"
        return f"{getattr(self, part).fingerprint} {getattr(self, f'num_{part}')} {self.num_test if shared else 0}"

    def blocks(
        self, part: str, canvas: int, seen: int = 0, position: dict | None = None
    ) -> Iterator[tuple[Batch, int]]:
        """The images of `"train"` or `"test"` as canvases of side `canvas`, in a fixed shuffled order, each once, in
        blocks of up to 32.

        They are mixed from up to 64 shards, and from as many rows as `shuffle_window` says: data may be sorted by
        class. With each block comes how many images of the stream were read so far; with its `position` that says where
        to go on.
        """
        start = self.num_test if self.train is self.test and part == "train" else 0
        stop = start + getattr(self, f"num_{part}")
        source = getattr(self, part)
        batches = CanvasStream(
            source,
            canvas,
            BLOCK_SIZE,
            num_workers=self.num_workers,
            shuffle_window=shuffle_window(source),
            group_shards=GROUP_SHARDS,
            max_bad_fraction=self.max_bad_fraction,
            position=position,
            fit=preprocessing.FIT,
        )
        for batch in batches:
            first_epoch = batch.epochs == 0
            index = torch.arange(seen, seen + len(batch))
            wanted = first_epoch & (index >= start) & (index < stop)
            seen += len(batch)
            if wanted.any():
                canvases, sizes, keys = batch.canvases[wanted], batch.sizes[wanted], batch.keys[wanted]
                yield Batch(canvases, sizes, keys, batch.epochs[wanted], batch.labels[wanted], batch.position), seen
            if seen >= stop or not first_epoch.all():
                return


def shuffle_window(source: Source) -> int:
    """How many undecoded images to shuffle at a time: as many as 256 MiB hold, judged by the first one; paths and
    indices all at once."""
    records = (record for shard in range(source.num_shards) for record in source.read_shard(shard, 0))
    record = next(records, None)
    payload = record.payload if record is not None else None
    num_bytes = len(payload) if isinstance(payload, (bytes, bytearray, memoryview, str)) else _ROW_BYTES
    return max(_LEAST_WINDOW, _WINDOW_BYTES // max(num_bytes, _ROW_BYTES))


def missing_classes(labels: torch.Tensor, num_classes: int) -> str:
    """What is wrong with labels (N,) of too few classes, in one line; empty where they are as many as a random choice
    would hold.

    Of C classes a random choice of N images holds C (1 - (1 - 1/C)^N) on average; less than 4/5 of that is too few.
    """
    seen = labels[labels >= 0].unique()
    expected = num_classes * (1 - (1 - 1 / max(num_classes, 1)) ** len(labels))
    if not len(seen) or len(seen) >= _ENOUGH_CLASSES * expected:
        return ""
    return f"labels of {len(seen)} of {num_classes} classes in {len(labels)} images: the data seem to be sorted by class, shuffle them"


def check_test_data(
    dataset_name: str | None,
    dataset_split: str,
    test_split: str | None,
    data_files: str | None,
    test_data_files: str | None,
    train_dir: str | None,
) -> None:
    """Raise a `ValueError` of one line where the test images would be others than the arguments say, or those that are
    fitted on."""
    if data_files is None and train_dir is None and dataset_name is None:
        for name, value in (("test_split", test_split), ("test_data_files", test_data_files)):
            if value:
                raise ValueError(
                    f"{name} needs data to fit on, got {value!r} alone: give dataset_name or data_files too"
                )
    if test_split and not test_data_files:
        if data_files is not None or train_dir is not None:  # there a split is a mere name of all the files
            allowed = "give test_data_files, or neither to hold some out"
            raise ValueError(
                f"test_split needs dataset_name without data_files, got test_split={test_split!r} beside files: {allowed}"
            )
        if test_split == dataset_split:
            raise ValueError(f"test_split must be another split than dataset_split, got {test_split!r} for both")
    if test_data_files:
        folder = dataset_name if dataset_name and os.path.isdir(dataset_name) else "."
        _check_no_file_twice(folder, {"train_dir": train_dir, "data_files": data_files}, test_data_files)


def _check_no_file_twice(folder: str, fitting: dict[str, str | None], test_data_files: str) -> None:
    """Raise a `ValueError` where a test file is one of those that are fitted on, or lies in their folder, by whatever
    path or link."""
    tested = _real_files(folder, test_data_files)
    for name, value in fitting.items():
        fitted = _real_files(folder, value) if value else {}
        common = sorted(fitted.keys() & tested.keys(), key=str)
        if common:
            path = fitted[common[0]]
            rest = f" and {len(common) - 1} more" if len(common) > 1 else ""
            raise ValueError(
                f"test_data_files must share no file with {name}, but {path}{rest} is in both: give other files to test on"
            )


def _real_files(folder: str, patterns: str) -> dict[tuple[int, int] | str, str]:
    """Identity of each file that comma-separated patterns and folders name -> its path. What is not on this machine is
    its own identity."""
    found: dict[tuple[int, int] | str, str] = {}
    for pattern in [patterns] if os.path.exists(patterns) else patterns.split(","):
        pattern = pattern.strip()
        if "://" in pattern:
            found[pattern] = pattern
            continue
        for match in glob.glob(os.path.join(folder, os.path.expanduser(pattern)), recursive=True):
            inside = (
                [match] if os.path.isfile(match) else glob.glob(os.path.join(glob.escape(match), "**"), recursive=True)
            )
            for path in filter(os.path.isfile, inside):
                status = os.stat(path)
                found[status.st_dev, status.st_ino] = os.path.normpath(path)
    return found


class View(Protocol):
    """What is done to a block of canvases before it is encoded. `name` tells all of it."""

    name: str

    def canvas_size(self, image_size: int) -> int:
        """Side of the canvas in pixels that an image of side `image_size` is cut from."""

    def __call__(self, batch: Batch, image_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """B canvases -> images (V, B, 3, H, H) in [0, 1] and parameters (B, P)."""


class CentralView:
    """The central square of each image, as the kNN guard of a training run sees it."""

    name = "central square"

    def canvas_size(self, image_size: int) -> int:
        """That of the image."""
        return image_size

    def __call__(self, batch: Batch, image_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        return batch.canvases.float().unsqueeze(0) / 255, torch.zeros(len(batch), 0)


class PairView:
    """The image and its transformed version in a protocol; g is drawn by (seed, sample key)."""

    def __init__(self, path: TransformationPath, protocol: str, seed: int = 0):
        self.path, self.protocol, self.seed = path, protocol, seed
        self.name = f"{path.name} {path.limits} {protocol if moves(path) else 'in place'} {seed}"

    def canvas_size(self, image_size: int) -> int:
        """What the protocol needs."""
        return canvas_size(image_size, self.path, self.protocol)

    def __call__(self, batch: Batch, image_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        pair = render_pair(batch, self.path, self.protocol, image_size, self.seed)
        return torch.stack([pair.original, pair.transformed]), pair.parameters


@dataclass(frozen=True)
class Features:
    """vectors: (N, V, d) of each kind, V views of N images. parameters: (N, P) of g. labels: (N,), -1 if unknown. keys:
    (N,)."""

    vectors: dict[Feature, torch.Tensor]
    parameters: torch.Tensor
    labels: torch.Tensor
    keys: torch.Tensor

    @staticmethod
    def of_chunks(chunks: Sequence[dict[str, torch.Tensor]]) -> Features:
        """Chunks of the cache, joined."""
        whole = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
        own = {name: whole.pop(name) for name in ("parameters", "labels", "keys")}
        return Features({Feature(*name.split("/")): values for name, values in whole.items()}, **own)


def code_hash(encoder: Encoder | None = None) -> str:
    """SHA-256 of the code that makes features: of the pipeline, or with an encoder of its own class and of its model's
    classes.

    Classes of torch and transformers are left out, whose versions tell; classes from a model's repository are not.
    """
    if encoder is None:
        files = {module.__file__ for module in _FEATURE_CODE}
    else:
        classes = {type(encoder), *(type(module) for module in getattr(encoder, "model", torch.nn.Module()).modules())}
        own = {
            kind for kind in classes if kind.__module__.split(".")[0] not in _LIBRARIES
        }  # remote code: transformers_modules
        files = {inspect.getsourcefile(kind) for kind in own}
    contents = sorted(Path(file).read_bytes() for file in files if file is not None)
    return hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()


class FeatureCache:
    """Chunks of features of one (encoder, samples, view), in files chunk-00000.safetensors ... that are written whole
    or not at all."""

    def __init__(self, root: str | Path, *identity: str):
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        parts = (code_hash(), torch.__version__, transformers.__version__, device, *identity)
        self.folder = Path(root) / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    def state(self, index: int) -> dict | None:
        """Where the stream stood after a chunk: `seen`, `position`, `last`; None where the chunk is missing or
        damaged."""
        try:
            with safe_open(self._path(index), "pt") as file:
                return json.loads(file.metadata()["state"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    def num_done(self) -> tuple[int, bool]:
        """How many chunks there are from the first on, and whether they are all."""
        count, last = 0, False
        while not last and (state := self.state(count)) is not None:
            count, last = count + 1, state["last"]
        return count, last

    def write(self, index: int, tensors: dict[str, torch.Tensor], state: dict) -> None:
        """Write a chunk whole or not at all; `state` is where the stream stands after it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".chunk-{index:05d}-{os.getpid()}.tmp"  # another command may write the same chunk
        save_file(
            {name: values.contiguous() for name, values in tensors.items()},
            temporary,
            metadata={"state": json.dumps(state)},
        )
        temporary.replace(self._path(index))

    def read(self) -> Features:
        """All chunks, joined."""
        os.utime(self.folder)  # used now: see `prune_cache`
        return Features.of_chunks([load_file(self._path(index)) for index in range(self.num_done()[0])])

    def _path(self, index: int) -> Path:
        return self.folder / f"chunk-{index:05d}.safetensors"


def prune_cache(root: str | Path, max_bytes: float) -> int:
    """Remove the features that were used longest ago until the others take no more than `max_bytes`; returns how many
    bytes went.

    Those used within the last hour stay: another command may be at work on them.
    """
    folders: list[tuple[float, int, Path]] = []
    for path in Path(root).glob("*"):
        if _FOLDER_NAME.fullmatch(path.name) and path.is_dir():
            with suppress(FileNotFoundError):  # another command has just removed or renamed what is in it: it is in use
                folders.append((path.stat().st_mtime, sum(file.stat().st_size for file in path.glob("*")), path))
    left = total = sum(size for _, size, _ in folders)
    for used, size, path in sorted(folders):
        if left <= max_bytes or time.time() - used < _IN_USE_SECONDS:
            break
        shutil.rmtree(path, ignore_errors=True)
        left -= size
    return total - left


def extract(
    encoders: Sequence[Encoder], samples: Samples, part: str, view: View, cache_dir: str | Path
) -> dict[str, Features]:
    """Features of all encoders, by name, for the `"train"` or `"test"` images in a view. What the cache holds is not
    computed again.

    Raises:
        ValueError: the source has no images for this part.
    """
    images = samples.fingerprint(part)
    caches = {
        encoder.name: FeatureCache(
            cache_dir, encoder.fingerprint, code_hash(encoder), images, view.name, str(encoder.image_size)
        )
        for encoder in encoders
    }
    for size in sorted({encoder.image_size for encoder in encoders}):
        group = [encoder for encoder in encoders if encoder.image_size == size]
        done = {encoder.name: caches[encoder.name].num_done() for encoder in group}
        missing = [encoder for encoder in group if not done[encoder.name][1]]
        if missing:
            _fill(missing, {e.name: (caches[e.name], done[e.name][0]) for e in missing}, samples, part, view, size)
    return {encoder.name: caches[encoder.name].read() for encoder in encoders}


def _fill(
    encoders: list[Encoder],
    caches: dict[str, tuple[FeatureCache, int]],
    samples: Samples,
    part: str,
    view: View,
    image_size: int,
) -> None:
    """Compute the missing chunks; an encoder that has a chunk already is not run on it."""
    first = min(count for _, count in caches.values())
    behind = next(cache for cache, count in caches.values() if count == first)
    state = behind.state(first - 1) if first else {"seen": 0, "position": None}
    assert state is not None  # the chunk was found a moment ago
    blocks = samples.blocks(part, view.canvas_size(image_size), state["seen"], state["position"])
    total = getattr(samples, f"num_{part}")
    bar = progress(f"features, {view.name.split()[0]}, {part}", total, first * BLOCK_SIZE * BLOCKS_PER_CHUNK, "img")
    index, following = first, list(islice(blocks, BLOCKS_PER_CHUNK))
    if not following:
        raise ValueError(
            f"{getattr(samples, part).name} has no images left to {'fit on' if part == 'train' else 'test on'}: "
            f"{samples.num_test} are taken for testing, lower max_test_samples"
        )
    while following:
        chunk, following = following, []
        vectors: dict[str, dict[str, list[torch.Tensor]]] = {encoder.name: defaultdict(list) for encoder in encoders}
        for batch, _ in chunk:
            images, parameters = view(batch, image_size)
            for encoder in encoders:
                if index >= caches[encoder.name][1]:
                    store = vectors[encoder.name]
                    for feature, values in encoder(images.flatten(0, 1)).items():
                        store[str(feature)].append(values.cpu().unflatten(0, images.shape[:2]).transpose(0, 1))
                    for name, values in (("parameters", parameters), ("labels", batch.labels), ("keys", batch.keys)):
                        store[name].append(values)
            bar.update(len(batch))
        following = list(islice(blocks, BLOCKS_PER_CHUNK))
        batch, seen = chunk[-1]
        state = {"seen": seen, "position": batch.position, "last": not following}
        for encoder in encoders:
            cache, count = caches[encoder.name]
            if index >= count:
                cache.write(index, {name: torch.cat(values) for name, values in vectors[encoder.name].items()}, state)
        index += 1
    bar.close()


def progress(what: str, total: int, initial: int = 0, unit: str = "it") -> tqdm:
    """A bar on a terminal, a line now and then in a log; gone when it is done."""
    interval = 0.2 if sys.stderr.isatty() else 30
    intervals = {"mininterval": interval, "maxinterval": max(interval, 10)}
    return tqdm(
        desc=what, total=total, initial=min(initial, total), unit=unit, leave=False, dynamic_ncols=True, **intervals
    )
