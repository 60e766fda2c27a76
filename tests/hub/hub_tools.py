"""What the tests of the Hub room share: a tiny configuration, seeded models, processes that cannot import the package."""

import subprocess
import sys

import torch

from eqcohvit import EqCohViTConfig

# Stands before a script's own lines: the package, an editable install, cannot be imported in that process.
BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "eqcohvit":
            raise ModuleNotFoundError(f"{name} is blocked in this process")
sys.meta_path.insert(0, Blocker())
try:
    import eqcohvit
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package could be imported")
"""


def tiny_config(model_type="dinov2", image_size=32, backbone_kwargs=None, **kwargs):
    """Two layers of width 32, patches of 8 pixels; 14 invariant and 10 equivariant dimensions."""
    backbone = {"model_type": model_type, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8}
    backbone |= {"mlp_ratio": 2} if model_type.startswith("dinov2") else {"intermediate_size": 64}
    backbone |= {"use_mask_token": False} if model_type == "dinov2" else {}
    backbone |= {"image_size": image_size, **(backbone_kwargs or {})}
    return EqCohViTConfig(**{"backbone_config": backbone, "feature_dim": 24, "equivariant_dim": 10, "decoder_dim": 16, **kwargs})


def seeded(model_class, config, seed=0):
    """The model with seeded weights, biases included, in eval mode: a zero bias would hide one that is lost."""
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def run_without_package(script, cwd, env=None, timeout=120):
    """Standard output of a Python script in a fresh process in which `import eqcohvit` fails."""
    done = subprocess.run([sys.executable, "-c", BLOCKER + script], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
