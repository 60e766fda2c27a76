"""Images from anywhere to batches of canvases."""

from .decode import BadImage, Decoded, decode_image
from .retry import ReadError
from .sources import DatasetSource, FolderSource, Record, Source, SpritesSource, hold_out, open_source
from .stream import Batch, CanvasStream, TooManyBadImages, sequential

__all__ = [
    "BadImage",
    "Batch",
    "CanvasStream",
    "DatasetSource",
    "Decoded",
    "FolderSource",
    "ReadError",
    "Record",
    "Source",
    "SpritesSource",
    "TooManyBadImages",
    "decode_image",
    "hold_out",
    "open_source",
    "sequential",
]
