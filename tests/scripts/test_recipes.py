"""The recipes: they build at their full size, run a step at a small one, and hold the values that their documents say
they hold."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from transformers import Dinov2Config, Dinov2Model

from eqcohvit.cli import RECIPES as FOLDER
from eqcohvit.hub.configuration_eqcohvit import PRESETS
from eqcohvit.objectives import OBJECTIVES
from eqcohvit.training.arguments import PretrainArguments, parse_arguments
from eqcohvit.training.build import build_model, build_module, build_renderer
from eqcohvit.training.optim import clip_gradients, make_optimizer, set_step
from eqcohvit.training.schedules import step_values
from eqcohvit.training.start_settings import complete_settings

README = Path(__file__).parents[2] / "scripts" / "recipes" / "README.md"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SIZES = {"micro": (0.5e6, 0.7e6), "small": (21e6, 22.5e6), "large": (302e6, 305e6)}  # parameters of the ViT
PUBLISHED = {  # batch, epochs and steps of an epoch: arXiv:2503.18753, section 4; DINOv2 counts 1,250 steps as an epoch
    "imagenet1k_vicreg_vits16": (2048, 800, 626),
    "imagenet1k_vicreg_sie_vits16": (2048, 800, 626),
    "imagenet1k_ibot_vits16": (1024, 800, 1251),
    "imagenet1k_ibot_vitl16": (1024, 250, 1251),
    "imagenet1k_dinov2_vitl16": (2048, 100, 1250),
    "imagenet1k_dinov2_vitl16_lvd": (3072, 500, 1250),
}
SMALL = (
    "--model_preset micro --feature_dim 16 --equivariant_dim 8 --decoder_dim 16 --projector_dim 16 "
    "--image_size 32 --patch_size 8 --per_device_train_batch_size 4"
).split()


def parse(name: str, *flags: str) -> PretrainArguments:
    return parse_arguments(["--config", name, *flags])


def header(name: str) -> str:
    return "".join(
        line for line in (FOLDER / f"{name}.yaml").read_text().splitlines(keepends=True) if line.startswith("#")
    )


@pytest.mark.parametrize("name", RECIPES)
def test_header_says_how_the_recipe_is_run(name):
    assert f"--config {name}" in header(name) and "accelerate launch" in header(name)
    assert re.search(r"GPU|CPU", header(name))


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_builds_at_its_full_size(name):
    args = parse(name)
    with torch.device("meta"):
        module = build_module(args, build_model(args))
    encoder = sum(p.numel() for p in module.model.eqcohvit.backbone.parameters())
    low, high = SIZES[args.model_preset or ""]
    assert (
        low < encoder < high
        and module.model.config.backbone_config.hidden_size == PRESETS[args.model_preset]["hidden_size"]
    )
    assert module.model.eqcohvit.feature_head.out_features == args.feature_dim
    build_renderer(args)


def read_yaml(name: str) -> dict:
    """The recipe as it is written, with its options as a mapping."""
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_runs_a_step_at_a_small_size(name):
    """With its objective, options, views and optimizer; only what makes it large is smaller."""
    options = read_yaml(name).get("objective_options", {})
    options |= {
        key: 12 for key in ("num_prototypes", "bottleneck_dim") if OBJECTIVES[parse(name).objective].uses_teacher
    }
    options |= {key: 0 for key in options if key == "freeze_last_layer_steps"}  # so that all parameters move
    flags = ["--objective_options", ",".join(f"{key}={str(value).lower()}" for key, value in options.items())]
    if parse(name).local_crops_number:
        flags += ["--local_crops_size", "16"]
    if parse(name).invariant_rank:
        flags += ["--invariant_rank", "4"]
    args = parse(name, *SMALL, *flags)
    torch.manual_seed(0)
    module, renderer = build_module(args, build_model(args)).train(), build_renderer(args)
    optimizer = make_optimizer(
        module, args.learning_rate, args.weight_decay, args.layer_decay, args.patch_embed_lr_scale
    )
    values = step_values(args.warmup_steps, args)
    set_step(optimizer, values)
    before = [p.detach().clone() for p in module.parameters()]
    keys = torch.arange(4)
    canvases = torch.randint(0, 256, (4, 3, 40, 40), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    views = renderer(canvases, sizes=torch.full((4, 2), 64), keys=keys, epochs=torch.zeros_like(keys))
    terms = module(views, values)
    terms["loss"].backward()
    norms = clip_gradients(module.parts(), args.clip_gradients, args.max_grad_norm)
    assert all(value.isfinite() for value in (*terms.values(), *norms.values())) and len(norms) == 3
    optimizer.step()
    module.after_step(0, values.teacher_momentum)
    moved = [not torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True) if p.requires_grad]
    assert sum(moved) > 0.9 * len(moved)
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_imagenet_recipe_has_the_published_batch_and_steps(name):
    batch, epochs, steps = PUBLISHED[name]
    args, processes = parse(name), int(re.search(r"--num_processes (\d+)", header(name))[1])
    assert args.per_device_train_batch_size * processes == batch
    assert args.max_steps == epochs * steps
    assert args.keep_every_steps % args.save_steps == 0 and args.max_steps % args.save_steps == 0


# ---------------------------------------------------------------------- the tables "ours and published" of README.md
RUN = {  # settings of no effect on what is learnt, or on the machines alone
    "objective", "per_device_train_batch_size", "dataloader_num_workers",
    "save_steps", "keep_every_steps", "sample_steps", "logging_steps",
}  # fmt: skip
# What the equivariance task adds, the same in all recipes of a method: it has its own table, with one recipe of
# each.
TASK = {
    "path", "recon_weight", "recon_from", "decoder_context", "decoder_patch_dropout", "invariant_rank", "feature_dim",
    "equivariant_dim", "decoder_dim",
}  # fmt: skip


def tables() -> list[tuple[list[str], list[list[str]]]]:
    """The tables whose first column is `setting`: recipes of the next columns, and rows."""
    found = []
    for block in re.findall(r"^\| setting \|.*\n(?:\|.*\n)+", README.read_text(), flags=re.MULTILINE):
        title, _, *rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        found.append(([name.strip("`") for name in title if name.startswith("`")], rows))
    return found


@cache
def settings_of(name: str) -> dict:
    """All that a recipe sets, with the objective's options among it."""
    recipe = read_yaml(name)
    return {**recipe, **recipe.get("objective_options", {})}


def value_of(cell: str):
    value = yaml.safe_load(cell.replace(",", ""))
    return (
        float(value) if isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value) else value
    )  # YAML wants a sign in the exponent


@pytest.mark.parametrize(("recipes", "rows"), [pytest.param(*table, id=table[0][0]) for table in tables()])
def test_tables_have_the_values_of_the_recipes(recipes, rows):
    assert recipes and rows
    for setting, *cells in rows:
        for name, cell in zip(recipes, cells, strict=False):
            found = settings_of(name).get(setting.strip("`"), getattr(PretrainArguments, setting.strip("`"), None))
            assert value_of(cell) == found, f"{setting} of {name}: the table has {cell}, the recipe {found}"


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("imagenet1k_")])
def test_tables_have_each_setting_of_an_imagenet_recipe(name):
    listed = {row[0].strip("`") for recipes, rows in tables() if name in recipes for row in rows}
    ours = settings_of(name)
    if name == "imagenet1k_dinov2_vitl16_highres":  # has what changes after the first phase
        first = settings_of("imagenet1k_dinov2_vitl16")
        ours = {key: value for key, value in ours.items() if value != first.get(key)}
    assert ours.keys() - RUN - TASK - {"objective_options"} <= listed


def test_the_task_is_the_same_in_all_imagenet_recipes_of_a_method():
    (shown,) = [recipes for recipes, rows in tables() if {row[0].strip("`") for row in rows} == TASK]
    examples = {settings_of(name)["objective"]: name for name in shown}
    for name in (name for name in RECIPES if name.startswith("imagenet1k_")):
        ours, example = settings_of(name), settings_of(examples[settings_of(name)["objective"]])
        assert {key: ours.get(key) for key in TASK} == {key: example.get(key) for key in TASK}


def test_sources_of_the_tables_are_files_at_a_commit():
    text = README.read_text()
    sources = dict(re.findall(r"^\[([\w-]+)\]: (\S+)$", text, flags=re.MULTILINE))
    section = text[text.index("## Ours and published") : text.index(f"[{next(iter(sources))}]:")]
    assert set(re.findall(r"\[([\w-]+)\](?!\()", section)) == sources.keys()
    pattern = r"https://github\.com/[\w.-]+/[\w.-]+/blob/[0-9a-f]{40}/\S+|https://arxiv\.org/abs/\d{4}\.\d{5}"
    assert all(re.fullmatch(pattern, link) for link in sources.values())


def test_the_recipe_for_photographs_starts_from_a_vit_of_any_size(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path / "start")
    flags = ["--config", "photos", "--init_from", str(tmp_path / "start"), "--peft", "lora"]
    args = parse_arguments(flags, complete_settings)
    assert (args.image_size, args.patch_size, args.model_preset, args.recon_weight) == (84, 14, None, 10)
