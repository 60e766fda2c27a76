import os
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = Path(__file__).with_name("run_two_processes.py")


def test_two_processes_of_half_the_batch_have_the_gradients_of_one(tmp_path):
    output = tmp_path / "two.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    namespace: dict = {"__name__": "loaded"}
    exec(compile(SCRIPT.read_text(), SCRIPT, "exec"), namespace)
    for objective, two in torch.load(output, weights_only=True).items():
        module = namespace["make_module"](objective)
        loss = module(*namespace["make_batch"]())["loss"]
        loss.backward()
        assert torch.allclose(two["loss"], loss, rtol=1e-5)
        gradients = {name: p.grad for name, p in module.named_parameters()}
        assert gradients.keys() == two["gradients"].keys()
        scale = max(gradient.abs().max().item() for gradient in gradients.values())  # some are 0 but for rounding: a bias before a norm
        for name, gradient in gradients.items():
            assert torch.allclose(gradient, two["gradients"][name], rtol=1e-3, atol=1e-5 * scale), (objective, name)
        for name, buffer in module.named_buffers():
            assert torch.allclose(buffer.float(), two["buffers"][name].float(), rtol=1e-4, atol=1e-6), (objective, name)
