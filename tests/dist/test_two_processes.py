import json
import os
import subprocess
from pathlib import Path

import torch
from tests.patience import PATIENCE
from tests.tiny import SIZES, TWO_PROCESSES

from eqcohvit.objectives import OBJECTIVES

SCRIPT = Path(__file__).with_name("run_two_processes.py")


def run_two(words, **environment):
    """What a script prints, on both streams, that `torchrun` runs in two processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([*TWO_PROCESSES, *words], capture_output=True, text=True, timeout=PATIENCE, env=environment)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_two_processes_of_half_the_batch_make_the_step_of_one(tmp_path):
    """With DDP, and sharded with FSDP2: loss, gradients, teacher and centers."""
    output = tmp_path / "two.pt"
    run_two([str(SCRIPT), str(output)])
    namespace: dict = {"__name__": "loaded"}
    exec(compile(SCRIPT.read_text(), SCRIPT, "exec"), namespace)
    results = torch.load(output, weights_only=True)
    assert set(OBJECTIVES) < set(namespace["RUNS"])
    assert set(results) == {run + kind for run in namespace["RUNS"] for kind in ("", " sharded")}
    for kind, two in results.items():
        run = kind.removesuffix(" sharded")
        one = namespace["train_step"](namespace["make_module"](run), namespace["make_views"](run))
        assert torch.allclose(two["loss"], one["loss"], rtol=1e-5), kind
        assert one["gradients"].keys() == two["gradients"].keys() and one["state"].keys() == two["state"].keys()
        # Some are 0 but for rounding: a bias before a norm.
        scale = max(gradient.abs().max().item() for gradient in one["gradients"].values())
        for name, gradient in one["gradients"].items():
            assert torch.allclose(gradient, two["gradients"][name], rtol=1e-3, atol=1e-5 * scale), (kind, name)
        for name, value in one["state"].items():
            assert torch.allclose(value.float(), two["state"][name].float(), rtol=1e-4, atol=1e-6), (kind, name)


def test_pretraining_in_two_processes_and_its_resume(photos, tmp_path):
    script = SCRIPT.parents[2] / "scripts" / "pretrain.py"
    flags = (
        f"{SIZES} "
        "--per_device_train_batch_size 4 --warmup_steps 2 --logging_steps 2 --save_steps 3 --sample_steps 4 "
        "--objective ibot --local_crops_number 2 --local_crops_size 8 --objective_options num_prototypes=16"
    ).split()
    flags += ["--train_dir", str(photos), "--output_dir", str(tmp_path / "run"), "--resume_from_checkpoint", "latest"]
    for max_steps in ("3", "5"):
        output = run_two([str(script), *flags, "--max_steps", max_steps], ACCELERATE_USE_CPU="true")
    assert "on 2 x cpu" in output and "resuming from" in output and "Warning" not in output
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 3, 4, 5]
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_two_processes_stop_together_where_a_term_is_not_finite(run_server, photos, tmp_path):
    flags = (
        f"{SIZES} "
        "--learning_rate 1e30 "
        "--per_device_train_batch_size 4 --warmup_steps 1 --max_steps 9 --save_steps 1 --logging_steps 9 "
        "--sample_steps 9"
    ).split()
    argv = [*flags, "--train_dir", str(photos), "--output_dir", str(tmp_path / "run")]
    for run in run_server.start(argv, tmp_path / "record", num_processes=2):
        assert run.wait(PATIENCE) == 1 and "not finite" in run.output()
    folder = tmp_path / "run" / "nonfinite"
    assert sorted(path.name for path in folder.glob("*.json")) == [f"step-2-rank-{rank}.json" for rank in (0, 1)]


def test_accumulated_batches_exchange_their_gradients_once_a_step(run_server, photos, tmp_path):
    flags = (
        f"{SIZES} "
        "--max_steps 2 "
        "--per_device_train_batch_size 4 --gradient_accumulation_steps 3 --warmup_steps 1 --logging_steps 9 "
        "--sample_steps 9 --save_steps 9"
    ).split()
    run_server.run(
        [*flags, "--train_dir", str(photos), "--output_dir", str(tmp_path / "run")],
        tmp_path / "record",
        num_processes=2,
    )
    for rank in (0, 1):
        exchanges = [
            json.loads(line) for line in (tmp_path / "record" / f"rank-{rank}.exchanges").read_text().splitlines()
        ]
        assert exchanges == [False, False, True] * 2
