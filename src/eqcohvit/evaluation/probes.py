"""Probes on frozen features: tensors in, numbers out. Each runs on the device of its inputs, and its randomness is its
seed's alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
_PENALTIES = tuple(
    10.0**exponent for exponent in range(-4, 3)
)  # of ridge regression, relative to the number of samples


@dataclass(frozen=True)
class Head:
    """An MLP that held-out samples may choose.

    Args:
        basis: its inputs: `"[o, g]"`, `"[o, g - o]"`, or the former whitened.
        widths: of its hidden layers.
        weight_decay: of AdamW.
        learning_rate: the highest of a one-cycle schedule.
    """

    basis: str
    widths: tuple[int, ...]
    weight_decay: float = 0.05
    learning_rate: float = 5e-3

    def __str__(self) -> str:
        return f"MLP {'-'.join(map(str, self.widths))} of {self.basis}"


BASES = ("[o, g]", "[o, g - o]")  # of ridge regression
WHITENED = "whitened [o, g]"
# Chosen by a larger search, see scripts/guides/evaluate.md.
HEADS = tuple(Head(basis, (128, 128, 128)) for basis in (*BASES, WHITENED))
_BATCH_SIZE = 256
_STEPS, _EPOCHS = 168, 10  # of the chosen head: at least so many of both
_SCREENED = 1 / 3  # share of the steps that every head is given before the choice
_SHRINKAGE = 0.1  # of the covariance towards the identity, before whitening


def standardize(train: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Shift and scale all (..., N, d) by the mean and standard deviation of `train` over its N samples.

    Dimensions that are constant in `train` become 0. The others are held within the range of `train`, widened by its
    width on each side, so that a dimension which hardly varies there cannot outweigh all others in a test sample.
    """
    mean, std = train.mean(dim=-2, keepdim=True), train.std(dim=-2, keepdim=True)
    low, high = train.amin(dim=-2, keepdim=True), train.amax(dim=-2, keepdim=True)
    alive = std > 1e-6 * torch.maximum(mean.abs(), std.amax(dim=-1, keepdim=True))
    scale = torch.where(alive, 1 / std.clamp_min(1e-30), torch.zeros_like(std))
    width = high - low
    return tuple((torch.minimum(torch.maximum(x, low - width), high + width) - mean) * scale for x in (train, *others))


def _whiten(train: torch.Tensor, test: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Standardize (N, d) and (M, d), and take the correlations of `train` out of both, as far as `_SHRINKAGE` lets
    it."""
    train, test = standardize(train, test)
    correlation = train.T @ train / len(train)
    identity = torch.eye(len(correlation), dtype=train.dtype, device=train.device)
    factor = torch.linalg.cholesky(correlation + _SHRINKAGE * identity)
    train, test = (torch.linalg.solve_triangular(factor, x.T, upper=False).T for x in (train, test))
    return train, test


def hold_out(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A random split of `count` samples by seed: indices to fit on, indices to choose by (a tenth; of few, up to a
    quarter).

    Raises:
        ValueError: there are too few samples to split.
    """
    if count < 10:
        raise ValueError(f"a probe needs at least 10 images to be fitted on, got {count}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held_out = max(count // 10, min(count // 4, 256))
    return order[held_out:], order[:held_out]


def linear_regression(
    train_x: torch.Tensor, train_y: torch.Tensor, *xs: torch.Tensor, seed: int = 0
) -> tuple[torch.Tensor, ...]:
    """Predict parameters by ridge regression: (N, d), (N, P), each (M, d) -> each (M, P). Some of the N (`hold_out`)
    choose the penalty."""
    train_x, *inputs = (x.double() for x in standardize(train_x, *xs))
    fit, val = (rows.to(train_x.device) for rows in hold_out(len(train_x), seed))
    fit_y, val_y = train_y[fit].double(), train_y[val].double()
    x_mean, y_mean, y_std = train_x[fit].mean(dim=0), fit_y.mean(dim=0), fit_y.std(dim=0).clamp_min(1e-12)
    fit_x = train_x[fit] - x_mean
    is_wide = fit_x.shape[1] > len(
        fit
    )  # then the weights are fit_x.T @ dual, from the smaller of the two Gram matrices
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
            best_error, best_weight = error, weight
    return tuple(((x - x_mean) @ best_weight + y_mean).to(train_y.dtype) for x in inputs)


def regress_pair(
    original: torch.Tensor,
    moved: torch.Tensor | None,
    targets: torch.Tensor,
    test_original: torch.Tensor,
    test_moved: torch.Tensor | None,
    num_seeds: int = 1,
    heads: Sequence[Head] = HEADS,
) -> dict[str, Any]:
    """Predict targets from the features o of an image and g of its transformed version, by S probes, one for each seed.

    Held-out samples (`hold_out`, others for each seed) choose, in the same way for every encoder: the inputs and the
    penalty of a ridge regression; the best of `heads`, each trained for a part of the steps with the first seed; and
    for each seed the epoch of that head, or the ridge regression where no epoch is better. The test samples choose
    nothing.

    Args:
        original: o of the N samples to fit on, (N, d), or (S, N, d) where each seed has its own.
        moved: g, likewise; None where the targets are of one image.
        targets: (N, P) or (S, N, P).
        test_original: o of the M samples to test on, (M, d) or (S, M, d).
        test_moved: their g; None where `moved` is.
        heads: to choose from; with none of them `"mlp"` is the ridge regression too, which takes a fraction of the
            time.

    Returns:
        `"mlp"` (S, M, P): predictions of the chosen heads. `"linear"` (S, M, P): those of the ridge regression alone.
        `"chosen"`: the name of the head of each seed.

    Raises:
        ValueError: there are fewer than 10 samples to fit on, or one of `moved` and `test_moved` is missing.
    """
    if (moved is None) != (test_moved is None):
        raise ValueError("expected moved and test_moved, or neither of them, got one")
    seeds = range(num_seeds)
    task = _Task(original, moved, targets, test_original, test_moved, num_seeds)
    bases, candidates = BASES, list(heads)
    if moved is None:
        bases = ("[o]",)
        alone = (replace(head, basis="whitened [o]" if head.basis == WHITENED else "[o]") for head in heads)
        candidates = list(dict.fromkeys(alone))
    screened = {name: task.ridge(name, 0) for name in bases}
    basis = min(bases, key=lambda name: screened[name][1].item())
    predicted = [screened[basis], *(task.ridge(basis, seed) for seed in seeds[1:])]
    linear, ridge_error = (torch.stack(values) for values in zip(*predicted, strict=True))
    if not candidates:
        return {"mlp": linear, "linear": linear, "chosen": [f"ridge of {basis}"] * num_seeds}
    chosen = candidates[0]
    if len(candidates) > 1:
        chosen = min(candidates, key=lambda head: task.train(head, seeds[:1], _SCREENED)[1].item())
    found, error = task.train(chosen, seeds)
    better = error < ridge_error
    names = [str(chosen) if is_better else f"ridge of {basis}" for is_better in better.tolist()]
    return {"mlp": torch.where(better[:, None, None], found, linear), "linear": linear, "chosen": names}


class _Task:
    """What the heads of one regression share: inputs by basis, targets, and the samples to fit on and to choose by, for
    S seeds."""

    def __init__(
        self,
        original: torch.Tensor,
        moved: torch.Tensor | None,
        targets: torch.Tensor,
        test_original: torch.Tensor,
        test_moved: torch.Tensor | None,
        num_seeds: int,
    ):
        self.pairs = [[x for x in pair if x is not None] for pair in ((original, moved), (test_original, test_moved))]
        self.targets = targets if targets.ndim == 3 else targets.expand(num_seeds, -1, -1)
        splits = [hold_out(self.targets.shape[1], seed) for seed in range(num_seeds)]
        self.fit, self.val = (torch.stack(rows).to(targets.device) for rows in zip(*splits, strict=True))
        self.spread = self.targets.std(dim=1, keepdim=True).clamp_min(1e-12)

    def inputs(self, basis: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Standardized inputs to fit on (N, D) and to test on (M, D)."""
        fit, test = ([x if x.ndim == 2 else x[seed] for x in pair] for pair in self.pairs)
        if len(fit) == 2 and basis == "[o, g - o]":
            fit, test = ([o, g - o] for o, g in (fit, test))
        prepare = _whiten if basis.startswith("whitened") else standardize
        train_x, test_x = prepare(torch.cat(fit, dim=-1), torch.cat(test, dim=-1))
        return train_x, test_x

    def ridge(self, basis: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions of ridge regression (M, P), and its mean squared error over the held-out samples, in units of the
        targets' spread."""
        train, test = self.inputs(basis, seed)
        val = self.val[seed]
        held_out, tested = linear_regression(train, self.targets[seed], train[val], test, seed=seed)
        return tested, ((self.targets[seed, val] - held_out) / self.spread[seed]).square().mean()

    def train(self, head: Head, seeds: Sequence[int], share: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions (S, M, P) of a head at its best epoch, and its error (S,) of the held-out samples there, as
        `ridge` has it.

        Args:
            share: of the steps.
        """
        index = list(seeds)
        train_x, test_x = (torch.stack(x) for x in zip(*(self.inputs(head.basis, seed) for seed in seeds), strict=True))
        device, num_targets = train_x.device, self.targets.shape[2]
        spread, fit, val = self.spread[index], self.fit[index], self.val[index]
        mean = self.targets[index].mean(dim=1, keepdim=True)
        centred = self.targets[index] - mean
        scale = _rows(centred, fit).std(dim=1, keepdim=True).clamp_min(1e-12)
        fit_x, val_x = _rows(train_x, fit), _rows(train_x, val)
        fit_y, val_y = _rows(centred / scale, fit), _rows(centred / scale, val)
        weight = (scale / spread).square()  # errors count in the units of the targets' spread
        best_error = (val_y.square() * weight).mean(dim=(1, 2))  # of the mean of the targets
        learned = torch.zeros_like(best_error, dtype=torch.bool)  # whether an epoch is better
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with torch.random.fork_rng(devices=[device] if train_x.is_cuda else []):
            torch.manual_seed(0)
            mlp = _StackedMLP(len(index), (train_x.shape[2], *head.widths, num_targets)).to(device)
        best = [parameter.detach().clone() for parameter in mlp.parameters()]
        optimizer = torch.optim.AdamW(
            mlp.parameters(), lr=head.learning_rate, weight_decay=head.weight_decay, fused=True
        )
        count = fit.shape[1]
        steps_per_epoch = -(-count // _BATCH_SIZE)
        epochs = math.ceil(share * max(_EPOCHS, math.ceil(_STEPS / steps_per_epoch)))
        check_every = max(2, 16 // steps_per_epoch)  # epochs; those of few samples are short
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=head.learning_rate, total_steps=epochs * steps_per_epoch, pct_start=0.1
        )
        for epoch in range(1, epochs + 1):
            order = torch.stack([torch.randperm(count, generator=generator) for generator in generators]).to(device)
            for rows in order.split(_BATCH_SIZE, dim=1):
                # The sum over the seeds leaves each head the gradient that it would have alone.
                loss = (mlp(_rows(fit_x, rows)) - _rows(fit_y, rows)).square().mean(dim=(1, 2)).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            if epoch % check_every and epoch < epochs:
                continue
            with torch.no_grad():
                error = ((mlp(val_x) - val_y).square() * weight).mean(dim=(1, 2))
                better = error < best_error
                best_error, learned = torch.minimum(error, best_error), learned | better
                for kept, parameter in zip(best, mlp.parameters(), strict=True):
                    kept[better] = parameter[better]
        with torch.no_grad():
            for kept, parameter in zip(best, mlp.parameters(), strict=True):
                parameter.copy_(kept)
            predicted = torch.where(learned[:, None, None], mlp(test_x), 0)
        return mean + predicted * scale, best_error


class _StackedMLP(nn.Module):
    """S independent MLPs of one shape, run together: (S, B, d) -> (S, B, P)."""

    def __init__(self, count: int, dims: Sequence[int]):
        super().__init__()
        layers = [_stacked_linear(count, *pair) for pair in itertools.pairwise(dims)]
        self.weights = nn.ParameterList([weight for weight, _ in layers])
        self.biases = nn.ParameterList([bias for _, bias in layers])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        last = len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if index < last:
                x = F.gelu(x)
        return x


def _stacked_linear(count: int, in_dim: int, out_dim: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Weights (S, in_dim, out_dim) and biases (S, 1, out_dim), drawn as those of torch.nn.Linear."""
    bound = in_dim**-0.5
    weight, bias = (torch.empty(count, rows, out_dim).uniform_(-bound, bound) for rows in (in_dim, 1))
    return nn.Parameter(weight), nn.Parameter(bias)


def _rows(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(S, N, P) at (S, n) -> (S, n, P)."""
    return torch.stack([own[rows] for own, rows in zip(values, index, strict=True)])


def linear_classification(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    seed: int = 0,
    learning_rates: tuple[float, ...] = LEARNING_RATES,
    epochs: int = 30,
    batch_size: int = 256,
) -> tuple[torch.Tensor, float]:
    """Classes (M,) that a linear classifier predicts for features (M, d), fitted on (N, d) with labels (N,), and its
    learning rate.

    One classifier for each learning rate is trained in the same pass over the features (SGD with momentum 0.9, cosine
    schedule, as in arXiv:2304.07193, appendix B.3). Held-out training samples choose among them, and the best rate is
    used once more on all N.
    """
    fit, val = (rows.to(train_x.device) for rows in hold_out(len(train_x), seed))
    train_x, test_x = (F.pad(x, (0, 1), value=1.0) for x in standardize(train_x, test_x))
    classes, train_y = train_y.unique(return_inverse=True)  # labels may be ids around 2e13

    def train(rows: torch.Tensor, rates: Sequence[float]) -> torch.Tensor:
        """Weights (rates, classes, d + 1), the last column the bias."""
        x, y = train_x[rows], train_y[rows]
        rate = torch.tensor(rates, device=x.device)[:, None, None]
        weight = torch.zeros(len(rates), len(classes), x.shape[1], device=x.device)
        momentum = torch.zeros_like(weight)
        generator = torch.Generator().manual_seed(seed)
        total, step = epochs * -(-len(x) // batch_size), 0
        for _ in range(epochs):
            for batch in torch.randperm(len(x), generator=generator).split(batch_size):
                slope = torch.softmax(
                    x[batch] @ weight.mT, dim=-1
                )  # gradient of the cross-entropy by the logits: (rates, batch, classes)
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


def nearest_neighbours(
    train_x: torch.Tensor, test_x: torch.Tensor, k: int, test_chunk: int = 1024, train_chunk: int = 65536
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k training samples of highest cosine similarity: (N, d), (M, d) -> similarities and indices (M, k), most
    similar first.

    At most `test_chunk` x `train_chunk` similarities are held at a time, whatever N and M are.
    """
    train_x, test_x = F.normalize(train_x, dim=-1), F.normalize(test_x, dim=-1)
    k = min(k, len(train_x))
    found = []
    for features in test_x.split(test_chunk):
        best = (
            features.new_empty(len(features), 0),
            torch.empty(len(features), 0, dtype=torch.long, device=features.device),
        )
        for start in range(0, len(train_x), train_chunk):
            block = train_x[start : start + train_chunk]
            similarity, index = (features @ block.T).topk(min(k, len(block)), dim=-1)
            similarity, index = torch.cat([best[0], similarity], dim=-1), torch.cat([best[1], index + start], dim=-1)
            similarity, chosen = similarity.topk(min(k, similarity.shape[-1]), dim=-1)
            best = similarity, index.gather(-1, chosen)
        found.append(best)
    return torch.cat([similarity for similarity, _ in found]), torch.cat([index for _, index in found])


def knn_correct(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    test_y: torch.Tensor,
    k: int = 20,
    temperature: float = 0.07,
    **chunks: int,
) -> torch.Tensor:
    """Whether weighted k nearest neighbours by cosine similarity (arXiv:1805.01978) find the class: (N, d), (N,), (M,
    d), (M,) -> (M,)."""
    similarity, neighbours = nearest_neighbours(train_x, test_x, k, **chunks)
    return vote(similarity, train_y[neighbours], temperature).eq(test_y)


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
    """The class of the largest sum of exp(similarity / temperature) among neighbours: two (M, k) -> (M,)."""
    classes, labels = labels.unique(return_inverse=True)  # labels may be ids around 2e13
    votes = torch.zeros(len(labels), len(classes), device=labels.device)
    # Relative to the most similar one, without which a low temperature would leave no weight that float32 can hold.
    votes.scatter_add_(1, labels, ((similarity - similarity.amax(dim=1, keepdim=True)) / temperature).exp())
    return classes[votes.argmax(dim=-1)]


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Debiased linear centred kernel alignment of two sets of features of the same samples: (N, d), (N, e), N > 3 -> at
    most 1.

    Kernel alignment (arXiv:1905.00414) with the unbiased estimator of the Hilbert-Schmidt independence criterion
    (arXiv:2010.15327, equation 3): features that have nothing to do with each other give 0 on average, slightly below 0
    as often as above.
    """
    cross, own_x, own_y = (_unbiased_hsic(a, b) for a, b in ((x, y), (x, x), (y, y)))
    return (cross / (own_x * own_y).clamp_min(0).sqrt().clamp_min(1e-30)).item()


def _unbiased_hsic(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of the linear kernels K of x and L of y with their diagonals set to 0, times n (n - 3), without an (n, n)
    matrix."""
    x, y = ((values - values.mean(dim=0)).double() for values in (x, y))
    n = len(x)
    norms_x, norms_y = x.square().sum(dim=1), y.square().sum(dim=1)
    trace = (x.T @ y).square().sum() - norms_x @ norms_y
    sums_x, sums_y = (values @ values.sum(dim=0) - norms for values, norms in ((x, norms_x), (y, norms_y)))
    return trace + sums_x.sum() * sums_y.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (sums_x @ sums_y)


def change_under(original: torch.Tensor, transformed: torch.Tensor) -> float:
    """Mean squared distance that features move under g, relative to that of two different images: two (N, d) -> 0
    (invariant) or more."""
    spread = 2 * original.var(dim=0).sum().clamp_min(1e-12)
    return ((transformed - original).square().sum(dim=-1).mean() / spread).item()


def predictability(
    train: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    test: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    seed: int = 0,
    rank: int = 32,
) -> float:
    """How linearly g acts on features: the share of their change z(g x) - z(x) that a bilinear map of z(x) and the
    parameters predicts.

    Each argument holds z(x) (N, d), z(g x) (N, d) and parameters (N, P). The change is predicted by ridge regression
    from the parameters, their squares, z(x) and the products of z(x) with both, z(x) being its `rank` largest principal
    components: a linear action rho(g) z to second order in the parameters. 1: g acts linearly; 0: no better than the
        mean change; not clipped.
    """
    (z, moved, parameters), (test_z, test_moved, test_parameters) = train, test
    mean = z.mean(dim=0)
    directions = torch.linalg.eigh((z - mean).T.double() @ (z - mean).double()).eigenvectors[:, -rank:].to(z)
    parameters, test_parameters = standardize(parameters, test_parameters)
    inputs = [_bilinear((a - mean) @ directions, p) for a, p in ((z, parameters), (test_z, test_parameters))]
    (predicted,) = linear_regression(inputs[0], moved - z, inputs[1], seed=seed)
    change = test_moved - test_z
    return (
        1 - (change - predicted).square().sum() / (change - change.mean(dim=0)).square().sum().clamp_min(1e-12)
    ).item()


def _bilinear(z: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """(N, r), (N, P) -> (N, 2 P + r + 2 P r)."""
    powers = torch.cat([parameters, parameters.square()], dim=-1)
    return torch.cat([powers, z, (powers[:, :, None] * z[:, None, :]).flatten(1)], dim=-1)
