"""What the tests of the Hub room share: a tiny configuration, seeded models, processes that cannot import the
package."""

import subprocess
import sys
from importlib import metadata

import torch
from packaging.requirements import Requirement
from tests.patience import PATIENCE

from eqcohvit import EqCohViTConfig


def tiny_config(model_type="dinov2", image_size=32, backbone_kwargs=None, **kwargs):
    """Two layers of width 32, patches of 8 pixels; 14 invariant and 10 equivariant dimensions."""
    backbone = {
        "model_type": model_type,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "patch_size": 8,
    }
    backbone |= {"mlp_ratio": 2} if model_type.startswith("dinov2") else {"intermediate_size": 64}
    backbone |= {"use_mask_token": False} if model_type == "dinov2" else {}
    backbone |= {"image_size": image_size, **(backbone_kwargs or {})}
    return EqCohViTConfig(
        **{"backbone_config": backbone, "feature_dim": 24, "equivariant_dim": 10, "decoder_dim": 16, **kwargs}
    )


def seeded(model_class, config, seed=0):
    """The model with seeded weights, biases included, in eval mode: a zero bias would hide one that is lost."""
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def requirements(*wanted):
    """The distributions of the requirements ("torch>=2.11") and all that these need, nothing optional: name ->
    distribution."""
    found, left = {}, [*map(Requirement, wanted)]
    while left:
        requirement = left.pop()
        name = requirement.name.lower().replace("_", "-")
        if name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            found[name] = metadata.distribution(name)
            left += map(Requirement, found[name].requires or ())
    return found


def link_distributions(folder, *wanted):
    """Fill the folder with links to what an environment of these requirements alone would hold."""
    for distribution in requirements(*wanted).values():
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))
    return folder


def run_python(script, cwd, site, env=None, timeout=PATIENCE):
    """Standard output of a script in a fresh process that can import the standard library and the folder `site`,
    nothing else."""
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(site)!r})\n{script}"]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
