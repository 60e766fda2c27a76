"""What the transformed image of a strict pair tells about g without its original: pictures from code, and features of
sharpness."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from eqcohvit.data import Batch, decode_image
from eqcohvit.evaluation.metrics.r2.coefficients import r2_per_parameter
from eqcohvit.evaluation.pairs import canvas_size, render_pair
from eqcohvit.evaluation.probes import linear_regression
from eqcohvit.transforms import make_path

CELLS = 8  # of the local sharpness, along x and along y
BINS = 16  # of the power spectrum, along x; twice as many along y
FLOOR = 1e-3  # of the mean power: what is weaker does not count


def noise(height, width, rng):
    """White noise: each pixel and channel alone."""
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def grating(height, width, rng):
    """A sine wave of any direction and of 0.05 to 0.45 periods a pixel."""
    y, x = np.mgrid[:height, :width]
    angle, frequency, phase = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.45), rng.uniform(0, 2 * np.pi)
    wave = np.sin(2 * np.pi * frequency * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    return np.repeat((127.5 + 100 * wave)[..., None], 3, axis=2).astype(np.uint8)


def photograph(height, width, rng):
    """Noise whose amplitude falls as 1 / frequency, as that of photographs does."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1
    planes = [
        np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) / frequency, (height, width)) for _ in range(3)
    ]
    pixels = np.stack(planes, axis=-1)
    return (127.5 + 45 * pixels / pixels.std()).clip(0, 255).astype(np.uint8)


PICTURES = {"noise": noise, "grating": grating, "photograph": photograph}


def strict_views(pictures, path, size, fit="square"):
    """Transformed images (N, 3, size, size) and parameters (N, P) of uint8 pictures (H, W, 3)."""
    views, parameters = [], []
    for start in range(0, len(pictures), 32):
        chunk = pictures[start : start + 32]
        decoded = [decode_image(Image.fromarray(pixels), canvas_size(size, path, "strict"), fit) for pixels in chunk]
        keys = torch.arange(start, start + len(chunk))
        canvases = torch.stack([torch.from_numpy(item.canvas) for item in decoded])
        sizes = torch.tensor([item.size for item in decoded])
        pair = render_pair(Batch(canvases, sizes, keys, torch.zeros_like(keys), keys, {}), path, "strict", size)
        views.append(pair.transformed)
        parameters.append(pair.parameters)
    return torch.cat(views), torch.cat(parameters)


def spectrum(images):
    """Logarithm of the power in 16 x 32 bands of frequency, relative to the mean power: (N, 3, S, S) -> (N, d)."""
    gray = images.mean(dim=1)
    window = torch.hann_window(gray.shape[-1], periodic=False)
    gray = (gray - gray.mean(dim=(1, 2), keepdim=True)) * window * window[:, None]
    power = torch.fft.fftshift(torch.fft.rfft2(gray).abs().square(), dim=1)[..., : gray.shape[-1] // 2]
    rows, columns = power.shape[1:]
    bands = F.adaptive_avg_pool2d(power[:, None], (min(rows, 2 * BINS), min(columns, BINS))).flatten(1)
    return (bands / bands.mean(dim=1, keepdim=True) + FLOOR).log()


def sharpness(images):
    """Logarithm of the squared differences of neighbors, and of the squared Laplacian, in 8 x 8 cells and as a
    whole."""
    gray = images.mean(dim=1, keepdim=True)
    right = (gray[..., 1:-1, 2:] - gray[..., 1:-1, 1:-1]).square()
    down = (gray[..., 2:, 1:-1] - gray[..., 1:-1, 1:-1]).square()
    around = gray[..., 2:, 1:-1] + gray[..., :-2, 1:-1] + gray[..., 1:-1, 2:] + gray[..., 1:-1, :-2]
    laplacian = (around - 4 * gray[..., 1:-1, 1:-1]).square()
    planes = torch.cat([right, down, laplacian], dim=1)
    cells = F.adaptive_avg_pool2d(planes, CELLS).flatten(1)
    return (torch.cat([cells, planes.mean(dim=(2, 3))], dim=1) + 1e-7).log()


def r2_alone(features, images, parameters):
    """R2 of the parameters from features of the transformed images alone, by ridge regression; a third is tested."""
    vectors = features(images)
    fit = 2 * len(vectors) // 3
    (predicted,) = linear_regression(vectors[:fit], parameters[:fit], vectors[fit:])
    return float(r2_per_parameter(predicted.numpy(), parameters[fit:].numpy()).mean())


def read_off(kind, height, width, size, name, count=1200, fit="square"):
    """R2 from the spectrum and from the local sharpness of `count` transformed pictures."""
    rng = np.random.default_rng(0)
    pictures = [PICTURES[kind](height, width, rng) for _ in range(count)]
    images, parameters = strict_views(pictures, make_path(name), size, fit)
    return r2_alone(spectrum, images, parameters), r2_alone(sharpness, images, parameters)
