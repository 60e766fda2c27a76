import re
from pathlib import Path

import pytest

from eqcohvit.training.arguments import parse_arguments

FOLDER = Path(__file__).parents[2] / "scripts" / "recipes"
PUBLISHED = {  # batch and epochs of arXiv:2503.18753, section 4
    "imagenet1k_vicreg_vits16": (2048, 800),
    "imagenet1k_ibot_vits16": (1024, 800),
    "imagenet1k_ibot_vitl16": (1024, 250),
    "imagenet1k_dinov2_vitl16": (2048, 100),
}


@pytest.mark.parametrize("recipe", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipe_can_be_run_and_its_header_says_how(recipe):
    args = parse_arguments(["--config", str(recipe)])
    assert args.model_config().feature_dim == args.feature_dim
    header = "".join(line for line in recipe.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"--config scripts/recipes/{recipe.name}" in header and "accelerate launch" in header
    assert re.search(r"GPU|CPU", header)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipe_has_the_epochs_and_the_batch_of_the_paper(name):
    recipe, (batch, epochs) = FOLDER / f"{name}.yaml", PUBLISHED[name]
    args = parse_arguments(["--config", str(recipe)])
    assert args.per_device_train_batch_size * int(re.search(r"--num_processes (\d+)", recipe.read_text())[1]) == batch
    assert args.max_steps * batch / 1_281_167 == pytest.approx(epochs, rel=0.01)  # the images of ImageNet-1k
