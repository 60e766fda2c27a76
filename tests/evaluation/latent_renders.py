"""Renders with known latents: a shaded bar of an object's own shape and shade, turned by a yaw and moved, in a light of
some hue."""

import colorsys
import io

import datasets
import numpy as np
from PIL import Image


def draw(yaw, hue, place, length, width, side):
    """uint8 (side, side, 3): a bar that is brighter at one end, so that a turn by 180 degrees shows."""
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    x, y = axis[None, :] - place[0], axis[:, None] - place[1]
    along, across = np.cos(yaw) * x + np.sin(yaw) * y, -np.sin(yaw) * x + np.cos(yaw) * y
    softness = 2 / side
    inside = np.clip((length - np.abs(along)) / softness, 0, 1) * np.clip((width - np.abs(across)) / softness, 0, 1)
    shade = inside * (0.6 + 0.4 * along / length)
    color = np.array(colorsys.hsv_to_rgb(hue, 0.8, 1.0))
    return np.rint(255 * (0.1 + 0.9 * shade[:, :, None]) * color).astype(np.uint8)


def draw_rows(num_groups, per_group, seed=0, side=16):
    """Columns: image, object (the group), yaw in degrees, hue in [0, 0.5], place (x, y), pose (x, y, z, w), noise that
    is not shown."""
    rng = np.random.default_rng(seed)
    rows = {name: [] for name in ("image", "object", "yaw", "hue", "place", "pose", "noise")}
    for group in range(num_groups):
        length, width = rng.uniform(0.5, 0.8), rng.uniform(0.15, 0.3)
        for _ in range(per_group):
            yaw, hue, place = rng.uniform(-180, 180), rng.uniform(0, 0.5), rng.uniform(-0.15, 0.15, 2)
            half = np.radians(yaw) / 2
            rows["image"].append(draw(np.radians(yaw), hue, place, length, width, side))
            rows["object"].append(f"bar {group}")
            rows["yaw"].append(yaw)
            rows["hue"].append(hue)
            rows["place"].append(place.tolist())
            rows["pose"].append([0.0, 0.0, np.sin(half), np.cos(half)])
            rows["noise"].append(rng.normal())
    return rows


def write_parquet(path, rows, broken=(), rows_per_group=None):
    """Rows to a file, arrays as PNG; the images at `broken` cannot be decoded. Returns the path as a string."""
    cells = []
    for index, image in enumerate(rows["image"]):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        cells.append({"bytes": b"broken" if index in broken else buffer.getvalue(), "path": None})
    columns = {name: values for name, values in rows.items() if name != "image"}
    features = {"image": datasets.Image(decode=False), **datasets.Dataset.from_dict(columns).features}
    if "label" in rows:
        features["label"] = datasets.ClassLabel(names=["a", "b"])
    table = datasets.Dataset.from_dict({"image": cells, **columns}, features=datasets.Features(features))
    table.to_parquet(str(path), **({"batch_size": rows_per_group} if rows_per_group else {}))
    return str(path)


def write_3diebench(folder, counts, views=2, side=16):
    """A tree of renders laid out as 3DIEBench: `counts` objects by split, and the list of each split beside the
    tree."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        names = [f"/02691156/{split}{index}/" for index in range(count)]
        np.save(folder / f"{split}_images.npy", np.array(names))
        for name in names:
            place = folder / "3DIEBench" / name.strip("/")
            place.mkdir(parents=True)
            for view in range(views):
                latent = rng.uniform(-1, 1, 7)
                latent[[3, 6]] = rng.uniform(0, 1, 2)
                image = draw(latent[2], latent[3], (0, 0), 0.7, 0.2, side)
                Image.fromarray(image).save(place / f"image_{view}.jpg", quality=95)
                np.save(place / f"latent_{view}.npy", latent)
