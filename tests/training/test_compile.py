"""torch.compile of the step: one graph without breaks, no recompilation, and the losses and gradients of the eager
step."""

import pytest
import torch
from tests.tiny import SIZES, load_script
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from eqcohvit.hub.modeling_eqcohvit import EqCohViTForPreTraining
from eqcohvit.objectives import OBJECTIVES
from eqcohvit.training import pretrain
from eqcohvit.training.arguments import PretrainArguments
from eqcohvit.training.build import build_module, build_renderer
from eqcohvit.training.schedules import step_values

TEACHER = {"ibot", "dinov2"}


def make(objective):
    """Module and renderer of a tiny model with all that the objective offers."""
    args = PretrainArguments(
        objective=objective, objective_options="num_prototypes=16,bottleneck_dim=8" if objective in TEACHER else "",
        local_crops_number=1 if objective in TEACHER else 0, local_crops_size=8, image_size=16, patch_size=4,
        feature_dim=24, equivariant_dim=8, decoder_dim=16, projector_dim=16, augmentation="vicreg", path="se2",
        decoder_patch_dropout=0.0, logging_steps=2, max_steps=4, invariant_rank=4, invariant_rank_start=0.0,
    )  # fmt: skip
    args.check()
    torch.manual_seed(0)
    backbone = {
        "model_type": "dinov2",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "patch_size": 4,
    }
    backbone |= {"mlp_ratio": 2, "use_mask_token": objective in TEACHER}
    model = EqCohViTForPreTraining(args.model_config(backbone))
    return args, build_module(args, model).train(), build_renderer(args)


def canvases():
    keys = torch.arange(6)
    pixels = torch.randint(0, 256, (6, 3, 20, 20), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return {"canvases": pixels, "sizes": torch.full((6, 2), 20), "keys": keys, "epochs": torch.zeros_like(keys)}


@pytest.mark.parametrize(
    "objective", [o if o == "vicreg" else pytest.param(o, marks=pytest.mark.slow) for o in OBJECTIVES]
)
def test_compiled_step_is_one_graph_and_equals_the_eager_one(objective):
    args, eager, renderer = make(objective)
    compiled = make(objective)[1]
    torch._dynamo.reset()
    counters.clear()
    compiled.compile(backend="aot_eager", fullgraph=True)
    views = renderer(**canvases())
    for step in range(4):  # steps 1 and 3 are logged
        values = step_values(step, args)
        expected, terms = eager(views, values), compiled(views, values)
        assert expected.keys() == terms.keys()
        for name, value in terms.items():
            assert torch.allclose(value, expected[name], rtol=1e-4, atol=1e-5), name
    expected["loss"].backward()
    terms["loss"].backward()
    gradients = {name: p.grad for name, p in eager.named_parameters() if p.grad is not None}
    scale = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, parameter in compiled.named_parameters():
        assert name not in gradients or torch.allclose(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5 * scale), (
            name
        )
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    for module in (eager, compiled):
        module.after_step(0, 0.9)
    heads = [module.model.eqcohvit.feature_head.weight for module in (eager, compiled)]
    assert torch.linalg.matrix_rank(heads[0][:16]) == 4 and torch.allclose(*heads, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "path", ["se2", *(pytest.param(p, marks=pytest.mark.slow) for p in ("perspective+color_jitter", "gaussian_blur"))]
)
def test_compiled_rendering_is_one_graph_and_equals_the_eager_one(path):
    args = PretrainArguments(
        path=path,
        augmentation="vicreg",
        image_size=16,
        patch_size=4,
        objective="ibot",
        local_crops_number=1,
        local_crops_size=8,
    )
    eager, compiled = build_renderer(args), build_renderer(args)
    torch._dynamo.reset()
    counters.clear()
    compiled.compile(backend="aot_eager", fullgraph=True)
    batch = canvases()
    for epoch in range(2):
        batch["epochs"] += epoch
        expected = eager(**batch)
        views = compiled(**batch)
        for name in ("first", "end", "intermediates", "local"):
            assert torch.allclose(getattr(views, name), getattr(expected, name), atol=1e-4), name
        assert torch.equal(views.masks, expected.masks) and torch.equal(views.parameters, expected.parameters)
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    "objective", ["ibot", *(pytest.param(o, marks=pytest.mark.slow) for o in ("vicreg", "dinov2"))]
)
@pytest.mark.parametrize("head_warmup_steps", [0, 3])
def test_a_run_compiles_each_graph_once(monkeypatch, tmp_path, objective, head_warmup_steps):
    """Over five steps of two batches, with logs, pictures, heads that learn alone at first, and a teacher whose
    temperature rises."""
    command = load_script("pretrain")
    steps, views = CompileCounter(), CompileCounter()
    prepare = pretrain.prepare

    def prepare_and_compile(args, accelerator, trained, renderer):
        prepared = prepare(args, accelerator, trained, renderer)
        trained.compile(backend=steps)
        renderer.compile(backend=views)
        return prepared

    monkeypatch.setattr(pretrain, "prepare", prepare_and_compile)
    torch._dynamo.reset()
    flags = (
        f"{SIZES} "
        "--max_steps 5 "
        "--warmup_steps 1 --logging_steps 2 --save_steps 9 --sample_steps 2 --probe_samples 0 --drop_path_rate 0.1 "
        f"--per_device_train_batch_size 8 --gradient_accumulation_steps 2 --objective {objective} "
        f"--head_warmup_steps {head_warmup_steps} --output_dir {tmp_path / 'run'}"
    )
    if objective in TEACHER:
        flags += " --local_crops_number 1 --local_crops_size 8"
        flags += " --objective_options num_prototypes=16,teacher_temperature_steps=4"
    assert command.cli(flags.split()) == 0
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 3
    assert steps.frame_count == (2 if head_warmup_steps else 1)  # without and with the backbone's gradients
    assert views.frame_count == (2 if objective in TEACHER else 1)  # global views, and local crops


def test_activation_checkpointing_changes_neither_losses_nor_gradients():
    args, plain, renderer = make("ibot")
    checkpointed = make("ibot")[1]
    checkpointed.model.eqcohvit.backbone.activation_checkpointing_enable()
    views, values = renderer(**canvases()), step_values(0, args)
    kept = {}
    for name, module in (("plain", plain), ("checkpointed", checkpointed)):
        sizes = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = module(views, values)["loss"]
        loss.backward()
        kept[name] = sum(sizes)
    assert kept["checkpointed"] < 0.9 * kept["plain"]
    for (name, a), b in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None) and (
            a.grad is None or torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-6)
        ), name
