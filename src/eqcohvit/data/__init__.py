"""Images from anywhere to batches of canvases."""

from .datasets_source import DatasetSource, open_source
from .decode import BadImage, Decoded, decode_image
from .resident import ResidentCanvases
from .retry import ReadError
from .sources import FolderSource, Record, Source, SpritesSource, hold_out
from .stream import Batch, CanvasStream, TooManyBadImages, check_first_rows, describe_data, sequential

__all__ = [
    "BadImage",
    "Batch",
    "CanvasStream",
    "DatasetSource",
    "Decoded",
    "FolderSource",
    "ReadError",
    "Record",
    "ResidentCanvases",
    "Source",
    "SpritesSource",
    "TooManyBadImages",
    "check_first_rows",
    "decode_image",
    "describe_data",
    "hold_out",
    "open_source",
    "sequential",
]
