import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from eqcohvit import EqCohViTImageProcessorPil

PROCESSOR = EqCohViTImageProcessorPil(size={"height": 8, "width": 12}, image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.5, 1.0])


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
    for same in (array, array.transpose(2, 0, 1), torch.from_numpy(array.copy()).permute(2, 0, 1), image.convert("RGBA")):
        torch.testing.assert_close(PROCESSOR(same, return_tensors="pt").pixel_values, expected)
    batch = PROCESSOR([image, image.convert("L"), image.convert("P")], return_tensors="pt").pixel_values
    assert batch.shape == (3, 3, 8, 12)
    torch.testing.assert_close(batch[0], expected[0])


def test_saved_processor_loads_with_its_settings(tmp_path):
    PROCESSOR.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is EqCohViTImageProcessorPil
    image = Image.new("RGB", (30, 30), (10, 200, 90))
    assert torch.equal(loaded(image, return_tensors="pt").pixel_values, PROCESSOR(image, return_tensors="pt").pixel_values)


@pytest.mark.parametrize(
    ("image", "size"),
    [(Image.new("RGB", (0, 4)), "0 x 4"), (np.zeros((0, 3, 3), np.uint8), "0 x 3 x 3"), (torch.zeros(3, 5, 0), "3 x 5 x 0")],
)
def test_images_without_pixels_are_named(image, size):
    with pytest.raises(ValueError, match=f"expected an image with pixels, got one of size {size}"):
        PROCESSOR(image, return_tensors="pt")


def test_grey_of_16_bits_is_scaled_by_its_full_range():
    """Pillow's own conversion would make all above 255 white."""
    image = Image.fromarray(np.full((8, 12), 13107, np.uint16))  # a fifth of 65535
    expected = torch.tensor([(0.2 - 0.5) / 0.25, (0.2 - 0.5) / 0.5, (0.2 - 0.5) / 1.0])
    torch.testing.assert_close(PROCESSOR(image, return_tensors="pt").pixel_values[0, :, 3, 4], expected)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_images_of_numbers_without_a_known_range_are_refused(mode):
    with pytest.raises(ValueError, match=f"^expected an image of 8 or 16 bits, got one of mode {mode}; scale it to 8 bits first$"):
        PROCESSOR(Image.new(mode, (4, 4)), return_tensors="pt")


@pytest.mark.parametrize("image", [None, 3, "missing.png"])
def test_what_is_no_image_is_refused(image):
    with pytest.raises((TypeError, ValueError)):
        PROCESSOR(image, return_tensors="pt")
