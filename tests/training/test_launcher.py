"""Settings of a launcher beside those of the run: one of them counts, and the run says which."""

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import SIZES, load_script

from eqcohvit.downstream.finetune import open_accelerator
from eqcohvit.downstream.options import FinetuneArguments
from eqcohvit.training.arguments import PretrainArguments, parse_arguments
from eqcohvit.training.launcher import ACCUMULATION, PRECISION
from eqcohvit.training.start_settings import complete_settings

SMALL = (
    f"{SIZES} "
    "--probe_samples 0 "
    "--per_device_train_batch_size 2 --max_steps 2 --warmup_steps 0 --logging_steps 1 --save_steps 1 --sample_steps 9"
).split()


def parse(*flags):
    return parse_arguments(list(flags), complete_settings)


def test_a_flag_wins_then_the_launcher_then_the_default(monkeypatch):
    assert parse().mixed_precision is None and parse().gradient_accumulation_steps == 1
    monkeypatch.setenv(PRECISION, "bf16")
    monkeypatch.setenv(ACCUMULATION, "4")
    assert parse().mixed_precision == "bf16" and parse().gradient_accumulation_steps == 4
    args = parse("--mixed_precision", "no", "--gradient_accumulation_steps", "2")
    assert args.mixed_precision == "no" and args.gradient_accumulation_steps == 2


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (PRECISION, "fp8", "launcher sets mixed_precision to 'fp8'; allowed: no, bf16, fp16"),
        (ACCUMULATION, "0", "expected a number from 1 on"),
        (ACCUMULATION, "many", "expected a number from 1 on"),
    ],
)
def test_a_launchers_value_that_no_run_can_have_is_refused(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        parse()


def test_fine_tuning_refuses_accumulation(monkeypatch):
    monkeypatch.setenv(ACCUMULATION, "4")
    with pytest.raises(
        ValueError, match="no gradient accumulation, but the launcher sets gradient_accumulation_steps to 4"
    ):
        open_accelerator(FinetuneArguments(task="depth", model="encoder"))


@pytest.mark.parametrize(
    ("flags", "steps", "origin"), [([], 4, "launcher"), (["--gradient_accumulation_steps", "1"], 1, "set")]
)
def test_every_step_updates_and_the_start_says_where_settings_come_from(
    monkeypatch, photos, tmp_path, capsys, flags, steps, origin
):
    monkeypatch.setenv(ACCUMULATION, "4")
    output_dir = tmp_path / "run"
    assert (
        load_script("pretrain").cli([*SMALL, *flags, "--train_dir", str(photos), "--output_dir", str(output_dir)]) == 0
    )
    said = capsys.readouterr().out
    on = f"on cpu, one process, threads {torch.get_num_threads()}"
    assert f"{on}, precision no (default), accumulation {steps} ({origin})" in said
    assert f"{2 * steps} samples a step" in said
    assert PretrainArguments.saved(output_dir / "config.yaml")["gradient_accumulation_steps"] == steps
    first, second = (load_file(output_dir / "checkpoints" / f"step-{step}" / "model.safetensors") for step in (1, 2))
    assert not torch.equal(first["model.eqcohvit.feature_head.weight"], second["model.eqcohvit.feature_head.weight"])
