"""Self-supervised objectives for the invariant part. A new one is a file with a subclass of `Objective` and a line
below."""

from .base import Objective, ObjectiveInputs, ObjectiveOptions, ObjectiveSizes, TeacherOptions, Tokens, parse_options
from .cross_attention import CrossAttention
from .dinov2 import DINOv2
from .ibot import IBOT
from .sie import SIE
from .simclr import SimCLR
from .vicreg import VICReg

OBJECTIVES: dict[str, type[Objective]] = {
    "vicreg": VICReg,
    "simclr": SimCLR,
    "ibot": IBOT,
    "dinov2": DINOv2,
    "sie": SIE,
    "cross_attention": CrossAttention,
}

__all__ = [
    "IBOT",
    "OBJECTIVES",
    "SIE",
    "CrossAttention",
    "DINOv2",
    "ObjectiveOptions",
    "Objective",
    "ObjectiveInputs",
    "ObjectiveSizes",
    "SimCLR",
    "TeacherOptions",
    "Tokens",
    "VICReg",
    "parse_options",
]
