import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from eqcohvit import EqCohViTImageProcessorPil

PROCESSOR = EqCohViTImageProcessorPil(
    size={"height": 8, "width": 12}, image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.5, 1.0]
)


def test_pixel_values_match_hand_computed_numbers():
    image = Image.new("RGB", (40, 20), (255, 0, 51))
    pixel_values = PROCESSOR(image, return_tensors="pt").pixel_values
    assert pixel_values.shape == (1, 3, 8, 12) and pixel_values.dtype == torch.float32
    expected = torch.tensor([(1.0 - 0.5) / 0.25, (0.0 - 0.5) / 0.5, (0.2 - 0.5) / 1.0])
    torch.testing.assert_close(pixel_values[0], expected[:, None, None].expand(3, 8, 12))


def test_all_kinds_of_images_give_the_same_values():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 14, 3), dtype=np.uint8))
    array = np.asarray(image)
    expected = PROCESSOR(image, return_tensors="pt").pixel_values
    for same in (
        array,
        array.transpose(2, 0, 1),
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        image.convert("RGBA"),
    ):
        torch.testing.assert_close(PROCESSOR(same, return_tensors="pt").pixel_values, expected)
    batch = PROCESSOR([image, image.convert("L"), image.convert("P")], return_tensors="pt").pixel_values
    assert batch.shape == (3, 3, 8, 12)
    torch.testing.assert_close(batch[0], expected[0])


def test_saved_processor_loads_with_its_settings(tmp_path):
    PROCESSOR.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is EqCohViTImageProcessorPil
    image = Image.new("RGB", (30, 30), (10, 200, 90))
    assert torch.equal(
        loaded(image, return_tensors="pt").pixel_values, PROCESSOR(image, return_tensors="pt").pixel_values
    )


@pytest.mark.parametrize(
    ("image", "size"),
    [
        (Image.new("RGB", (0, 4)), "0 x 4"),
        (np.zeros((0, 3, 3), np.uint8), "0 x 3 x 3"),
        (torch.zeros(3, 5, 0), "3 x 5 x 0"),
    ],
)
def test_images_without_pixels_are_named(image, size):
    with pytest.raises(ValueError, match=f"expected an image with pixels, got one of size {size}"):
        PROCESSOR(image, return_tensors="pt")


def test_grey_of_16_bits_is_scaled_by_its_full_range():
    """Pillow's own conversion would make all above 255 white."""
    image = Image.fromarray(np.full((8, 12), 13107, np.uint16))  # a fifth of 65535
    expected = torch.tensor([(0.2 - 0.5) / 0.25, (0.2 - 0.5) / 0.5, (0.2 - 0.5) / 1.0])
    torch.testing.assert_close(PROCESSOR(image, return_tensors="pt").pixel_values[0, :, 3, 4], expected)


GRAY = np.random.default_rng(1).integers(0, 256, (9, 14), dtype=np.uint8)
COLORS = np.random.default_rng(2).integers(0, 256, (9, 14, 3), dtype=np.uint8)
SAME = {
    "gray": (GRAY, np.stack([GRAY] * 3, axis=-1)),
    "gray tensor": (torch.from_numpy(GRAY), np.stack([GRAY] * 3, axis=-1)),
    "bool": (GRAY > 127, np.stack([(GRAY > 127) * np.uint8(255)] * 3, axis=-1)),
    "floats": (COLORS / 255, COLORS),
    "half": (torch.from_numpy(COLORS.copy()).half() / 255, COLORS),
    "transparent": (np.dstack([COLORS, np.zeros_like(GRAY)]), np.full_like(COLORS, 255)),
}


@pytest.mark.parametrize("name", SAME)
def test_arrays_mean_what_they_mean_to_the_pipeline(name):
    array, meant = SAME[name]
    values = [PROCESSOR(image, return_tensors="pt").pixel_values for image in (array, [array], Image.fromarray(meant))]
    torch.testing.assert_close(values[0], values[2])
    torch.testing.assert_close(values[1], values[2])


def test_bfloat16_tensors_are_read():
    found = PROCESSOR(torch.from_numpy(COLORS.copy()).bfloat16() / 255, return_tensors="pt").pixel_values
    expected = PROCESSOR(COLORS, return_tensors="pt").pixel_values
    assert (found - expected).abs().max() < 0.02  # of 4: bfloat16 has 8 bits


def test_batches_in_one_array_and_nested_lists_are_taken_apart():
    batch = np.stack([COLORS, 255 - COLORS])
    expected = torch.cat([PROCESSOR(image, return_tensors="pt").pixel_values for image in batch])
    for images in (batch, torch.from_numpy(batch).permute(0, 3, 1, 2), [[COLORS], [255 - COLORS]]):
        torch.testing.assert_close(PROCESSOR(images, return_tensors="pt").pixel_values, expected)


def test_floats_that_are_not_to_be_rescaled_stay_as_they_are():
    plain = EqCohViTImageProcessorPil(do_resize=False, do_normalize=False, do_rescale=False)
    for floats in (COLORS / 255, torch.from_numpy(COLORS.copy()).float().permute(2, 0, 1) / 255):
        assert np.abs(plain(floats, return_tensors="np").pixel_values[0].transpose(1, 2, 0) - COLORS / 255).max() < 1e-6


def test_floats_beyond_0_to_1_are_refused():
    with pytest.raises(ValueError, match=r"expected floats in \[0, 1\], got an array with values from 200 to 200"):
        PROCESSOR(np.full((8, 8, 3), 200.0), return_tensors="pt")


def test_photographs_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(COLORS).save(buffer := io.BytesIO(), "PNG", exif=exif)
    expected = PROCESSOR(np.rot90(COLORS, -1), return_tensors="pt").pixel_values
    torch.testing.assert_close(PROCESSOR(Image.open(buffer), return_tensors="pt").pixel_values, expected)


def test_the_format_of_an_ambiguous_array_can_be_given():
    array = np.random.default_rng(0).integers(0, 256, (3, 8, 3), dtype=np.uint8)
    expected = PROCESSOR(array.transpose(1, 2, 0), return_tensors="pt").pixel_values
    torch.testing.assert_close(
        PROCESSOR(array, return_tensors="pt", input_data_format="channels_first").pixel_values, expected
    )


@pytest.mark.parametrize("image", [None, 3, "missing.png"])
def test_what_is_no_image_is_refused(image):
    with pytest.raises((TypeError, ValueError)):
        PROCESSOR(image, return_tensors="pt")
