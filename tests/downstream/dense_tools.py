"""What the tests of the dense tasks share: datasets made of arrays, and a few steps of training."""

import datasets
import numpy as np
from PIL import Image
from tests import tiny


def png(array):
    """uint8 (H, W) or (H, W, 3) -> the cell of an undecoded image column."""
    return {"bytes": tiny.png(Image.fromarray(array)), "path": None}


def make_rows(**columns):
    """Rows of lists; columns of arrays become images."""
    features = {}
    for name, values in columns.items():
        if isinstance(values[0], np.ndarray):
            columns[name] = [png(value) for value in values]
            features[name] = datasets.Image(decode=False)
    inferred = datasets.Dataset.from_dict(
        {name: values for name, values in columns.items() if name not in features}
    ).features
    return datasets.Dataset.from_dict(columns, features=datasets.Features({**inferred, **features}))


def fit(task, model, batch, optimizer, num_steps):
    """The losses of some steps on one batch."""
    losses = []
    for _ in range(num_steps):
        loss = task.loss(model.train(), batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
