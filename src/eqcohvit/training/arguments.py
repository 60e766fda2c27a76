"""The settings of a pretraining run: one dataclass, whose fields are flags and keys of recipes (`cli`)."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .. import cli
from ..cli import RunSettings, registered, setting
from ..files import LOCAL_DATA_SETTINGS, OWN_SETTINGS, SETTINGS_FILE

if TYPE_CHECKING:
    from ..hub.configuration_eqcohvit import EqCohViTConfig
    from ..objectives import ObjectiveOptions
    from ..transforms import BlockMasking, MultiCrop

Completion = Callable[[dict[str, Any], set[str]], dict[str, Any]]
PRECISIONS = ("no", "bf16", "fp16")
CLIPPING = ("none", "module", "parameter")
DROP_PATH_SCHEDULES = ("uniform", "linear")
_DIMENSIONS_A_DIRECTION = 8  # of the invariant part, see scripts/recipes/README.md, "The split"
_SAMPLES_BETWEEN_PROBES = 15_000  # so that they take about 2 % of the time of a small model, and less of a larger one
_PLACES = ("dataset_name", "train_dir", "init_from", "resume_from_checkpoint", "output_dir")
# Titles in --help, by the first setting below each.
_GROUPS = {
    "dataset_name": "data",
    "init_from": "start",
    "model_preset": "model; with init_from, the checkpoint decides the sizes",
    "path": "views",
    "objective": "objective",
    "max_steps": "optimization",
    "output_dir": "run",
}
# A checkpoint knows which images its run reads, so they may be elsewhere when it is resumed.
_MAY_CHANGE_ON_RESUME = (
    "dataset_name data_files train_dir knn_guard_data_files resume_from_checkpoint output_dir max_steps "
    "dataloader_num_workers logging_steps save_steps save_total_limit keep_every_steps sample_steps report_to "
    "push_to_hub push_training_state hub_model_id max_bad_fraction init_from knn_guard_drop probe_steps compile "
    "gradient_checkpointing resident"
)


@dataclass
class PretrainArguments(RunSettings):
    """All settings of pretraining; each field is a flag and a key of a recipe, both with the field's name."""

    file_name: ClassVar[str] = SETTINGS_FILE
    may_change: ClassVar[frozenset[str]] = frozenset(_MAY_CHANGE_ON_RESUME.split())

    # Data
    dataset_name: str | None = setting(
        None, "streamed dataset: Hub id, local folder, or builder (parquet, webdataset, imagefolder)", common=True
    )
    dataset_config_name: str | None = setting(None, "configuration of the dataset")
    dataset_split: str = setting("train", "split of the dataset")
    data_files: str | None = setting(None, "files of the dataset: a glob, or several separated by commas", common=True)
    train_dir: str | None = setting(
        None, "folder tree (or glob) of images, without labels; replaces dataset_name", common=True
    )
    image_column: str | None = setting(None, "column with the images; by default the only column of the image type")
    label_column: str | None = setting(
        None, "labels for the kNN guard ('folder' with train_dir); by default found by type or name"
    )
    max_bad_fraction: float = setting(
        0.01, "stop if more than this share of images is unreadable; unreadable images are skipped and listed"
    )
    dataloader_num_workers: int = setting(0, "processes that decode images; 0 decodes in the training process")
    resident: bool = setting(False, "decode each image once and keep it in the training device's memory if it fits")

    # Start
    init_from: str | None = setting(
        None, "start from a transformers ViT, an EqCohViT model (folders or Hub ids), or a checkpoint", common=True
    )
    init_heads: bool = setting(True, "also take the feature head, decoders, objective heads and teacher from init_from")
    peft: str | None = setting(None, "train adapters in a frozen backbone and merge them on export", ("lora",))
    lora_rank: int = setting(16, "rank of the adapters")
    freeze_backbone: bool = setting(False, "keep the backbone as init_from gives it; train heads and decoders alone")
    knn_guard_steps: int = setting(0, "steps between kNN accuracy checks on held-out labeled images; 0 turns them off")
    knn_guard_drop: float = setting(0.05, "stop if that accuracy (0-1) drops by more than this")
    knn_guard_samples: int = setting(
        2000, "labeled images for the checks, half of them as neighbors; held out of the training data"
    )
    knn_guard_split: str | None = setting(None, "take them from this split of the dataset instead")
    knn_guard_data_files: str | None = setting(
        None, "take them from these files, or from a folder with one subfolder per class"
    )

    # Model; with init_from the checkpoint decides the sizes
    model_preset: str | None = setting(
        "micro", "size of the ViT; larger for photographs on a GPU", registered("hub", "PRESETS"), common=True
    )
    backbone: str = setting("dinov2", "transformers model type of the ViT", registered("hub", "FAMILIES"))
    image_size: int = setting(
        32, "side of the views in pixels; with your own images it follows from their size", common=True
    )
    patch_size: int = setting(8, "side of a patch in pixels")
    drop_path_rate: float = setting(
        0.0, "stochastic depth, 0 to 1 (DINOv2-style backbones); above 0.1 a fixed share of each batch"
    )
    drop_path_schedule: str = setting(
        "uniform", "the same rate in all layers, or linear from 0 in the first layer", DROP_PATH_SCHEDULES
    )
    layerscale_value: float = setting(
        1.0, "initial scale of each residual branch, learned (DINOv2-style backbones); 0 for none"
    )
    feature_dim: int = setting(256, "d_patch: width of the linear feature head")
    equivariant_dim: int = setting(128, "d_equi: how many of these dimensions are the equivariant part")
    num_intermediates: int = setting(2, "K: number of intermediate states to reconstruct")
    include_final: bool = setting(
        False, "also reconstruct the end view v2, with one more decoder (the paper's '2 + final')"
    )
    decoder_dim: int = setting(64, "channels before the first convolution of a decoder")
    decoder_context: str = setting(
        "mean",
        "global equivariant feature that decoders read in addition to each patch's (the paper: none)",
        ("none", "cls", "mean"),
    )
    decoder_patch_dropout: float = setting(
        0.5, "share of samples for which decoders see only that global feature (the paper: 0)"
    )

    # Views
    path: str = setting(
        "rotation",
        f"transformation of the second view: {', '.join(registered('transforms', 'PATHS'))}; join several with +; "
        "a factor such as rotation:2 scales the ranges",
        common=True,
    )
    augmentation: str = setting(
        "path_only",
        "base augmentation of both views; path_only is the paper's 'rot'",
        registered("transforms", "AUGMENTATIONS"),
    )
    border: str = setting(
        "zeros",
        "fills the area outside a moved view: the rest of the photograph, black, a mirror image, or in one half of the "
        "samples black and in the other half the photograph",
        registered("transforms", "VIEW_BORDERS"),
    )
    local_crops_number: int = setting(0, "number of small crops that only the student sees (ibot, dinov2)")
    local_crops_size: int = setting(16, "side of the local crops in pixels")

    # Objective
    objective: str = setting(
        "vicreg", "SSL loss on the invariant part", registered("objectives", "OBJECTIVES"), common=True
    )
    recon_weight: float = setting(
        100.0, "lambda: weight of the reconstruction; 0 is the pure SSL baseline", common=True
    )
    recon_from: str = setting(
        "unmasked",
        "with masked patches: decoders read the features of a second pass, or those of the masked views",
        ("unmasked", "masked"),
    )
    objective_options: str = setting(
        "", "more options of the objective, as name=value,name=value; in a recipe also a mapping"
    )
    invariant_rank: int | None = setting(
        None,
        "the invariant part reads only this many token directions, those most alike in both views; 0 for all, as in "
        "the paper; by default an eighth of the part's dimensions or of the backbone's, whichever are fewer, and all "
        "without the reconstruction",
    )
    invariant_rank_start: float = setting(0.6, "share of the steps (0-1) before invariant_rank takes effect")
    projector_dim: int = setting(512, "hidden width of the objective's projection head")

    # Optimization
    max_steps: int = setting(700, "optimizer steps", common=True)
    per_device_train_batch_size: int = setting(64, "images per device and batch", common=True)
    gradient_accumulation_steps: int = setting(
        1, "batches per step (or the launcher's number); losses see one batch at a time"
    )
    learning_rate: float = setting(3e-3, "peak learning rate of AdamW, not scaled by the batch size", common=True)
    min_learning_rate: float = setting(1e-5, "learning rate at the end of the cosine")
    warmup_steps: int = setting(60, "steps of linear warm-up")
    layer_decay: float = setting(1.0, "learning-rate factor from each backbone layer to the one below it; 1 for none")
    head_warmup_steps: int = setting(0, "first steps in which the backbone is frozen and only the heads learn")
    weight_decay: float = setting(
        0.05, "weight decay of matrices, tokens and positions; biases, norms and LayerScale have none"
    )
    weight_decay_end: float | None = setting(None, "weight decay at the end of a cosine; by default it is constant")
    patch_embed_lr_scale: float = setting(1.0, "extra learning-rate factor for the patch embedding")
    clip_gradients: str = setting(
        "module", "clip the norms of encoder, objective heads and decoders separately, or of each parameter", CLIPPING
    )
    max_grad_norm: float = setting(3.0, "norm that gradients are clipped to")
    mixed_precision: str | None = setting(
        None, "by default the launcher's, else bf16 on GPUs that support it, else no", PRECISIONS
    )
    compile: bool = setting(
        False, "torch.compile the step: slow to start, then faster (a GPU always compiles rendering)"
    )
    gradient_checkpointing: bool = setting(
        False, "store layer inputs only and recompute the rest in backward; uses less memory"
    )
    seed: int = setting(0, "seed of weights, order and views")

    # Run
    output_dir: str = setting(
        "outputs/pretrain", "folder of the run: metrics.jsonl, samples, checkpoints, model", common=True
    )
    resume_from_checkpoint: str | None = setting(
        None, "'latest' of output_dir, a checkpoint folder, or a Hub id with training state", common=True
    )
    logging_steps: int = setting(50, "steps between progress lines")
    save_steps: int = setting(350, "steps between checkpoints")
    save_total_limit: int = setting(2, "number of newest checkpoints to keep")
    keep_every_steps: int = setting(0, "also keep checkpoints at multiples of this step; 0 for none")
    sample_steps: int = setting(350, "steps between pictures of reconstructions")
    probe_samples: int = setting(
        256,
        "held-out images that measure what the parts know of the path during training; of fewer than 768 images, 96 or "
        "a third are held out, each under several draws; of fewer than 30, none; 0 turns the probes off",
    )
    probe_steps: int | None = setting(
        None,
        "steps between probes; by default 50 probes per run, at least 15,000 samples apart, or 10 with fewer than 768 "
        "images",
    )
    report_to: str = setting("none", "an Accelerate tracker: tensorboard, wandb, trackio ...; none: metrics.jsonl only")
    push_to_hub: bool = setting(False, "upload the model folder at the end")
    push_training_state: bool = setting(
        False, "also put the training state into the model folder, so that others can continue exactly"
    )
    hub_model_id: str | None = setting(None, "repository to upload to, user/name")

    given = frozenset[str]()  # names of the settings that a flag or a recipe has set; not a setting itself

    def __post_init__(self) -> None:
        for name in _PLACES:
            if (place := getattr(self, name)) is not None:
                setattr(self, name, os.path.expanduser(place))

    # ------------------------------------------------------------------------------------------------ derived values
    def model_config(self, backbone: dict[str, Any] | None = None) -> EqCohViTConfig:
        """The model's configuration; `backbone` is the configuration of the backbone that `init_from` names."""
        from .model_settings import model_config

        return model_config(self, backbone)

    def separation_rank(self, invariant_dim: int, hidden_size: int) -> int:
        """Number of directions of the backbone's `hidden_size` that an invariant part of so many dimensions reads; 0
        for all."""
        import torch

        if self.invariant_rank is not None:
            return self.invariant_rank
        if self.recon_weight == 0 or torch.backends.mps.is_available():  # Apple's GPUs have no float64
            return 0
        return max(1, min(invariant_dim, hidden_size) // _DIMENSIONS_A_DIRECTION)

    def probe_interval(self, num_processes: int, has_few_images: bool = False) -> int:
        """Steps between two probes. With few images there are at least 10, because such runs are short."""
        if self.probe_steps:
            return self.probe_steps
        samples_per_step = self.per_device_train_batch_size * self.gradient_accumulation_steps * num_processes
        interval = max(math.ceil(self.max_steps / 50), math.ceil(_SAMPLES_BETWEEN_PROBES / samples_per_step))
        return min(interval, math.ceil(self.max_steps / 10)) if has_few_images else interval

    @property
    def canvas_size(self) -> int:
        """Side of the decoded canvas in pixels, which follows from the smallest crops."""
        from ..transforms import training_canvas_size

        return training_canvas_size(self.augmentation, self.image_size, self.multi_crop())

    def parsed_objective_options(self) -> ObjectiveOptions:
        """The options of the chosen objective, as its dataclass."""
        from ..objectives import OBJECTIVES, parse_options

        return parse_options(OBJECTIVES[self.objective].Options, self.objective_options)

    def masking(self) -> BlockMasking | None:
        """How the objective masks the student's patches; None if it does not."""
        from ..objectives import TeacherOptions
        from ..transforms import BlockMasking

        options = self.parsed_objective_options()
        if not isinstance(options, TeacherOptions) or options.mask_probability == 0:
            return None
        return BlockMasking(
            options.mask_probability, options.mask_ratio, options.mask_ratio_variance, options.min_masked_patches
        )

    def multi_crop(self) -> MultiCrop | None:
        """Number and size of the local crops; None for none."""
        from ..transforms import MultiCrop

        return MultiCrop(self.local_crops_number, self.local_crops_size) if self.local_crops_number else None

    def check(self) -> None:
        """Raise a one-line `ValueError` for the first setting that cannot work."""
        from .checks import check

        check(self)

    # ------------------------------------------------------------------------------------------------------- written
    def shareable(self) -> dict[str, Any]:
        """All settings except paths on this machine and decisions of this run's owner."""
        settings = self.to_dict()
        private = {*OWN_SETTINGS, *(name for name in LOCAL_DATA_SETTINGS if settings[name] is not None)}
        private |= {name for name in ("dataset_name", "init_from") if settings[name] and Path(settings[name]).exists()}
        return {name: value for name, value in settings.items() if name not in private}


def read_arguments(argv: Sequence[str] | None = None, usage: str = "pretrain", text: str = "") -> PretrainArguments:
    """Command line -> settings, not yet checked: defaults, overridden by the recipe, overridden by flags.

    Raises:
        ValueError: the recipe cannot be used, or the command line is malformed.
    """
    parser = cli.CommandParser(text, f"{usage} [--config RECIPE] [--train_dir FOLDER] [--output_dir FOLDER] [flags]")
    cli.add_recipe_flags(parser)
    cli.add_settings(parser, PretrainArguments, _GROUPS)
    values = cli.settings_of_command(PretrainArguments, parser, argv)
    args = PretrainArguments(**values)
    args.given = frozenset(values)
    return args


def parse_arguments(argv: Sequence[str] | None = None, *steps: Completion) -> PretrainArguments:
    """Command line -> checked settings (`read_arguments`, `completed`)."""
    return completed(read_arguments(argv), *steps)


def completed(args: PretrainArguments, *steps: Completion) -> PretrainArguments:
    """Checked settings.

    Args:
        steps: in turn, each gets all settings and the names of those that are decided, and returns values for others.

    Raises:
        ValueError: a setting that cannot work.
    """
    given = args.given
    decided = set(given)
    for step in steps:
        values = step(args.to_dict(), decided)
        args = dataclasses.replace(args, **values)
        decided |= values.keys()
    args.given = given
    args.check()
    return args
