#!/usr/bin/env python
"""Pretrain an equivariance-coherent ViT: the command `python -m eqcohvit.commands.pretrain`, run from a clone."""

from eqcohvit.commands.pretrain import entry

if __name__ == "__main__":
    entry()
