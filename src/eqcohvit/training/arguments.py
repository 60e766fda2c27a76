"""Settings of a pretraining run: one dataclass, read from a YAML recipe and the command line, checked in one place."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ..evaluation.run_probe import LEAST_PROBE_SAMPLES
from ..files import write_text_whole
from ..hub.configuration_eqcohvit import PRESETS, SUPPORTED_BACKBONES, EqCohViTConfig
from ..objectives import OBJECTIVES, NoOptions, TeacherOptions, parse_options
from ..transforms import AUGMENTATIONS, BlockMasking, MultiCrop, make_path, training_canvas_size
from ..transforms.ops import BORDERS
from .recipe_flags import as_flags

RECIPES = Path(__file__).parents[1] / "recipes"
PRECISIONS = ("no", "bf16", "fp16")
CLIPPING = ("none", "module", "parameter")
DROP_PATH_SCHEDULES = ("uniform", "linear")
_SAMPLES_BETWEEN_PROBES = 15_000  # so that they take about 2 % of the time of a small model, and less of a larger one


def _setting(default: Any, text: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass
class PretrainArguments:
    """All settings of `scripts/pretrain.py`; each field is a flag of the same name and a key of a recipe."""

    # Data
    dataset_name: str | None = _setting(
        None, "Hub id, local dataset folder, or builder (parquet, webdataset, imagefolder); streamed"
    )
    dataset_config_name: str | None = _setting(None, "configuration of the dataset")
    dataset_split: str = _setting("train", "split of the dataset")
    data_files: str | None = _setting(None, "files of the dataset: a glob, or several separated by commas")
    train_dir: str | None = _setting(
        None, "any folder tree (or glob) of images, no labels needed; instead of dataset_name"
    )
    image_column: str | None = _setting(None, "image column; by default the only one of the image type")
    label_column: str | None = _setting(
        None, "labels for the kNN guard ('folder' with train_dir); by default found by type or name"
    )
    max_bad_fraction: float = _setting(
        0.01, "share of unreadable images above which the run stops; below it they are skipped and listed"
    )
    dataloader_num_workers: int = _setting(0, "processes that decode images; 0 decodes in the training process")
    resident: bool = _setting(
        False, "keep decoded images in the memory of the training device while it has room: each is decoded once"
    )

    # Start
    init_from: str | None = _setting(
        None, "transformers ViT, EqCohViT model (folders or Hub ids), or checkpoint of a run to start from"
    )
    init_heads: bool = _setting(
        True, "take the feature head, decoders, objective's heads and teacher from there too, where it has them"
    )
    peft: str | None = _setting(
        None, "train adapters in a backbone that stays as it is; the exported model has them merged", ("lora",)
    )
    lora_rank: int = _setting(16, "rank of the adapters")
    knn_guard_steps: int = _setting(0, "steps between checks of the kNN accuracy on held-out labelled images; 0 is off")
    knn_guard_drop: float = _setting(0.05, "fall of that accuracy since the start, of 1, at which the run stops")
    knn_guard_samples: int = _setting(
        2000, "labelled images for it, half of them neighbours; taken out of the training data"
    )
    knn_guard_split: str | None = _setting(None, "split of the dataset to take them from instead")
    knn_guard_data_files: str | None = _setting(
        None, "files, or a folder with a folder for each class, to take them from instead"
    )

    # Model; with init_from the sizes are those of the checkpoint
    model_preset: str | None = _setting("micro", "size of the ViT", tuple(PRESETS))
    backbone: str = _setting("dinov2", "transformers model type of the ViT", SUPPORTED_BACKBONES)
    image_size: int = _setting(32, "side of the views in pixels")
    patch_size: int = _setting(8, "side of a patch in pixels")
    drop_path_rate: float = _setting(
        0.0, "stochastic depth, 0 to 1 (DINOv2-style backbones); above 0.1 a fixed share of each batch"
    )
    drop_path_schedule: str = _setting(
        "uniform", "that rate in all layers, or from 0 in the first to it in the last", DROP_PATH_SCHEDULES
    )
    layerscale_value: float = _setting(
        1.0, "start of the learned scale of each residual branch (DINOv2-style backbones); 0: none"
    )
    feature_dim: int = _setting(256, "d_patch: width of the linear feature head")
    equivariant_dim: int = _setting(128, "d_equi: how many of these dimensions are the equivariant part")
    num_intermediates: int = _setting(2, "K: number of intermediate states to reconstruct")
    include_final: bool = _setting(
        False, "reconstruct the end view v2 too, with one more decoder (the paper's '2 + final')"
    )
    decoder_dim: int = _setting(64, "channels before the first convolution of a decoder")
    decoder_context: str = _setting(
        "mean",
        "global equivariant feature that the decoders read besides each patch's own (the paper: none)",
        ("none", "cls", "mean"),
    )
    decoder_patch_dropout: float = _setting(
        0.5, "share of samples whose decoders see that global feature alone (the paper: 0)"
    )

    # Views
    path: str = _setting("rotation", "transformation of the second view; several joined by + are walked together")
    path_magnitude: float = _setting(1.0, "scales the ranges of the path's parameters")
    augmentation: str = _setting(
        "path_only", "base augmentation of both views; path_only is the paper's 'rot'", tuple(AUGMENTATIONS)
    )
    border: str = _setting(
        "zeros", "what lies outside a moved view: the photograph itself, black, or its mirror image", BORDERS
    )
    local_crops_number: int = _setting(
        0, "number of small crops for the student alone, where the objective uses them (ibot, dinov2)"
    )
    local_crops_size: int = _setting(16, "side of the local crops in pixels")

    # Objective
    objective: str = _setting("vicreg", "SSL loss on the invariant part", tuple(OBJECTIVES))
    recon_weight: float = _setting(100.0, "lambda: weight of the reconstruction; 0 is the pure SSL baseline")
    recon_from: str = _setting(
        "unmasked",
        "where patches are hidden, the decoders read the features of a second pass or the masked views'",
        ("unmasked", "masked"),
    )
    objective_options: str = _setting(
        "", "further options of the objective as name=value,name=value; in a recipe also a mapping"
    )
    invariant_rank: int = _setting(
        0,
        "directions of the backbone's tokens that the invariant part reads, those most alike in both views; 0 is all (the paper)",
    )
    projector_dim: int = _setting(512, "hidden width of the objective's projection head")

    # Optimisation
    max_steps: int = _setting(700, "optimizer steps")
    per_device_train_batch_size: int = _setting(64, "images in a step on each device, before accumulation")
    gradient_accumulation_steps: int = _setting(
        1, "batches summed up in a step (or the launcher's number); the losses see one at a time"
    )
    learning_rate: float = _setting(3e-3, "peak learning rate of AdamW, not scaled by the batch size")
    min_learning_rate: float = _setting(1e-5, "learning rate at the end of the cosine")
    warmup_steps: int = _setting(60, "steps of linear warm-up")
    layer_decay: float = _setting(
        1.0, "factor of the learning rate from each backbone layer to the one below it; 1 treats all alike"
    )
    head_warmup_steps: int = _setting(0, "first steps, in which the backbone stays as it is and only the heads learn")
    weight_decay: float = _setting(
        0.05, "weight decay of matrices, tokens and positions; biases, norms and LayerScale have none"
    )
    weight_decay_end: float | None = _setting(None, "weight decay at the end of a cosine; by default it stays as it is")
    patch_embed_lr_scale: float = _setting(1.0, "further factor on the learning rate of the patch embedding")
    clip_gradients: str = _setting(
        "module", "by the norm of encoder, objective's heads and decoders apart, or of each parameter", CLIPPING
    )
    max_grad_norm: float = _setting(3.0, "norm that gradients are clipped to")
    mixed_precision: str | None = _setting(
        None, "by default the launcher's, else bf16 on GPUs that have it, else no", PRECISIONS
    )
    compile: bool = _setting(
        False, "compile the step by torch.compile: minutes at the start for faster steps; on GPUs the rendering too"
    )
    gradient_checkpointing: bool = _setting(
        False, "keep the backbone's layers' inputs alone and compute the rest again: less memory"
    )
    seed: int = _setting(0, "seed of weights, order and views")

    # Run
    output_dir: str = _setting("outputs/pretrain", "folder of the run: metrics.jsonl, samples, checkpoints, model")
    resume_from_checkpoint: str | None = _setting(
        None, "'latest' of output_dir, a checkpoint folder, or a Hub id with training state"
    )
    logging_steps: int = _setting(50, "steps between progress lines")
    save_steps: int = _setting(350, "steps between checkpoints")
    save_total_limit: int = _setting(2, "newest checkpoints to keep")
    keep_every_steps: int = _setting(0, "besides, keep the checkpoints at multiples of this step; 0 keeps none")
    sample_steps: int = _setting(350, "steps between pictures of reconstructions")
    probe_samples: int = _setting(
        256, "images, not trained on, that tell what the parts know of the path while it trains; 0 is off"
    )
    probe_steps: int | None = _setting(
        None, "steps between these probes; by default 50 in a run, but at least 15,000 samples apart"
    )
    report_to: str = _setting(
        "none", "an Accelerate tracker: tensorboard, wandb, trackio ...; none keeps to metrics.jsonl"
    )
    push_to_hub: bool = _setting(False, "upload the model folder at the end")
    push_training_state: bool = _setting(
        False, "put the training state into the model folder too: others can go on exactly from there"
    )
    hub_model_id: str | None = _setting(None, "repository to upload to, user/name")

    given = frozenset[str]()  # names of the settings that a flag or a recipe has set; no setting itself

    def __post_init__(self) -> None:
        for name in _PLACES:
            if (place := getattr(self, name)) is not None:
                setattr(self, name, os.path.expanduser(place))

    def model_config(self, backbone: dict[str, Any] | None = None) -> EqCohViTConfig:
        """The configuration of the model that these settings describe; `backbone` is that of the model that `init_from`
        names."""
        backbone_kwargs = self._backbone_kwargs(backbone["model_type"] if backbone else self.backbone)
        head = {
            "feature_dim": self.feature_dim,
            "equivariant_dim": self.equivariant_dim,
            "num_intermediates": self.num_intermediates,
            "include_final": self.include_final,
            "decoder_dim": self.decoder_dim,
            "decoder_context": self.decoder_context,
            "decoder_patch_dropout": self.decoder_patch_dropout,
            "path": self.path,
            "border": self.border,
        }
        if backbone is not None:
            return EqCohViTConfig(
                backbone_config={**backbone, **backbone_kwargs, "image_size": self.image_size}, **head
            )
        if self.model_preset is None:
            raise ValueError(
                f"model_preset must be one of {', '.join(PRESETS)} where nothing else says how large the model is"
            )
        return EqCohViTConfig.from_preset(
            self.model_preset,
            self.image_size,
            self.patch_size,
            backbone_type=self.backbone,
            backbone_kwargs=backbone_kwargs,
            **head,
        )

    def probe_interval(self, num_processes: int) -> int:
        """Steps between two probes."""
        samples_per_step = self.per_device_train_batch_size * self.gradient_accumulation_steps * num_processes
        return self.probe_steps or max(
            math.ceil(self.max_steps / 50), math.ceil(_SAMPLES_BETWEEN_PROBES / samples_per_step)
        )

    @property
    def canvas_size(self) -> int:
        """Side of the decoded canvas in pixels, which follows from the smallest crops."""
        return training_canvas_size(self.augmentation, self.image_size, self.multi_crop())

    def _backbone_kwargs(self, family: str) -> dict[str, Any]:
        """Fields of the backbone's configuration that these settings change, for a backbone of this model type."""
        kwargs: dict[str, Any] = {}
        if self.masking() is not None:
            if family == "vit_mae":
                raise ValueError(
                    f"objective {self.objective} hides patches behind a mask token, which the encoder of vit_mae has not: "
                    "choose another backbone, or --objective_options mask_probability=0"
                )
            kwargs["use_mask_token"] = True
        for name, neutral in (("drop_path_rate", (0.0,)), ("layerscale_value", (0.0, 1.0))):
            if getattr(self, name) not in neutral:
                if family not in _DINO_BACKBONES:
                    raise ValueError(f"{name} needs one of the backbones {', '.join(_DINO_BACKBONES)}, got {family}")
                kwargs[name] = getattr(self, name)
        return kwargs

    def parsed_objective_options(self) -> NoOptions:
        """The options of the chosen objective, of its own dataclass."""
        return parse_options(OBJECTIVES[self.objective].Options, self.objective_options)

    def masking(self) -> BlockMasking | None:
        """How the objective hides patches from the student; None where it hides none."""
        options = self.parsed_objective_options()
        if not isinstance(options, TeacherOptions) or options.mask_probability == 0:
            return None
        return BlockMasking(
            options.mask_probability, options.mask_ratio, options.mask_ratio_variance, options.min_masked_patches
        )

    def multi_crop(self) -> MultiCrop | None:
        """Number and size of the local crops; None for none."""
        return MultiCrop(self.local_crops_number, self.local_crops_size) if self.local_crops_number else None

    def _check_local_crops(self) -> None:
        if self.local_crops_number < 0:
            raise ValueError(f"local_crops_number must not be negative, got {self.local_crops_number}")
        if self.local_crops_number and not OBJECTIVES[self.objective].uses_local_crops:
            users = ", ".join(name for name, objective in OBJECTIVES.items() if objective.uses_local_crops)
            raise ValueError(
                f"local_crops_number must be 0 for the objective {self.objective}; local crops are used by {users}"
            )
        if self.local_crops_number and (
            self.local_crops_size < self.patch_size or self.local_crops_size % self.patch_size
        ):
            raise ValueError(
                f"local_crops_size must be a multiple of patch_size = {self.patch_size}, got {self.local_crops_size}"
            )

    def check(self) -> None:
        """Raise a `ValueError` of one line for the first setting that cannot work."""
        if self.model_preset is not None or (self.init_from is None and self.resume_from_checkpoint is None):
            self.model_config()
        self._check_local_crops()
        make_path(self.path, self.path_magnitude)
        positive = (
            "max_steps per_device_train_batch_size gradient_accumulation_steps learning_rate max_grad_norm projector_dim "
            "patch_embed_lr_scale lora_rank knn_guard_samples "
            "logging_steps save_steps save_total_limit sample_steps"
        )
        for name, value in self.to_dict().items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value}")
        for name in positive.split():
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        not_negative = (
            "recon_weight layerscale_value warmup_steps head_warmup_steps weight_decay min_learning_rate dataloader_num_workers "
            "keep_every_steps knn_guard_steps probe_samples"
        )
        for name in not_negative.split():
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.weight_decay_end is not None and self.weight_decay_end < 0:
            raise ValueError(f"weight_decay_end must not be negative, got {self.weight_decay_end}")
        for name in ("max_bad_fraction", "drop_path_rate", "knn_guard_drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        if 0 < self.probe_samples < LEAST_PROBE_SAMPLES:
            raise ValueError(f"probe_samples must be 0 or at least {LEAST_PROBE_SAMPLES}, got {self.probe_samples}")
        if self.probe_steps is not None and self.probe_steps < 1:
            raise ValueError(
                f"probe_steps must be positive, got {self.probe_steps}; probe_samples 0 turns the probes off"
            )
        if self.invariant_rank < 0:
            raise ValueError(
                f"invariant_rank must not be negative, got {self.invariant_rank}; 0 turns the separation off"
            )
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must lie in (0, 1], got {self.layer_decay}")
        if self.per_device_train_batch_size < 2:
            size = self.per_device_train_batch_size
            raise ValueError(
                f"per_device_train_batch_size must be at least 2, because the objectives compare images, got {size}"
            )
        if self.keep_every_steps % self.save_steps:
            raise ValueError(
                f"keep_every_steps must be a multiple of save_steps={self.save_steps}, got {self.keep_every_steps}"
            )
        if self.peft and not self.init_from and not self.resume_from_checkpoint:
            raise ValueError(f"peft={self.peft} needs init_from: adapters beside random weights learn little")
        if (self.knn_guard_split or self.knn_guard_data_files) and not self.knn_guard_steps:
            raise ValueError(
                "knn_guard_split and knn_guard_data_files need knn_guard_steps, the steps between two checks"
            )
        if self.resident and not (self.train_dir or self.dataset_name or self.data_files):
            raise ValueError(
                "resident needs images that come again (train_dir, dataset_name, data_files); embedded sprites never do"
            )
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("push_to_hub needs hub_model_id, for example user/name")

    def to_dict(self) -> dict[str, Any]:
        """All settings by name."""
        return dataclasses.asdict(self)

    def shareable(self) -> dict[str, Any]:
        """All settings but the places on this machine and what only this run's owner decides."""
        private = {
            "output_dir",
            "resume_from_checkpoint",
            "report_to",
            "push_to_hub",
            "push_training_state",
            "hub_model_id",
        }
        places = [
            name for name in ("train_dir", "data_files", "knn_guard_data_files") if getattr(self, name) is not None
        ]
        places += [
            name
            for name in ("dataset_name", "init_from")
            if (place := getattr(self, name)) is not None and Path(place).exists()
        ]
        private |= set(places)
        return {name: value for name, value in self.to_dict().items() if name not in private}

    def save(self, path: Path) -> None:
        """Write all settings as a recipe."""
        write_text_whole(path, yaml.safe_dump(self.to_dict(), sort_keys=False))


_PLACES = ("dataset_name", "train_dir", "init_from", "resume_from_checkpoint", "output_dir")
# Where the images lie; a checkpoint that knows which they are can be resumed from where they have moved.
_DATA_PLACES = {"dataset_name", "data_files", "train_dir", "knn_guard_data_files"}
_DINO_BACKBONES = ("dinov2", "dinov2_with_registers", "dinov3_vit")

# Titles of --help, by the first setting below each.
_GROUPS = {
    "dataset_name": "data", "init_from": "start", "model_preset": "model; with init_from the sizes are those of the checkpoint",
    "path": "views", "objective": "objective", "max_steps": "optimisation", "output_dir": "run",
}  # fmt: skip

# What may differ when a run is resumed: nothing here changes the steps that are already done.
_MAY_CHANGE_ON_RESUME = {
    "resume_from_checkpoint", "output_dir", "max_steps", "dataloader_num_workers", "logging_steps", "save_steps", "save_total_limit",
    "keep_every_steps", "sample_steps", "report_to", "push_to_hub", "push_training_state", "hub_model_id", "max_bad_fraction", "init_from",
    "knn_guard_drop", "probe_steps", "compile", "gradient_checkpointing", "resident",
}  # fmt: skip


def check_resumable(args: PretrainArguments, saved: dict[str, Any], may_move: bool = False) -> None:
    """Raise a `ValueError` that names each setting in which a resumed run differs from the saved one; with `may_move`
    but for places."""
    given, free = args.to_dict(), _MAY_CHANGE_ON_RESUME | (_DATA_PLACES if may_move else set())
    free = (
        free if saved.get("mixed_precision") else free | {"mixed_precision"}
    )  # older runs have not written which it was
    changed = [name for name in given if name not in free and name in saved and saved[name] != given[name]]
    if changed:
        differences = "; ".join(f"{name} was {saved[name]!r}, is {given[name]!r}" for name in changed)
        raise ValueError(f"cannot resume with other settings: {differences}")


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe, by the name of one that the package brings or by its path."""
    ours = RECIPES / f"{name}.yaml"
    return ours if ours.is_file() else Path(name).expanduser()


def load_recipe(path: str | Path) -> dict[str, Any]:
    """Read a recipe, a flat YAML mapping of field names to values, by its name or path.

    Raises:
        ValueError: the file is missing, is no mapping, or names an unknown field.
    """
    try:
        recipe = yaml.safe_load(find_recipe(path).read_text())
    except OSError as error:
        raise ValueError(f"cannot read the recipe {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"the recipe {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"the recipe {path} must be a mapping of settings, got {type(recipe).__name__}")
    known = [f.name for f in dataclasses.fields(PretrainArguments)]
    for key in recipe:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise ValueError(f"unknown setting {key!r} in {path}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return recipe


def parse_arguments(
    argv: list[str] | None = None, complete: Callable[[dict[str, Any], set[str]], dict[str, Any]] | None = None
) -> PretrainArguments:
    """Command line -> checked settings: defaults, overridden by `--config RECIPE`, overridden by flags.

    Args:
        complete: from all settings and the names of those that were given, the values that replace some.

    Raises:
        ValueError: a setting that cannot work. `SystemExit` with code 2 and one line for a malformed command line.
    """
    parser = argparse.ArgumentParser(
        description="Pretrain an equivariance-coherent ViT. Without any flag: the embedded sprites and a small model, minutes on a CPU.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.error = lambda message: _exit(f"error: {message}")
    no_default = "%(default).0s"  # of no width; without it the formatter would add "default: None"
    parser.add_argument(
        "--config",
        metavar="RECIPE",
        help=f"name or YAML file of a recipe with any of the settings below; flags override it{no_default}",
    )
    group = parser
    for f in dataclasses.fields(PretrainArguments):
        group = parser.add_argument_group(_GROUPS[f.name]) if f.name in _GROUPS else group
        kind = next(k for k in (bool, int, float, str) if k.__name__ in f.type)
        choices = f.metadata["choices"]
        if kind is bool:
            group.add_argument(
                f"--{f.name}", action=argparse.BooleanOptionalAction, default=f.default, help=f.metadata["help"]
            )
        else:
            text = (
                f.metadata["help"]
                + (" (%(choices)s)" if choices else "")
                + (no_default if f.default in (None, "") else "")
            )
            metavar = kind.__name__.upper()
            group.add_argument(f"--{f.name}", type=kind, default=f.default, choices=choices, metavar=metavar, help=text)
    argv = sys.argv[1:] if argv is None else argv
    recipe_path = parser.parse_args(argv).config
    if recipe_path:  # through the same parser, so that types and choices are checked alike
        argv = [*as_flags(load_recipe(recipe_path), PretrainArguments), *argv]
    values = _values(parser, argv)
    given = {name for name in values if any(flag.split("=")[0] in (f"--{name}", f"--no-{name}") for flag in argv)}
    if complete is not None:
        completed = complete(values, given)
        empty: dict[str, Any] = {name: None for name, value in completed.items() if value is None}
        values = (
            _values(parser, [*argv, *as_flags(completed, PretrainArguments)]) | empty
        )  # through the parser, like a recipe
    args = PretrainArguments(**values)
    args.given = frozenset(given)
    args.check()
    return args


def _values(parser: argparse.ArgumentParser, argv: list[str]) -> dict[str, Any]:
    values = vars(parser.parse_args(argv))
    values.pop("config")
    return values


def _exit(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)
