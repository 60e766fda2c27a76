"""Self-supervised objectives for the invariant part. A new one is a file with a subclass of `Objective` and a line below."""

from .base import Objective
from .simclr import SimCLR
from .vicreg import VICReg

OBJECTIVES: dict[str, type[Objective]] = {"vicreg": VICReg, "simclr": SimCLR}

__all__ = ["OBJECTIVES", "Objective", "SimCLR", "VICReg"]
