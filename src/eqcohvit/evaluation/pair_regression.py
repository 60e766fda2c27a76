"""Regression of targets from the features of an image and of its transformed version.

Everything runs on the device of its inputs. All randomness comes from the seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .probes import linear_regression, split_rows, standardize

BASES = ("[o, g]", "[o, g - o]")  # inputs of ridge regression
WHITENED = "whitened [o, g]"
_BATCH_SIZE = 256
_STEPS = 252  # of the chosen head, at least
_EPOCHS = 15  # of the chosen head, at least
_SCREENED = 1 / 2  # share of the steps that each head gets before the choice
_SHRINKAGE = 0.1  # of the covariance toward the identity, before whitening


@dataclass(frozen=True)
class Head:
    """An MLP that held-out samples may choose.

    Args:
        basis: its inputs: `"[o, g]"`, `"[o, g - o]"`, or `"whitened [o, g]"`.
        widths: of its hidden layers.
        weight_decay: of AdamW.
        learning_rate: the peak of a one-cycle schedule.
    """

    basis: str
    widths: tuple[int, ...]
    weight_decay: float = 0.05
    learning_rate: float = 5e-3

    def __str__(self) -> str:
        name = f"MLP {'-'.join(map(str, self.widths))} of {self.basis}"
        return name if self.learning_rate == Head.learning_rate else f"{name}, learning rate {self.learning_rate:g}"

    def of_one_image(self) -> Head:
        """The same head without g."""
        return replace(self, basis="whitened [o]" if self.basis == WHITENED else "[o]")


# Chosen by a larger search, see scripts/guides/evaluate.md.
_MLPS = tuple(Head(basis, (128, 128, 128)) for basis in (*BASES, WHITENED))
MLP_HEADS = (*_MLPS, replace(_MLPS[0], learning_rate=2.5e-3))


@dataclass(frozen=True)
class PairData:
    """Features and targets of N samples to fit on, and features of M samples to test on.

    Args:
        original: features o of the images to fit on, (N, d), or (S, N, d) if each of S seeds has its own.
        moved: features g of their transformed versions, in the same shape. None if the targets describe one image.
        targets: (N, P) or (S, N, P).
        test_original: o of the images to test on, (M, d) or (S, M, d).
        test_moved: g of the images to test on.
        num_draws: how many adjacent samples of the N belong to one image. What is held out is held out by image.
        reverse_targets: in the shape of `targets`, of the pairs in reverse order, (g, o): what takes g back to o. None
            if it is not known.

    Raises:
        ValueError: only one of `moved` and `test_moved` is given.
    """

    original: torch.Tensor
    moved: torch.Tensor | None
    targets: torch.Tensor
    test_original: torch.Tensor
    test_moved: torch.Tensor | None
    num_draws: int = 1
    reverse_targets: torch.Tensor | None = None

    def __post_init__(self):
        if (self.moved is None) != (self.test_moved is None):
            raise ValueError("expected moved and test_moved, or neither of them, got one")

    def of_seed(self, seed: int) -> PairData:
        """The data of one seed, without the dimension S."""
        return PairData(
            original=_of_seed(self.original, seed),
            moved=None if self.moved is None else _of_seed(self.moved, seed),
            targets=_of_seed(self.targets, seed),
            test_original=_of_seed(self.test_original, seed),
            test_moved=None if self.test_moved is None else _of_seed(self.test_moved, seed),
            num_draws=self.num_draws,
            reverse_targets=None if self.reverse_targets is None else _of_seed(self.reverse_targets, seed),
        )

    def in_both_orders(self) -> PairData:
        """Twice the pairs to fit on: (o, g) and, next to each, (g, o) with its reverse target. The test pairs stay."""
        if self.moved is None or self.reverse_targets is None:
            raise ValueError("expected pairs with reverse_targets")
        original = self.original.expand_as(self.moved)
        return replace(
            self,
            original=_alternating(original, self.moved),
            moved=_alternating(self.moved, original),
            targets=_alternating(self.targets, self.reverse_targets),
            num_draws=2 * self.num_draws,
            reverse_targets=None,
        )

    def inputs(self, basis: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Standardized inputs of a probe: (N, D) to fit on, (M, D) to test on. For the data of one seed."""
        train_x = _join(self.original, self.moved, basis)
        test_x = _join(self.test_original, self.test_moved, basis)
        if basis.startswith("whitened"):
            return _whiten(train_x, test_x)
        train_x, test_x = standardize(train_x, test_x)
        return train_x, test_x


def _of_seed(values: torch.Tensor, seed: int) -> torch.Tensor:
    return values[seed] if values.ndim == 3 else values


def _alternating(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Two (..., N, d) -> (..., 2 N, d): their rows in turns."""
    return torch.stack([first, second], dim=-2).flatten(-3, -2)


def _join(original: torch.Tensor, moved: torch.Tensor | None, basis: str) -> torch.Tensor:
    if moved is None:
        return original
    return torch.cat([original, moved - original if basis == "[o, g - o]" else moved], dim=-1)


def _whiten(train: torch.Tensor, test: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Standardize (N, d) and (M, d) and remove the correlations of `train` from both, up to `_SHRINKAGE`."""
    train, test = standardize(train, test)
    correlation = train.T @ train / len(train)
    identity = torch.eye(len(correlation), dtype=train.dtype, device=train.device)
    factor = torch.linalg.cholesky(correlation + _SHRINKAGE * identity)
    train = torch.linalg.solve_triangular(factor, train.T, upper=False).T
    test = torch.linalg.solve_triangular(factor, test.T, upper=False).T
    return train, test


def regress_pair(data: PairData, num_seeds: int = 1, heads: Sequence[Head] = MLP_HEADS) -> dict[str, Any]:
    """Predict targets with S probes, one for each seed. Pairs whose reverse targets are known are in both orders.

    Held-out samples (`split_rows`, different ones for each seed) make all choices, in the same way for every encoder:
    the inputs and the penalty of a ridge regression; the best of `heads` on average over the seeds, each trained for a
    part of the steps; and for each seed the epoch of that head, or the ridge regression if no epoch is better. Where
    images are few (`num_draws` above 1), it has to be better by a standard error over the held-out images. The test
    samples choose nothing.

    Args:
        heads: to choose from. Without any, `"mlp"` is the ridge regression too, which takes a fraction of the time.

    Returns:
        `"mlp"` (S, M, P): predictions of the chosen heads. `"linear"` (S, M, P): predictions of the ridge regression.
        `"chosen"`: the name of the head of each seed.

    Raises:
        ValueError: there are fewer than 10 images to fit on.
    """
    if data.reverse_targets is not None:
        data = data.in_both_orders()
    task = _SeededTask(data, num_seeds)
    bases = BASES
    candidates = list(heads)
    if data.moved is None:
        bases = ("[o]",)
        candidates = list(dict.fromkeys(head.of_one_image() for head in heads))
    screened = {basis: task.ridge(basis, 0) for basis in bases}
    basis = min(bases, key=lambda name: screened[name][1].mean().item())
    found = [screened[basis], *(task.ridge(basis, seed) for seed in range(1, num_seeds))]
    linear = torch.stack([predicted for predicted, _ in found])
    ridge_errors = torch.stack([errors for _, errors in found])
    if not candidates:
        return {"mlp": linear, "linear": linear, "chosen": [f"ridge of {basis}"] * num_seeds}
    chosen = candidates[0]
    if len(candidates) > 1:
        chosen = min(candidates, key=lambda head: task.train(head, range(num_seeds), _SCREENED)[1].mean().item())
    predicted, errors = task.train(chosen, range(num_seeds))
    better = _is_lower(errors, ridge_errors, data.num_draws)
    names = [str(chosen) if is_better else f"ridge of {basis}" for is_better in better.tolist()]
    return {"mlp": torch.where(better[:, None, None], predicted, linear), "linear": linear, "chosen": names}


def _is_lower(errors: torch.Tensor, others: torch.Tensor, num_draws: int) -> torch.Tensor:
    """Whether the mean error of each seed (S,) is lower than another; errors (S, n), pairs of one image adjacent.

    With several draws of few images: lower by the standard error of the images' mean differences.
    """
    gains = (others - errors).unflatten(1, (-1, num_draws)).mean(dim=2)
    if num_draws == 1:
        return gains.mean(dim=1) > 0
    return gains.mean(dim=1) > gains.std(dim=1) / gains.shape[1] ** 0.5


class _SeededTask:
    """Data, targets, and the rows to fit on and to choose by, for each of S seeds."""

    def __init__(self, data: PairData, num_seeds: int):
        self.data = data
        self.targets = data.targets if data.targets.ndim == 3 else data.targets.expand(num_seeds, -1, -1)
        splits = [split_rows(self.targets.shape[1], seed, data.num_draws) for seed in range(num_seeds)]
        self.fit = torch.stack([fit for fit, _ in splits]).to(self.targets.device)
        self.val = torch.stack([val for _, val in splits]).to(self.targets.device)
        self.spread = self.targets.std(dim=1, keepdim=True).clamp_min(1e-12)

    def ridge(self, basis: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions of ridge regression (M, P), and its squared errors (n,) on the held-out samples, means over the
        targets in units of their spread."""
        train, test = self.data.of_seed(seed).inputs(basis)
        val = self.val[seed]
        how = {"seed": seed, "num_draws": self.data.num_draws}
        held_out, tested = linear_regression(train, self.targets[seed], train[val], test, **how)
        return tested, ((self.targets[seed, val] - held_out) / self.spread[seed]).square().mean(dim=1)

    def train(self, head: Head, seeds: Sequence[int], share: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions (S, M, P) of a head at its best epoch, and its errors (S, n) there, in the form of `ridge`.

        Args:
            share: of the steps.
        """
        index = list(seeds)
        inputs = [self.data.of_seed(seed).inputs(head.basis) for seed in index]
        train_x = torch.stack([train for train, _ in inputs])
        test_x = torch.stack([test for _, test in inputs])
        fit, val = self.fit[index], self.val[index]
        mean = self.targets[index].mean(dim=1, keepdim=True)
        centered = self.targets[index] - mean
        scale = _rows(centered, fit).std(dim=1, keepdim=True).clamp_min(1e-12)
        y = centered / scale
        weight = (scale / self.spread[index]).square()  # errors count in units of the spread of the targets
        with torch.random.fork_rng(devices=[train_x.device] if train_x.is_cuda else []):
            torch.manual_seed(0)
            mlp = _StackedMLP(len(index), (train_x.shape[2], *head.widths, y.shape[2])).to(train_x.device)
        best = _BestEpoch(mlp, _rows(train_x, val), _rows(y, val), weight)
        generators = [torch.Generator().manual_seed(seed) for seed in index]
        _fit_mlp(mlp, head, share, _rows(train_x, fit), _rows(y, fit), generators, best)
        return mean + best.predict(test_x) * scale, best.errors()


def _fit_mlp(
    mlp: _StackedMLP,
    head: Head,
    share: float,
    x: torch.Tensor,
    y: torch.Tensor,
    generators: Sequence[torch.Generator],
    best: _BestEpoch,
) -> None:
    """Train on x (S, n, d) and y (S, n, P), and update `best` every few epochs.

    Args:
        share: of the steps.
        generators: of the order of the samples, one for each seed.
    """
    count = x.shape[1]
    steps_per_epoch = -(-count // _BATCH_SIZE)
    epochs = math.ceil(share * max(_EPOCHS, math.ceil(_STEPS / steps_per_epoch)))
    check_every = max(2, 16 // steps_per_epoch)  # epochs of few samples are short
    rate = head.learning_rate
    optimizer = torch.optim.AdamW(mlp.parameters(), lr=rate, weight_decay=head.weight_decay, fused=True)
    total_steps = epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=total_steps, pct_start=0.1)
    for epoch in range(1, epochs + 1):
        order = torch.stack([torch.randperm(count, generator=generator) for generator in generators]).to(x.device)
        for rows in order.split(_BATCH_SIZE, dim=1):
            # Summed over the seeds, so that each head has the gradient that it would have alone.
            loss = (mlp(_rows(x, rows)) - _rows(y, rows)).square().mean(dim=(1, 2)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch % check_every == 0 or epoch == epochs:
            best.update()


class _BestEpoch:
    """The parameters of each of S heads at the epoch of its lowest error on the held-out samples.

    Args:
        x: held-out inputs, (S, n, d).
        y: their targets, (S, n, P), of mean 0.
        weight: of the squared error of each target, (S, 1, P).
    """

    def __init__(self, mlp: _StackedMLP, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor):
        self.mlp = mlp
        self.x = x
        self.y = y
        self.weight = weight
        self.error = (y.square() * weight).mean(dim=(1, 2))  # of predicting the mean
        self.learned = torch.zeros_like(self.error, dtype=torch.bool)  # whether any epoch is better than that
        self.parameters = [parameter.detach().clone() for parameter in mlp.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        """Keep the heads whose error is lower than before."""
        error = ((self.mlp(self.x) - self.y).square() * self.weight).mean(dim=(1, 2))
        better = error < self.error
        self.error = torch.minimum(error, self.error)
        self.learned = self.learned | better
        for kept, parameter in zip(self.parameters, self.mlp.parameters(), strict=True):
            kept[better] = parameter[better]

    def errors(self) -> torch.Tensor:
        """Of the kept heads for each held-out sample, (S, n)."""
        return ((self.predict(self.x) - self.y).square() * self.weight).mean(dim=2)

    @torch.no_grad()
    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Predictions (S, M, P) of the kept heads for (S, M, d); 0, the mean, for a head that has learned nothing."""
        for kept, parameter in zip(self.parameters, self.mlp.parameters(), strict=True):
            parameter.copy_(kept)
        return torch.where(self.learned[:, None, None], self.mlp(x), 0)


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
    """Weights (S, in_dim, out_dim) and biases (S, 1, out_dim), drawn as in torch.nn.Linear."""
    bound = in_dim**-0.5
    weight = torch.empty(count, in_dim, out_dim).uniform_(-bound, bound)
    bias = torch.empty(count, 1, out_dim).uniform_(-bound, bound)
    return nn.Parameter(weight), nn.Parameter(bias)


def _rows(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(S, N, P) at (S, n) -> (S, n, P)."""
    return torch.stack([own[rows] for own, rows in zip(values, index, strict=True)])
