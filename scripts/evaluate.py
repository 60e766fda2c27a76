#!/usr/bin/env python
"""Evaluate frozen features of pretrained models: `python -m eqcohvit.commands.evaluate`, run from a clone."""

import sys

from eqcohvit.commands.evaluate import cli

if __name__ == "__main__":
    sys.exit(cli())
