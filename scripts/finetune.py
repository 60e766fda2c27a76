#!/usr/bin/env python
"""Train a head for a dense or geometric task: the command `python -m eqcohvit.commands.finetune`, run from a clone."""

from eqcohvit.commands.finetune import entry

if __name__ == "__main__":
    entry()
