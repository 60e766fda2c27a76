import dataclasses

import pytest

from eqcohvit.cli import choices_of, list_recipes, recipe_names
from eqcohvit.hub.configuration_eqcohvit import FAMILIES, PRESETS
from eqcohvit.objectives import OBJECTIVES
from eqcohvit.training.arguments import PretrainArguments, parse_arguments
from eqcohvit.transforms import AUGMENTATIONS, PATHS
from eqcohvit.transforms.views import VIEW_BORDERS


def test_defaults_are_valid():
    assert parse_arguments([]) == PretrainArguments()


def test_flags_override_the_recipe_and_the_recipe_the_defaults(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("path: se2\nmax_steps: 7\nlearning_rate: 2e-3\npush_to_hub: false\ntrain_dir: null\n")
    args = parse_arguments(["--config", str(recipe), "--max_steps", "9"])
    assert (args.path, args.max_steps, args.learning_rate, args.train_dir) == ("se2", 9, 2e-3, None)


def test_options_of_an_objective_are_a_mapping_in_a_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    options = "num_prototypes: 32, heads: separate, norm_last_layer: true, teacher_momentum: 0.9"
    recipe.write_text(f"objective: ibot\nobjective_options: {{{options}}}\n")
    options = parse_arguments(["--config", str(recipe)]).parsed_objective_options()
    assert (options.num_prototypes, options.heads, options.norm_last_layer, options.teacher_momentum) == (
        32,
        "separate",
        True,
        0.9,
    )
    args = parse_arguments(
        ["--config", str(recipe), "--objective_options", "num_prototypes=8"]
    )  # a flag replaces the whole
    assert args.parsed_objective_options().num_prototypes == 8 and args.parsed_objective_options().heads == "shared"


def test_saved_settings_are_a_recipe(tmp_path):
    args = parse_arguments(["--path", "rotation+zoom", "--recon_weight", "0.5"])
    args.save(tmp_path / "config.yaml")
    assert parse_arguments(["--config", str(tmp_path / "config.yaml")]) == args


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--path spin", "unknown path 'spin'; known: rotation"),
        ("--equivariant_dim 256", "equivariant_dim must lie between 1 and feature_dim - 1 = 255, got 256"),
        ("--num_intermediates 0", "num_intermediates must be at least 1, got 0"),
        ("--image_size 30", "patch_size must divide image_size: 30 is not a multiple of 8"),
        ("--image_size 2", "image_size must be at least patch_size = 8, got 2"),
        ("--max_steps 0", "max_steps must be positive, got 0"),
        ("--recon_weight -1", "recon_weight must not be negative"),
        ("--max_bad_fraction 2", "max_bad_fraction must lie between 0 and 1"),
        ("--per_device_train_batch_size 1", "must be at least 2"),
        ("--recon_weight nan", "recon_weight must be a finite number, got nan"),
        ("--push_to_hub", "push_to_hub needs hub_model_id"),
        (
            "--objective ibot --backbone vit_mae",
            "hides patches behind a mask token, which vit_mae does not have",
        ),
        ("--objective ibot --objective_options mask_ratio=0.9", "must lie between 0 and 1, got 0.9"),
        ("--objective ibot --objective_options num_prototype=9", "did you mean 'num_prototypes'"),
        (
            "--objective simclr --objective_options teacher_momentum=1",
            "of this objective's options .temperature, out_dim., got",
        ),
        (
            "--local_crops_number 2",
            "local_crops_number must be 0 for the objective vicreg; local crops are used by ibot, dinov2",
        ),
        ("--objective ibot --local_crops_number -1", "local_crops_number must not be negative, got -1"),
        (
            "--objective ibot --local_crops_number 2 --local_crops_size 12",
            "must be a multiple of patch_size = 8, got 12",
        ),
        ("--backbone vit --drop_path_rate 0.1", "drop_path_rate needs one of the backbones dinov2, .*, got vit"),
        ("--layerscale_value -1", "layerscale_value must not be negative, got -1"),
        ("--weight_decay_end -1", "weight_decay_end must not be negative, got -1"),
        ("--peft lora", "peft=lora needs init_from"),
        ("--freeze_backbone", "freeze_backbone needs init_from"),
        ("--freeze_backbone --init_from x --peft lora", "expected freeze_backbone or peft=lora, got both"),
        ("--knn_guard_split test", "need knn_guard_steps"),
        ("--knn_guard_drop 2", "knn_guard_drop must lie between 0 and 1, got 2"),
        ("--objective vicregg", "objective must be one of vicreg, .*, got 'vicregg'; did you mean 'vicreg'"),
        ("--backbone resnet", "backbone must be one of dinov2, "),
        ("--border wrap", "border must be one of canvas, zeros, reflection, mixed, got 'wrap'"),
        ("--model_preset huge", "model_preset must be one of micro, tiny, small, base, large, got 'huge'"),
        ("--augmentation none", "augmentation must be one of path_only, "),
        ("--config cifar_vicreg", "cannot read the recipe cifar_vicreg: .*; did you mean 'cifar10_vicreg'"),
        ("--probe_samples 95", "probe_samples must be 0 or at least 96, got 95"),
        ("--probe_steps 0", "probe_steps must be positive, got 0; probe_samples 0 turns the probes off"),
        ("--invariant_rank -1", "invariant_rank must not be negative, got -1; 0 turns the separation off"),
        ("--invariant_rank_start 1.5", "invariant_rank_start must lie between 0 and 1, got 1.5"),
        ("--layer_decay 0", r"layer_decay must lie in \(0, 1\], got 0"),
        ("--config missing.yaml", "cannot read the recipe missing.yaml: No such file"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(flags, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_arguments(flags.split())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "known"),
    [
        ("--decoder_context max", "decoder_context must be one of none, cls, mean, got 'max'"),
        ("--nope 1", "--nope"),
        ("--max_step 1", "did you mean '--max_steps'?"),
    ],
)
def test_unknown_flags_and_choices_are_refused_and_say_what_is_known(flags, known):
    with pytest.raises(ValueError) as error:
        parse_arguments(flags.split())
    assert known in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pth: se2\n", "unknown setting 'pth' in .*; did you mean 'path'"),
        ("- a\n", "must be a mapping of settings, got list"),
        ("a: [1\n", "is not valid YAML"),
    ],
)
def test_bad_recipes_are_refused(text, message, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(ValueError, match=message):
        PretrainArguments.saved(recipe)


def test_resume_refuses_settings_that_change_the_run():
    args = PretrainArguments(max_steps=10, learning_rate=0.1)
    args.check_resumable(dataclasses.asdict(PretrainArguments(max_steps=5, logging_steps=1, learning_rate=0.1)))
    with pytest.raises(ValueError, match="learning_rate was 0.5, is 0.1; seed was 3, is 0"):
        args.check_resumable(dataclasses.asdict(PretrainArguments(learning_rate=0.5, seed=3)))


def test_probes_are_at_most_50_and_at_least_15000_samples_apart():
    assert PretrainArguments(max_steps=700, per_device_train_batch_size=64).probe_interval(1) == 235
    assert PretrainArguments(max_steps=700, per_device_train_batch_size=64).probe_interval(4) == 59
    assert PretrainArguments(max_steps=125_000, per_device_train_batch_size=64).probe_interval(32) == 2500
    assert PretrainArguments(probe_steps=7).probe_interval(1) == 7
    few = {"has_few_images": True}
    assert PretrainArguments(max_steps=700, per_device_train_batch_size=64).probe_interval(1, **few) == 70
    assert PretrainArguments(max_steps=125_000, per_device_train_batch_size=64).probe_interval(32, **few) == 2500
    assert PretrainArguments(probe_steps=7).probe_interval(1, **few) == 7


@pytest.mark.parametrize(
    ("name", "registry"),
    [
        ("objective", OBJECTIVES),
        ("backbone", FAMILIES),
        ("model_preset", PRESETS),
        ("augmentation", AUGMENTATIONS),
        ("border", VIEW_BORDERS),
    ],
)
def test_help_lists_what_a_registry_has_without_importing_it(name, registry):
    fields = {field.name: field for field in dataclasses.fields(PretrainArguments)}
    assert list(choices_of(fields[name])) == list(registry)


def test_help_of_the_path_names_all_paths():
    (text,) = [field.metadata["help"] for field in dataclasses.fields(PretrainArguments) if field.name == "path"]
    assert all(f" {name}" in text for name in PATHS)


def test_every_setting_is_explained():
    assert all(len(field.metadata["help"]) > 10 for field in dataclasses.fields(PretrainArguments))


def test_help_shows_defaults_where_there_are_some(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: None)" not in text and "(default: )" not in text
    assert "peak learning rate of AdamW, not scaled by the batch size (default: 0.003)" in text
    titles = [
        title
        for title in ("data:", "start:", "views:", "objective:", "optimization:", "run:")
        if f" {title} --" in text
    ]
    assert titles == ["data:", "start:", "views:", "objective:", "optimization:", "run:"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resume_from_checkpoint: true", "resume_from_checkpoint in the recipe must be text or a number, got true"),
        ("max_steps: yes", "max_steps in the recipe must be text or a number, got true"),
        ("peft: no", "peft in the recipe must be text or a number, got false"),
        ("compile: fast", "compile in the recipe must be true or false, got 'fast'"),
        ("resident: 1", "resident in the recipe must be true or false, got 1"),
        ("max_steps: 2.5", "max_steps in the recipe must be a whole number, got 2.5"),
        ("learning_rate: fast", "learning_rate in the recipe must be a number, got 'fast'"),
    ],
)
def test_a_value_of_another_kind_in_a_recipe_is_named(text, message, tmp_path):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        parse_arguments(["--config", str(tmp_path / "recipe.yaml")])


def test_yamls_no_is_the_word_where_that_is_a_choice(tmp_path):
    (tmp_path / "recipe.yaml").write_text("mixed_precision: no\ncompile: no\n")
    args = parse_arguments(["--config", str(tmp_path / "recipe.yaml")])
    assert args.mixed_precision == "no" and args.compile is False and args.given == {"mixed_precision", "compile"}


def test_the_home_folder_may_be_written_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "recipe.yaml").write_text("max_steps: 7")
    args = parse_arguments(["--config", "~/recipe.yaml", "--output_dir=~/x", "--train_dir=~/photos"])
    assert (args.output_dir, args.train_dir, args.max_steps) == (f"{tmp_path}/x", f"{tmp_path}/photos", 7)


def test_the_images_of_a_resumed_run_may_have_moved():
    PretrainArguments(train_dir="/new").check_resumable(dataclasses.asdict(PretrainArguments(train_dir="/old")))


def test_recipes_are_listed_with_what_they_are_and_fit_a_terminal(capsys):
    with pytest.raises(SystemExit) as done:
        parse_arguments(["--list_recipes"])
    assert done.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names() and "cifar10_vicreg" in recipe_names()
    assert all(len(line) <= 100 for line in lines) and lines == list_recipes().splitlines()


def test_a_recipe_is_found_by_its_name():
    args = parse_arguments(["--config", "cifar10_vicreg", "--max_steps", "9"])
    assert (args.path, args.patch_size, args.max_steps) == ("se2", 4, 9)
    assert {"path", "patch_size", "max_steps"} <= args.given
