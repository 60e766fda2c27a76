import math

import numpy as np
import pytest
import torch
from PIL import Image
from tests.image_kinds import kinds, turned_kinds

from controls import list_choices
from eqcohvit import EqCohViTModel
from eqcohvit.publish.folder import save_hub_folder
from walk import (
    MAX_BYTES,
    BadPicture,
    SplitModel,
    patch_similarity,
    principal_colors,
    psnr,
    read_picture,
    similarity_to_start,
    views,
)

VALUES = {"angle": 30, "shift_x": 3, "brightness": -20, "hue": 20}


@pytest.fixture(scope="module")
def choice():
    return list_choices("se2+color_jitter")["se2+color_jitter"]


def ramps(size: int = 200) -> Image.Image:
    """Red grows to the right and green downwards, so that a pixel says where it comes from."""
    y, x = np.mgrid[0:size, 0:size] / (size - 1) * 255
    return Image.fromarray(np.stack([x, y, np.full_like(x, 255)], axis=-1).round().astype(np.uint8))


def places(view: torch.Tensor) -> torch.Tensor:
    """(3, H, H) of `ramps` -> (H, H, 2), x and y from -1 to 1 in the picture's square."""
    return view[:2].permute(1, 2, 0) * 2 - 1


def test_views_turn_the_middle_of_the_picture_by_the_angle(model):
    turn = list_choices("rotation")["rotation"]
    canvas = model.canvas([ramps()], turn.path)
    assert canvas.crop == pytest.approx(math.sqrt(0.5), rel=1e-3)
    still, turned = views(
        canvas, turn.path, turn.parameters({"angle": 30}).expand(2, -1), torch.tensor([0.0, 1.0]), 32
    )[0]
    corner = torch.tensor([-1.0, -1]) * canvas.crop * 31 / 32
    assert torch.allclose(places(still)[0, 0], corner, atol=0.02)
    radians = math.radians(30)  # counter-clockwise: what is seen at the upper left came from further right
    source = [
        math.cos(radians) * corner[0] - math.sin(radians) * corner[1],
        math.sin(radians) * corner[0] + math.cos(radians) * corner[1],
    ]
    assert torch.allclose(places(turned)[0, 0], torch.tensor(source), atol=0.02)


@pytest.mark.parametrize("name", ["se2", "rotation", "zoom", "perspective"])
def test_real_pixels_fill_the_frame_at_the_ends_of_the_range_unless_corners_are_black(model, name):
    choice = list_choices(name)[name]
    canvas = model.canvas([ramps()], choice.path)
    low = {control.name: control.low for control in choice.controls.values()}
    high = {control.name: control.high for control in choice.controls.values()}
    for ends in (low, high):
        parameters = choice.parameters(ends)
        assert views(canvas, choice.path, parameters, 1.0, 32)[0, 0, 2].min() > 0.98  # blue is full everywhere
        black = views(canvas, choice.path, parameters, 1.0, 32, black=True)[0, 0, 2]
        assert black.max() > 0.98
        if name in ("se2", "rotation"):
            assert black[0, 0] == 0 and black[-1, -1] == 0


def test_views_of_several_pictures_are_those_of_each(model, choice, make_picture):
    pictures = [make_picture(0), make_picture(1)]
    parameters = torch.cat([choice.parameters(VALUES), choice.parameters({"angle": -10})])
    together = views(model.canvas(pictures, choice.path), choice.path, parameters.repeat(2, 1), 1.0, 32)
    for index, picture in enumerate(pictures):
        alone = views(model.canvas([picture], choice.path), choice.path, parameters, 1.0, 32)
        assert torch.allclose(together[index], alone[0], atol=1e-5)


def test_walk_starts_at_the_picture_and_steps_evenly(model, choice, make_picture):
    canvas = model.canvas([make_picture(0)], choice.path)
    walk = model.walk(canvas, choice, VALUES)
    assert walk.fractions == pytest.approx([0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1])
    assert [walk.fractions[step] for step in walk.states] == pytest.approx([1 / 3, 2 / 3])
    half = {name: value / 2 for name, value in VALUES.items()}
    for index, values in ((0, {}), (3, half), (6, VALUES)):
        state = views(canvas, choice.path, choice.parameters(values), 1.0, model.side)[0, 0]
        assert torch.allclose(walk.images[index], state, atol=1e-4)


def test_walk_reconstructions_are_the_model_s(model, choice, make_picture):
    walk = model.walk(model.canvas([make_picture(1)], choice.path), choice, VALUES)
    first, end = (((walk.images[step] - model.mean) / model.std)[None] for step in (0, -1))
    with torch.no_grad():
        outputs = model.model(first, end)
    direct = (outputs.reconstructions[0] * model.std + model.mean).clamp(0, 1)
    assert torch.allclose(walk.reconstructions, direct, atol=1e-5)
    errors = (direct - walk.images[walk.states]).square().mean(dim=(1, 2, 3))
    assert walk.psnr == pytest.approx((-10 * errors.log10()).tolist(), abs=1e-4)


def test_walk_at_neutral_values_stays_where_it_is(model, choice, make_picture):
    walk = model.walk(model.canvas([make_picture(2)], choice.path), choice, {})
    assert torch.allclose(walk.images, walk.images[:1].expand_as(walk.images), atol=1e-5)
    assert similarity_to_start(walk.pooled["equivariant"], torch.zeros(1)) == pytest.approx([1] * 7, abs=1e-4)
    assert min(walk.nearest_psnr) > 90


def test_patches_of_the_walk_are_those_of_its_two_views(model, choice, make_picture):
    walk = model.walk(model.canvas([make_picture(3)], choice.path), choice, VALUES)
    tokens = model.encode(walk.images[[0, -1]])
    for part in ("equivariant", "invariant"):
        assert walk.patches[part].shape == (2, 4, 4, 8)
        assert torch.allclose(walk.patches[part].flatten(1, 2), tokens[part][:, 1:], atol=1e-5)


def test_canvas_is_the_middle_square(model):
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste((0, 0, 255), (100, 0, 200, 100))
    still = list_choices("color_jitter")["color_jitter"]
    view = views(model.canvas([wide], still.path), still.path, still.parameters({}), 0.0, 32)[0, 0]
    assert torch.allclose(view, torch.tensor([0.0, 0, 1])[:, None, None].expand(3, 32, 32), atol=0.05)


def test_psnr_of_known_errors():
    zeros = torch.zeros(3, 4, 4)
    assert psnr(zeros + 0.1, zeros) == pytest.approx(20)
    assert psnr(zeros + 1, zeros) == pytest.approx(0)
    assert psnr(zeros, zeros) == 99


def test_similarity_to_start_subtracts_the_center():
    pooled = torch.tensor([[2.0, 1.0], [3.0, 1.0], [1.0, 2.0], [0.0, 1.0]])
    assert similarity_to_start(pooled, torch.tensor([1.0, 1.0])) == pytest.approx([1, 1, 0, -1])


def test_patch_similarity_is_one_at_the_patch_itself():
    features = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    maps = patch_similarity(features, 2, 4)
    assert maps.shape == (2, 3, 5) and maps[0, 2, 4] == pytest.approx(1) and maps.flatten().topk(2).values[1] < 1


def test_principal_colors_follow_the_direction_that_varies():
    features = torch.zeros(2, 2, 2, 4)
    features[..., 3] = torch.arange(8.0).view(2, 2, 2)
    features += 1e-4 * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    red = principal_colors(features)[..., 0].flatten()
    assert (red.diff() > 0).all() and red[0] == 0 and red[-1] == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_read_picture_reads_the_usual_formats(make_picture, tmp_path, kind):
    make_picture(0).save(tmp_path / "file", kind)
    read = read_picture(tmp_path / "file")
    assert read.mode == "RGB" and read.size == (40, 40)


SHOWN = {name: kind for name, kind in (kinds() | turned_kinds()).items() if kind.content}


@pytest.mark.parametrize("name", SHOWN)
def test_read_picture_shows_every_kind_as_training_sees_it(tmp_path, name):
    (tmp_path / "picture").write_bytes(SHOWN[name].content)
    found = np.asarray(read_picture(tmp_path / "picture"))
    assert found.shape == SHOWN[name].rgb.shape
    assert np.abs(found.astype(int) - SHOWN[name].rgb.astype(int)).max() <= (8 if name == "LAB" else 1)


def test_read_picture_turns_it_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    Image.new("RGB", (40, 20)).save(tmp_path / "file", "JPEG", exif=exif)
    assert read_picture(tmp_path / "file").size == (20, 40)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read as a picture"),
        (b"no picture at all", "cannot be read as a picture. The page takes JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be read as a picture"),
        (b"\0" * (MAX_BYTES + 1), "10.0 MB; the limit is 10 MB"),
    ],
)
def test_read_picture_says_what_is_wrong(tmp_path, data, message):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(BadPicture, match=message):
        read_picture(tmp_path / "file")


def test_read_picture_refuses_too_many_too_few_and_missing_pixels(tmp_path, make_picture):
    file = tmp_path / "file.png"
    Image.new("1", (6000, 5000)).save(file)
    with pytest.raises(BadPicture, match="6000 × 5000 pixels; the limit is 25 million"):
        read_picture(file)
    Image.new("RGB", (7, 40)).save(file)
    with pytest.raises(BadPicture, match="7 × 40 pixels; each side needs at least 8"):
        read_picture(file)
    make_picture(0).save(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(BadPicture, match="cannot be read"):
        read_picture(file)


def test_split_model_refuses_what_has_no_decoders(tmp_path, model):
    with pytest.raises(ValueError, match="no such folder: .*nothing"):
        SplitModel(str(tmp_path / "nothing"))
    encoder = save_hub_folder(tmp_path / "encoder", EqCohViTModel(model.config))
    with pytest.raises(ValueError, match="expected a model with its decoders, .* lacks .* first decoders"):
        SplitModel(str(encoder))
