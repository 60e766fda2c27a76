"""FSDP2 through Accelerate: two processes train, save, resume and export as they do without shards."""

import json
import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from tests.patience import PATIENCE
from tests.run_server import SHARDED
from tests.tiny import SIZES

from eqcohvit import EqCohViTForPreTraining
from eqcohvit.training.checkpoint import verify_checkpoint
from eqcohvit.training.start import open_start
from eqcohvit.training.start_weights import fill_model

FLAGS = (
    f"{SIZES} "
    "--max_steps 4 "
    "--per_device_train_batch_size 4 --warmup_steps 1 --learning_rate 1e-4 --logging_steps 1 --sample_steps 2 "
    "--save_steps 2 "
    "--probe_samples 0 --invariant_rank 0"
)
CROPS = "--local_crops_number 2 --local_crops_size 8 --objective_options num_prototypes=16"
RUNS = {
    "vicreg": "--objective vicreg --clip_gradients none --invariant_rank 3 --invariant_rank_start 0 --probe_samples 96 "
    "--probe_steps 2",
    "simclr": "--objective simclr --clip_gradients parameter --gradient_accumulation_steps 2",
    "ibot": f"--objective ibot {CROPS} --clip_gradients parameter --gradient_checkpointing",
    "dinov2": f"--objective dinov2 {CROPS} --gradient_accumulation_steps 3 --layer_decay 0.9 --drop_path_rate 0.3",
    "sie": "--objective sie --recon_weight 0",
    "cross_attention": "--objective cross_attention",
    "ibot bf16": f"--objective ibot {CROPS} --mixed_precision bf16 --gradient_accumulation_steps 2",
    "vicreg bf16": "--objective vicreg --mixed_precision bf16",
}


def read(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def farthest(one, two):
    """The largest difference of two files' tensors, but for biases whose gradient is 0 up to rounding, of which Adam
    makes whole steps."""
    one, two = load_file(one), load_file(two)
    assert one.keys() == two.keys()
    # Before a softmax or a batch normalization.
    blind = ("key.bias", "k_proj.bias", "feature_head.bias", "backbone.layernorm.bias")
    parts = {
        name: (one[name].double() - two[name].double()).abs().max().item() for name in one if not name.endswith(blind)
    }
    return max(parts.values())


def train(run_server, tmp_path, name, flags, environment=None):
    argv = [*FLAGS.split(), *flags.split(), "--output_dir", str(tmp_path / name)]
    return run_server.run(argv, tmp_path / f"{name}-record", num_processes=2, environment=environment)


def test_a_killed_sharded_run_goes_on_to_the_same_end_which_is_that_of_a_run_without_shards(run_server, tmp_path):
    flags = f"--objective ibot {CROPS} --invariant_rank 3 --invariant_rank_start 0 --clip_gradients module "
    flags += "--max_grad_norm 0.5"
    train(run_server, tmp_path, "whole", flags)
    log = train(run_server, tmp_path, "sharded", flags, SHARDED)[0].output()
    assert "Warning" not in log

    argv = [*FLAGS.split(), *flags.split(), "--output_dir", str(tmp_path / "killed")]
    argv += ["--resume_from_checkpoint", "latest"]
    lives = run_server.start(argv, tmp_path / "killed-record", num_processes=2, stall="3", environment=SHARDED)
    deadline = time.monotonic() + PATIENCE
    while not all("stalled" in life.output() for life in lives):
        assert time.monotonic() < deadline, lives[0].output()[-2000:]
        time.sleep(0.02)
    for life in lives:
        life.signal(signal.SIGKILL)
        life.wait(PATIENCE)
    resumed = run_server.run(argv, tmp_path / "killed-record", num_processes=2, environment=SHARDED)
    assert "step-2" in resumed[0].output() and "resuming from" in resumed[0].output()

    for path in ("model/model.safetensors", "checkpoints/step-4/model.safetensors"):
        whole, sharded, killed = (load_file(tmp_path / name / path) for name in ("whole", "sharded", "killed"))
        assert all(torch.equal(sharded[name], killed[name]) for name in sharded), path
        assert farthest(tmp_path / "whole" / path, tmp_path / "sharded" / path) < 1e-6, path
    drop = ("samples_per_second", "data_wait_share")
    for line, again in zip(read(tmp_path / "sharded"), read(tmp_path / "killed"), strict=True):
        assert {k: v for k, v in line.items() if k not in drop} == {k: v for k, v in again.items() if k not in drop}
    for line, other in zip(read(tmp_path / "sharded"), read(tmp_path / "whole"), strict=True):
        names = "loss ssl/cls ssl/patch recon/u_1 grad_norm/encoder grad_norm/objective separation/correlation"
        for key in names.split():
            assert line[key] == pytest.approx(other[key], rel=1e-4), key
    assert (tmp_path / "sharded" / "samples" / "step-4.png").is_file()

    checkpoint = tmp_path / "sharded" / "checkpoints" / "step-4"
    verify_checkpoint(checkpoint)
    assert any((checkpoint / "pytorch_model_fsdp_0").iterdir())
    start = open_start(str(checkpoint))
    model = EqCohViTForPreTraining(start.config)
    fill_model(model, start, heads=True)  # as --init_from does
    exported = load_file(tmp_path / "sharded" / "model" / "model.safetensors")
    assert start.objective == "ibot" and torch.equal(
        model.eqcohvit.feature_head.weight, exported["eqcohvit.feature_head.weight"]
    )

    again = [*argv[:-2], "--resume_from_checkpoint", str(checkpoint), "--max_steps", "6"]
    for run in run_server.start(again, tmp_path / "mixed-record", num_processes=2):
        assert run.wait(PATIENCE) == 2
    message = "expected a checkpoint of a run without shards, found one of a sharded run"
    assert message in (tmp_path / "mixed-record" / "rank-0.log").read_text()


def test_backbone_that_learns_later_is_trained_and_resumed_as_without_shards(run_server, tmp_path):
    flags = "--objective vicreg --head_warmup_steps 3 --gradient_accumulation_steps 2"
    train(run_server, tmp_path, "whole", flags)
    train(run_server, tmp_path, "sharded", flags, SHARDED)
    start = tmp_path / "sharded" / "checkpoints" / "step-2"  # the backbone has not learned yet
    resume = f"{flags} --resume_from_checkpoint {start}"
    train(run_server, tmp_path, "resumed", resume, SHARDED)
    whole, sharded, resumed = (
        tmp_path / name / "model" / "model.safetensors" for name in ("whole", "sharded", "resumed")
    )
    assert farthest(whole, sharded) < 1e-6
    assert farthest(sharded, resumed) == 0
    begin, end = load_file(start / "model.safetensors"), load_file(sharded)
    assert any(".backbone." in name and not torch.equal(begin[f"model.{name}"], end[name]) for name in end)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_sharded_training_is_training_without_shards(run_server, tmp_path, run):
    train(run_server, tmp_path, "whole", RUNS[run])
    train(run_server, tmp_path, "sharded", RUNS[run], SHARDED)
    half = "bf16" in run
    for line, other in zip(read(tmp_path / "sharded"), read(tmp_path / "whole"), strict=True):
        assert line.keys() == other.keys()
        for key in line:
            if key.startswith(("loss", "ssl/", "recon/", "probe/")):
                assert line[key] == pytest.approx(other[key], rel=1e-2 if half else 1e-4, abs=1e-4), key
    losses = torch.tensor([line["loss"] for line in read(tmp_path / "sharded")])
    assert (losses.half() != losses).any()  # float32, also where products are bf16
    models = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "sharded")]
    assert farthest(*models) < (5e-4 if half else 1e-6)


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        ("", {"FSDP_VERSION": "1", "FSDP_SYNC_MODULE_STATES": "false"}, "expected FSDP2, got FSDP1"),
        ("", {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "give --gradient_checkpointing instead"),
        ("", {"FSDP_OFFLOAD_PARAMS": "true"}, "expected fsdp_offload_params false, got true"),
        ("--peft lora --init_from {encoder}", {}, "peft=lora leaves little to shard"),
    ],
)
def test_what_cannot_be_sharded_is_refused(run_server, encoder_folder, tmp_path, flags, environment, message):
    argv = [*FLAGS.split()[10:], *flags.format(encoder=encoder_folder).split(), "--output_dir", str(tmp_path / "run")]
    for run in run_server.start(argv, tmp_path / "record", num_processes=2, environment=SHARDED | environment):
        assert run.wait(PATIENCE) == 2 and message in run.output()
    assert not (tmp_path / "run").exists()
