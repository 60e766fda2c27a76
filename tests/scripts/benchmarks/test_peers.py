"""Official code is read from a folder; without it, or without what it needs, one line says so."""

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

SCRIPTS = Path(__file__).parents[3] / "scripts"


@pytest.fixture
def peers(monkeypatch):
    """The module, and no process group afterwards."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from benchmarks import peers

    yield peers
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in [name for name in sys.modules if name.startswith("benchmarks")]:
        monkeypatch.delitem(sys.modules, name)


def test_classes_are_read_from_a_script_that_cannot_be_imported(peers, tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        "import not_installed\n"
        "class Doubled(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return twice(x) + offset\n"
        "def twice(x):\n"
        "    return 2 * x\n"
        "not_installed.run()\n"
    )
    doubled = peers.classes_of(script, "Doubled", "twice", offset=1).Doubled()
    assert doubled(torch.tensor(3.0)).item() == 7


def test_modules_of_a_repository_leave_no_names_behind(peers, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("import not_installed\n")
    (tmp_path / "models" / "net.py").write_text(
        "from utils import width\nfrom timm.models.registry import register_model\n"
        "@register_model\ndef net():\n    return width\n"
    )
    (tmp_path / "utils.py").write_text("width = 5\n")
    before = set(sys.modules), list(sys.path)
    with peers.imported_from(tmp_path):
        from models.net import net

        assert net() == 5
    assert (set(sys.modules), list(sys.path)) == before


def test_what_is_missing_is_named(peers, tmp_path):
    with pytest.raises(peers.Missing, match=r"ibot is not there"), peers.imported_from(tmp_path / "ibot"):
        pass
    with pytest.raises(peers.Missing, match=r"main_vicreg.py is not there"):
        peers.classes_of(tmp_path / "main_vicreg.py", "VICReg")


def test_vicreg_trains_with_the_backbone_and_the_official_settings(peers, tmp_path, monkeypatch):
    """A stand-in for both: the loss is known, and a step makes it smaller."""
    (tmp_path / "vicreg").mkdir()
    (tmp_path / "vicreg" / "main_vicreg.py").write_text(
        "class VICReg(nn.Module):\n"
        "    def __init__(self, args):\n"
        "        super().__init__()\n"
        "        self.backbone, self.width = resnet.__dict__[args.arch](zero_init_residual=True)\n"
        "        assert (args.mlp, args.batch_size, args.sim_coeff) == ('8-8', 4, 25.0)\n"
        "    def forward(self, x, y):\n"
        "        losses.append((self.backbone(x) - self.backbone(y)).square().mean())\n"
        "        return losses[-1]\n"
        "def Projector(): pass\n"
        "def off_diagonal(): pass\n"
        "class FullGatherLayer: pass\n"
        "losses = []\n"
    )
    kept = []
    read = peers.classes_of
    monkeypatch.setattr(peers, "classes_of", lambda path, *names, **known: read(path, *names, **known, losses=kept))
    timm = SimpleNamespace(
        VisionTransformer=lambda **sizes: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(3))
    )
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "timm.models", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "timm.models.vision_transformer", timm)
    backbone = SimpleNamespace(patch_size=4, hidden_size=3, num_hidden_layers=1, num_attention_heads=1)
    views = SimpleNamespace(first=torch.randn(4, 3, 8, 8), end=torch.randn(4, 3, 8, 8))
    config = SimpleNamespace(backbone_config=backbone)
    step = peers.vicreg_step(tmp_path, config, "8-8", views, lambda: torch.autocast("cpu", enabled=False))
    step()
    step()
    assert kept[1] < kept[0]


@pytest.mark.parametrize(("heads", "targets"), [("shared", "centering"), ("separate", "sinkhorn")])
def test_dinov2_trains_with_the_official_parts(peers, tmp_path, heads, targets):
    """A stand-in for them: each view's targets come from the other view, and a step makes the loss smaller."""
    package = tmp_path / "dinov2" / "dinov2"
    for name in ("models", "layers", "loss"):
        (package / name).mkdir(parents=True)
        (package / name / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "models" / "vision_transformer.py").write_text(
        "from torch import nn\n"
        "class DinoVisionTransformer(nn.Module):\n"
        "    def __init__(self, embed_dim, patch_size, **sizes):\n"
        "        super().__init__()\n"
        "        self.patch = nn.Conv2d(3, embed_dim, patch_size, patch_size)\n"
        "    def forward(self, x, masks=None, is_training=False):\n"
        "        tokens = self.patch(x).flatten(2).transpose(1, 2)\n"
        "        return {'x_norm_clstoken': tokens.mean(1), 'x_norm_patchtokens': tokens}\n"
    )
    (package / "layers" / "__init__.py").write_text(
        "from torch import nn\n"
        "NestedTensorBlock = MemEffAttention = object\n"
        "class DINOHead(nn.Linear):\n"
        "    def __init__(self, in_dim, out_dim, hidden_dim, bottleneck_dim):\n"
        "        super().__init__(in_dim, out_dim)\n"
    )
    (package / "loss" / "__init__.py").write_text(
        "from torch import nn\n"
        "seen = []\n"
        "class DINOLoss(nn.Module):\n"
        "    def __init__(self, out_dim): super().__init__()\n"
        "    def softmax_center_teacher(self, x, t): return x\n"
        "    def sinkhorn_knopp_teacher(self, x, t, count=None): return x\n"
        "    def update_center(self, x): pass\n"
        "    def forward(self, students, teachers):\n"
        "        total = sum((s - t).square().mean() for s in students for t in teachers)\n"
        "        seen.append((len(students), len(teachers), float(total.detach())))\n"
        "        return total\n"
        "class iBOTPatchLoss(DINOLoss):\n"
        "    def forward_masked(self, s, t, masks, count, weights):\n"
        "        assert len(s) == count == int(masks.sum()) and abs(float(weights.sum()) - 2) < 1e-6\n"
        "        return (s - t.view_as(s)).square().mean()\n"
        "class KoLeoLoss(nn.Module):\n"
        "    def forward(self, x): return 0 * x.sum()\n"
    )
    torch.manual_seed(0)
    masks = torch.zeros(2, 2, 4, dtype=torch.bool)
    masks[0, 0, :3] = masks[1, 1, 1:] = True  # one view of each image
    views = SimpleNamespace(
        first=torch.randn(2, 3, 8, 8), end=torch.randn(2, 3, 8, 8), local=torch.randn(2, 3, 3, 4, 4), masks=masks
    )
    backbone = SimpleNamespace(
        patch_size=4,
        hidden_size=6,
        num_hidden_layers=1,
        num_attention_heads=1,
        layerscale_value=1.0,
        drop_path_rate=0.0,
    )
    options = SimpleNamespace(
        num_prototypes=5, bottleneck_dim=4, heads=heads, targets=targets, teacher_temperature=0.07, koleo_weight=0.1
    )
    config = SimpleNamespace(backbone_config=backbone)
    losses = []
    networks = peers._dinov2_networks

    def kept(*args):
        student, teacher, module = networks(*args)
        losses.append(module.seen)
        return student, teacher, module

    peers._dinov2_networks = kept
    no_autocast = partial(torch.autocast, "cpu", enabled=False)
    step = peers.dinov2_step(tmp_path, config, options, 7, views, no_autocast)
    for _ in range(3):
        step()
    assert [seen[:2] for seen in losses[0]] == [(3, 2), (1, 1)] * 3  # three local crops see both targets
    of_globals = [total for _, _, total in losses[0][1::2]]
    assert of_globals[0] > 0  # equal weights: a view's own targets would give 0
    assert of_globals[2] < of_globals[0]
