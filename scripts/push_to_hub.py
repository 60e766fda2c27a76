#!/usr/bin/env python
"""Upload a model folder or the demo to the Hub: `python -m eqcohvit.commands.push_to_hub`, run from a clone."""

import sys

from eqcohvit.commands.push_to_hub import cli

if __name__ == "__main__":
    sys.exit(cli())
