"""torch.compile, torch.export and ONNX give the model's own numbers."""

import numpy as np
import onnxruntime
import pytest
import torch
from tests.hub.hub_tools import seeded, tiny_config

from eqcohvit import EqCohViTBackbone, EqCohViTForPreTraining, EqCohViTModel


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize("model_type", ["dinov2", "dinov3_vit", "vit", "vit_mae", "ijepa"])
def test_encoder_compiles_as_one_graph(model_type, x):
    torch.compiler.reset()
    model = seeded(EqCohViTModel, tiny_config(model_type))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x).equivariant_features, model(x).equivariant_features)


def test_pretraining_model_compiles_with_its_backward_pass(x):
    torch.compiler.reset()
    gradients = []
    for compile_it in (False, True):
        model = seeded(EqCohViTForPreTraining, tiny_config(decoder_context="mean")).train()
        forward = torch.compile(model, fullgraph=True, backend="aot_eager") if compile_it else model
        forward(pixel_values=x, pixel_values_end=x.flip(-1), intermediates=torch.ones(2, 2, 3, 32, 32)).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model_class", "kwargs"),
    [
        (EqCohViTModel, {}),
        (EqCohViTForPreTraining, {"decoder_context": "mean"}),
        (EqCohViTBackbone, {"out_indices": [1, 2], "scale_factors": [2, 0.5]}),
    ],
)
def test_exported_program_takes_any_batch_size(model_class, kwargs, x, tmp_path):
    model = seeded(model_class, tiny_config(**kwargs))
    views = (x, x.flip(-1)) if model_class is EqCohViTForPreTraining else (x,)
    names = ["pixel_values", "pixel_values_end"][: len(views)]
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = {name: {0: batch} for name in names}
    program = torch.export.export(model, (), dict(zip(names, views, strict=True)), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for size in (1, 5):
        inputs = {name: torch.randn(size, 3, 32, 32) for name in names}
        with torch.no_grad():
            expected, found = model(**inputs), loaded(**inputs)
        assert list(found) == list(expected)
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-5)


class Parts(torch.nn.Module):
    """A tuple of named outputs, as ONNX wants them."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        outputs = self.model(pixel_values)
        return outputs.invariant_features, outputs.equivariant_features


@pytest.mark.parametrize("model_type", ["dinov2", "vit"])
def test_onnx_runtime_gives_the_same_features(model_type, x, tmp_path):
    model = seeded(EqCohViTModel, tiny_config(model_type))
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        Parts(model).eval(),
        (x,),
        path,
        dynamo=True,
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1, max=64)}},
        input_names=["pixel_values"],
        output_names=["invariant", "equivariant"],
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in (1, 3):
        inputs = torch.randn(size, 3, 32, 32)
        invariant, equivariant = session.run(["invariant", "equivariant"], {"pixel_values": inputs.numpy()})
        with torch.no_grad():
            expected = model(inputs)
        np.testing.assert_allclose(invariant, expected.invariant_features.numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(equivariant, expected.equivariant_features.numpy(), rtol=1e-4, atol=1e-5)
