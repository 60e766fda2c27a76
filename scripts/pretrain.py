#!/usr/bin/env python
"""Pretrain an equivariance-coherent ViT: the command `python -m eqcohvit.commands.pretrain`, run from a clone."""

from eqcohvit.commands.pretrain import cli
from eqcohvit.training.signals import leave

if __name__ == "__main__":
    leave(cli())
