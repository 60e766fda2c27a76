"""Probes on frozen features: tensors in, numbers out.

Each runs on the device of its inputs. Its randomness depends only on its seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
# Of ridge regression, relative to the number of samples.
_PENALTIES = tuple(10.0**exponent for exponent in range(-4, 3))


def standardize(train: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Shift and scale all (..., N, d) by the mean and standard deviation of `train` over its N samples.

    Dimensions that are constant in `train` become 0. The others are clipped to the range of `train`, widened by its
    width on each side, so that a dimension that hardly varies there cannot outweigh all others in a test sample.
    """
    mean = train.mean(dim=-2, keepdim=True)
    std = train.std(dim=-2, keepdim=True)
    low = train.amin(dim=-2, keepdim=True)
    high = train.amax(dim=-2, keepdim=True)
    alive = std > 1e-6 * torch.maximum(mean.abs(), std.amax(dim=-1, keepdim=True))
    scale = torch.where(alive, 1 / std.clamp_min(1e-30), torch.zeros_like(std))
    width = high - low
    return tuple((torch.minimum(torch.maximum(x, low - width), high + width) - mean) * scale for x in (train, *others))


def split_rows(count: int, seed: int, num_draws: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """A random split of `count` samples by seed: rows to fit on, rows to choose by.

    The latter are a tenth; of few samples, up to a quarter.

    Args:
        num_draws: how many adjacent rows belong to one image. They stay together.

    Raises:
        ValueError: there are too few images to split.
    """
    count //= num_draws
    if count < 10:
        raise ValueError(f"a probe needs at least 10 images to be fitted on, got {count}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held_out = max(count // 10, min(count // 4, 256))
    rows = (order[:, None] * num_draws + torch.arange(num_draws)).flatten()
    return rows[held_out * num_draws :], rows[: held_out * num_draws]


def linear_regression(
    train_x: torch.Tensor, train_y: torch.Tensor, *xs: torch.Tensor, seed: int = 0, num_draws: int = 1
) -> tuple[torch.Tensor, ...]:
    """Predict targets by ridge regression: (N, d), (N, P), each (M, d) -> each (M, P).

    Some of the N samples (`split_rows`) choose the penalty. `num_draws` adjacent ones belong to one image.
    """
    train_x, *inputs = (x.double() for x in standardize(train_x, *xs))
    fit, val = (rows.to(train_x.device) for rows in split_rows(len(train_x), seed, num_draws))
    fit_y, val_y = train_y[fit].double(), train_y[val].double()
    x_mean, y_mean = train_x[fit].mean(dim=0), fit_y.mean(dim=0)
    y_std = fit_y.std(dim=0).clamp_min(1e-12)
    fit_x = train_x[fit] - x_mean
    is_wide = fit_x.shape[1] > len(fit)  # then the weights are fit_x.T @ dual, from the smaller Gram matrix
    gram = fit_x @ fit_x.T if is_wide else fit_x.T @ fit_x
    moment = fit_y - y_mean if is_wide else fit_x.T @ (fit_y - y_mean)
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    best_error = ((val_y - y_mean) / y_std).square().mean().item()
    best_weight = fit_x.new_zeros(fit_x.shape[1], train_y.shape[1])
    for penalty in _PENALTIES:
        solved = torch.cholesky_solve(moment, torch.linalg.cholesky(gram + penalty * len(fit) * identity))
        weight = fit_x.T @ solved if is_wide else solved
        error = (((train_x[val] - x_mean) @ weight + y_mean - val_y) / y_std).square().mean().item()
        if error < best_error:
            best_error = error
            best_weight = weight
    return tuple(((x - x_mean) @ best_weight + y_mean).to(train_y.dtype) for x in inputs)


# ------------------------------------------------------------------------------------------------------- classification


def linear_classification(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    seed: int = 0,
    learning_rates: tuple[float, ...] = LEARNING_RATES,
    epochs: int = 30,
    batch_size: int = 256,
) -> tuple[torch.Tensor, float]:
    """Fit a linear classifier on (N, d) with labels (N,): classes (M,) predicted for (M, d), and its learning rate.

    One classifier for each learning rate is trained in the same pass over the features (SGD with momentum 0.9, cosine
    schedule, as in arXiv:2304.07193, appendix B.3). Held-out training samples choose among them, and the best rate is
    used once more on all N.
    """
    fit, val = (rows.to(train_x.device) for rows in split_rows(len(train_x), seed))
    train_x, test_x = (F.pad(x, (0, 1), value=1.0) for x in standardize(train_x, test_x))
    classes, train_y = train_y.unique(return_inverse=True)  # labels may be ids around 2e13

    def train(rows: torch.Tensor, rates: Sequence[float]) -> torch.Tensor:
        """Weights (rates, classes, d + 1), the last column the bias."""
        x, y = train_x[rows], train_y[rows]
        rate = torch.tensor(rates, device=x.device)[:, None, None]
        weight = torch.zeros(len(rates), len(classes), x.shape[1], device=x.device)
        momentum = torch.zeros_like(weight)
        generator = torch.Generator().manual_seed(seed)
        total = epochs * -(-len(x) // batch_size)
        step = 0
        for _ in range(epochs):
            for batch in torch.randperm(len(x), generator=generator).split(batch_size):
                # Gradient of the cross-entropy with respect to the logits: (rates, batch, classes).
                slope = torch.softmax(x[batch] @ weight.mT, dim=-1)
                slope[:, torch.arange(len(batch)), y[batch]] -= 1
                momentum = 0.9 * momentum + slope.mT @ x[batch] / len(batch)
                weight -= rate * (0.5 + 0.5 * math.cos(math.pi * step / total)) * momentum
                step += 1
        return weight

    best = 0
    if len(learning_rates) > 1:
        found = (train_x[val] @ train(fit, learning_rates).mT).argmax(dim=-1)
        best = int((found == train_y[val]).float().mean(dim=-1).argmax())
    weight = train(torch.arange(len(train_x), device=train_x.device), learning_rates[best : best + 1])[0]
    return classes[(test_x @ weight.T).argmax(dim=-1)], learning_rates[best]


def nearest_neighbors(
    train_x: torch.Tensor, test_x: torch.Tensor, k: int, test_chunk: int = 1024, train_chunk: int = 65536
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k training samples of highest cosine similarity: (N, d), (M, d) -> similarities and indices (M, k).

    The most similar one comes first. At most `test_chunk` x `train_chunk` similarities are held at a time.
    """
    train_x = F.normalize(train_x, dim=-1)
    test_x = F.normalize(test_x, dim=-1)
    k = min(k, len(train_x))
    similarities = []
    indices = []
    for features in test_x.split(test_chunk):
        best = features.new_empty(len(features), 0)
        best_index = torch.empty(len(features), 0, dtype=torch.long, device=features.device)
        for start in range(0, len(train_x), train_chunk):
            block = train_x[start : start + train_chunk]
            similarity, index = (features @ block.T).topk(min(k, len(block)), dim=-1)
            similarity = torch.cat([best, similarity], dim=-1)
            index = torch.cat([best_index, index + start], dim=-1)
            best, chosen = similarity.topk(min(k, similarity.shape[-1]), dim=-1)
            best_index = index.gather(-1, chosen)
        similarities.append(best)
        indices.append(best_index)
    return torch.cat(similarities), torch.cat(indices)


def knn_correct(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    test_y: torch.Tensor,
    k: int = 20,
    temperature: float = 0.07,
    **chunks: int,
) -> torch.Tensor:
    """Whether weighted k nearest neighbors by cosine similarity (arXiv:1805.01978) find the class.

    Shapes: (N, d), (N,), (M, d), (M,) -> (M,).
    """
    similarity, neighbors = nearest_neighbors(train_x, test_x, k, **chunks)
    return vote(similarity, train_y[neighbors], temperature).eq(test_y)


def knn_accuracy(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    test_y: torch.Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Top-1 accuracy of `knn_correct`."""
    return knn_correct(train_x, train_y, test_x, test_y, k, temperature).float().mean().item()


def vote(similarity: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """The class of the largest sum of exp(similarity / temperature) among neighbors: two (M, k) -> (M,)."""
    classes, labels = labels.unique(return_inverse=True)  # labels may be ids around 2e13
    votes = torch.zeros(len(labels), len(classes), device=labels.device)
    # Relative to the most similar one. Otherwise a low temperature would leave no weight that float32 can hold.
    votes.scatter_add_(1, labels, ((similarity - similarity.amax(dim=1, keepdim=True)) / temperature).exp())
    return classes[votes.argmax(dim=-1)]


# ------------------------------------------------------------------------------------------------------ disentanglement


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Debiased linear centered kernel alignment of two sets of features of the same N > 3 samples: (N, d), (N, e).

    Kernel alignment (arXiv:1905.00414) with the unbiased estimator of the Hilbert-Schmidt independence criterion
    (arXiv:2010.15327, equation 3). It is at most 1. Unrelated features give 0 on average, a little below 0 as often as
    above.
    """
    own_x = _unbiased_hsic(x, x)
    own_y = _unbiased_hsic(y, y)
    return (_unbiased_hsic(x, y) / (own_x * own_y).clamp_min(0).sqrt().clamp_min(1e-30)).item()


def _unbiased_hsic(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The criterion for linear kernels of x and y with zero diagonals, times n (n - 3), without (n, n) matrices."""
    x = (x - x.mean(dim=0)).double()
    y = (y - y.mean(dim=0)).double()
    n = len(x)
    norms_x = x.square().sum(dim=1)
    norms_y = y.square().sum(dim=1)
    trace = (x.T @ y).square().sum() - norms_x @ norms_y
    sums_x = x @ x.sum(dim=0) - norms_x
    sums_y = y @ y.sum(dim=0) - norms_y
    return trace + sums_x.sum() * sums_y.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (sums_x @ sums_y)


_RANK = 32  # principal components in `predictability`


def change_under(original: torch.Tensor, transformed: torch.Tensor) -> float:
    """Mean squared distance that g moves features, relative to the distance of two different images: two (N, d).

    0 is invariant.
    """
    spread = 2 * original.var(dim=0).sum().clamp_min(1e-12)
    return ((transformed - original).square().sum(dim=-1).mean() / spread).item()


def predictability(
    train: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    test: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    seed: int = 0,
) -> float:
    """How linearly g acts on features: the share of the change z(g x) - z(x) that a bilinear map predicts.

    Each argument holds z(x) (N, d), z(g x) (N, d) and parameters (N, P). The change is predicted by ridge regression
    from the parameters, their squares, z(x) and the products of z(x) with both. z(x) stands for its 32 largest
    principal components. This is a linear action rho(g) z to second order in the parameters. 1: g acts linearly; 0: no
    better than the mean change. The result is not clipped.
    """
    z, moved, parameters = train
    test_z, test_moved, test_parameters = test
    mean = z.mean(dim=0)
    directions = torch.linalg.eigh((z - mean).T.double() @ (z - mean).double()).eigenvectors[:, -_RANK:].to(z)
    parameters, test_parameters = standardize(parameters, test_parameters)
    inputs = _bilinear((z - mean) @ directions, parameters)
    test_inputs = _bilinear((test_z - mean) @ directions, test_parameters)
    (predicted,) = linear_regression(inputs, moved - z, test_inputs, seed=seed)
    change = test_moved - test_z
    unexplained = (change - predicted).square().sum()
    return (1 - unexplained / (change - change.mean(dim=0)).square().sum().clamp_min(1e-12)).item()


def _bilinear(z: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """(N, r), (N, P) -> (N, 2 P + r + 2 P r)."""
    powers = torch.cat([parameters, parameters.square()], dim=-1)
    return torch.cat([powers, z, (powers[:, :, None] * z[:, None, :]).flatten(1)], dim=-1)
