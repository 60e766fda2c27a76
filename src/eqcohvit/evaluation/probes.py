"""Probes on frozen features: tensors in, numbers out. Each runs on the device of its inputs, and its randomness is its seed's alone."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
_PENALTIES = tuple(10.0**exponent for exponent in range(-4, 3))  # of ridge regression, relative to the number of samples


def standardize(train: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Shift and scale all (N, d) by the mean and standard deviation of `train`; constant dimensions become 0."""
    mean, std = train.mean(dim=0), train.std(dim=0)
    return tuple((x - mean) / std.clamp_min(1e-6) for x in (train, *others))


def hold_out(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A random split of `count` samples by seed: indices to fit on, indices to choose by (a tenth; of few, up to a quarter).

    Raises:
        ValueError: there are too few samples to split.
    """
    if count < 10:
        raise ValueError(f"a probe needs at least 10 images to be fitted on, got {count}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held_out = max(count // 10, min(count // 4, 256))
    return order[held_out:], order[:held_out]


def linear_regression(train_x: torch.Tensor, train_y: torch.Tensor, *xs: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Predict parameters by ridge regression: (N, d), (N, P), each (M, d) -> each (M, P). Some of the N (`hold_out`) choose the penalty."""
    train_x, *inputs = (x.double() for x in standardize(train_x, *xs))
    fit, val = (rows.to(train_x.device) for rows in hold_out(len(train_x), seed))
    fit_y, val_y = train_y[fit].double(), train_y[val].double()
    x_mean, y_mean, y_std = train_x[fit].mean(dim=0), fit_y.mean(dim=0), fit_y.std(dim=0).clamp_min(1e-12)
    fit_x = train_x[fit] - x_mean
    gram, moment = fit_x.T @ fit_x, fit_x.T @ (fit_y - y_mean)
    best_error, best_weight = ((val_y - y_mean) / y_std).square().mean().item(), torch.zeros_like(moment)
    for penalty in _PENALTIES:
        factor = torch.linalg.cholesky(gram + penalty * len(fit) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
        weight = torch.cholesky_solve(moment, factor)
        error = (((train_x[val] - x_mean) @ weight + y_mean - val_y) / y_std).square().mean().item()
        if error < best_error:
            best_error, best_weight = error, weight
    return tuple(((x - x_mean) @ best_weight + y_mean).to(train_y.dtype) for x in inputs)


def mlp_regression(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    num_seeds: int = 1,
    hidden_dim: int = 128,
    num_steps: int = 240,
    batch_size: int = 512,
    learning_rate: float = 4e-3,
    weight_decay: float = 0.05,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predict parameters with S light MLPs, the paper's head h, one for each seed: (N, d), (N, P), (M, d) -> (S, M, P), and (S, M, P) of
    their linear paths alone.

    One hidden layer with dropout, and a linear path beside it, which is the ridge regression: the MLP learns what that leaves over. Some
    of the training samples (`hold_out`), others for each seed, choose the penalty and the epoch, or no MLP at all.
    """
    seeds, device = range(num_seeds), train_x.device
    splits = [hold_out(len(train_x), seed) for seed in seeds]
    fit, val = (torch.stack(rows).to(device) for rows in zip(*splits, strict=True))
    linear = [linear_regression(train_x, train_y, train_x, test_x, seed=seed) for seed in seeds]
    linear_train, linear_test = (torch.stack(predictions) for predictions in zip(*linear, strict=True))
    train_x, test_x = standardize(train_x, test_x)
    residual = train_y - linear_train
    scale = _rows(residual, fit).std(dim=1, keepdim=True).clamp_min(1e-6)
    target = residual / scale
    weight = (scale / train_y.std(dim=0).clamp_min(1e-6)).square()  # errors count in the units of the parameters' spread
    fit_y, val_x, val_y = _rows(target, fit), train_x[val], _rows(target, val)
    best_error, best = (val_y.square() * weight).mean(dim=(1, 2)), torch.zeros_like(linear_test)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    with torch.random.fork_rng(devices=[device] if train_x.is_cuda else []):
        torch.manual_seed(0)
        head = _StackedMLP(num_seeds, train_x.shape[1], hidden_dim, train_y.shape[1]).to(device)
        optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)
        count = fit.shape[1]
        steps_per_epoch = -(-count // batch_size)
        epochs = -(-num_steps // steps_per_epoch)
        check_every = max(1, 8 // steps_per_epoch)  # epochs; those of few samples are short
        total = epochs * steps_per_epoch
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=total, pct_start=0.1)
        for epoch in range(1, epochs + 1):
            head.train()
            order = torch.stack([torch.randperm(count, generator=generator) for generator in generators]).to(device)
            for rows in order.split(batch_size, dim=1):
                # The sum over the seeds leaves each head the gradient that it would have alone.
                loss = (head(train_x[fit.gather(1, rows)]) - _rows(fit_y, rows)).square().mean(dim=(1, 2)).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            if epoch % check_every and epoch < epochs:
                continue
            head.eval()
            with torch.no_grad():
                error = ((head(val_x) - val_y).square() * weight).mean(dim=(1, 2))
                if (error < best_error).any():
                    better = (error < best_error)[:, None, None]
                    best = torch.where(better, head(test_x.expand(num_seeds, -1, -1)), best)
                    best_error = torch.minimum(error, best_error)
    return linear_test + best * scale, linear_test


class _StackedMLP(nn.Module):
    """S independent MLPs with one hidden layer, run together: (S, B, d) -> (S, B, P)."""

    def __init__(self, count: int, in_dim: int, hidden_dim: int, out_dim: int):
        super().__init__()
        self.first, self.first_bias = _stacked_linear(count, in_dim, hidden_dim)
        self.second, self.second_bias = _stacked_linear(count, hidden_dim, out_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.dropout(F.gelu(torch.baddbmm(self.first_bias, x, self.first)), 0.1, self.training)
        return torch.baddbmm(self.second_bias, hidden, self.second)


def _stacked_linear(count: int, in_dim: int, out_dim: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Weights (S, in_dim, out_dim) and biases (S, 1, out_dim), drawn as those of torch.nn.Linear."""
    bound = in_dim**-0.5
    weight, bias = (torch.empty(count, rows, out_dim).uniform_(-bound, bound) for rows in (in_dim, 1))
    return nn.Parameter(weight), nn.Parameter(bias)


def _rows(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(S, N, P) at (S, n) -> (S, n, P)."""
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[-1]))


def linear_classification(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    test_y: torch.Tensor,
    seed: int = 0,
    learning_rates: tuple[float, ...] = LEARNING_RATES,
    epochs: int = 30,
    batch_size: int = 256,
) -> tuple[float, float]:
    """Top-1 accuracy of a linear classifier on frozen features (N, d) with labels (N,), and its learning rate.

    One classifier for each learning rate is trained in the same pass over the features (SGD with momentum 0.9, cosine schedule, as in
    arXiv:2304.07193, appendix B.3); held-out training samples choose among them.
    """
    fit, val = (rows.to(train_x.device) for rows in hold_out(len(train_x), seed))
    train_x, test_x = standardize(train_x, test_x)
    fit_x, fit_y, val_x, val_y = train_x[fit], train_y[fit], train_x[val], train_y[val]
    rates = torch.tensor(learning_rates, device=train_x.device)[:, None, None]
    num_classes = int(max(train_y.max(), test_y.max())) + 1
    weight = torch.zeros(len(learning_rates), num_classes, train_x.shape[1] + 1, device=train_x.device)  # the last column is the bias
    momentum = torch.zeros_like(weight)
    generator = torch.Generator().manual_seed(seed)
    total, step = epochs * -(-len(fit_x) // batch_size), 0
    for _ in range(epochs):
        for rows in torch.randperm(len(fit_x), generator=generator).split(batch_size):
            x = F.pad(fit_x[rows], (0, 1), value=1.0)
            slope = torch.softmax(x @ weight.mT, dim=-1)  # gradient of the cross-entropy by the logits: (rates, batch, classes)
            slope[:, torch.arange(len(x)), fit_y[rows]] -= 1
            momentum = 0.9 * momentum + slope.mT @ x / len(x)
            weight -= rates * (0.5 + 0.5 * math.cos(math.pi * step / total)) * momentum
            step += 1

    def accuracies(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return ((F.pad(x, (0, 1), value=1.0) @ weight.mT).argmax(dim=-1) == y).float().mean(dim=-1)

    best = int(accuracies(val_x, val_y).argmax())
    return accuracies(test_x, test_y)[best].item(), learning_rates[best]


def nearest_neighbours(
    train_x: torch.Tensor, test_x: torch.Tensor, k: int, test_chunk: int = 1024, train_chunk: int = 65536
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k training samples of highest cosine similarity: (N, d), (M, d) -> similarities and indices (M, k), most similar first.

    At most `test_chunk` x `train_chunk` similarities are held at a time, whatever N and M are.
    """
    train_x, test_x = F.normalize(train_x, dim=-1), F.normalize(test_x, dim=-1)
    k = min(k, len(train_x))
    found = []
    for features in test_x.split(test_chunk):
        best = features.new_empty(len(features), 0), torch.empty(len(features), 0, dtype=torch.long, device=features.device)
        for start in range(0, len(train_x), train_chunk):
            block = train_x[start : start + train_chunk]
            similarity, index = (features @ block.T).topk(min(k, len(block)), dim=-1)
            similarity, index = torch.cat([best[0], similarity], dim=-1), torch.cat([best[1], index + start], dim=-1)
            similarity, chosen = similarity.topk(min(k, similarity.shape[-1]), dim=-1)
            best = similarity, index.gather(-1, chosen)
        found.append(best)
    return torch.cat([similarity for similarity, _ in found]), torch.cat([index for _, index in found])


def knn_accuracy(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    test_y: torch.Tensor,
    k: int = 20,
    temperature: float = 0.07,
    **chunks: int,
) -> float:
    """Top-1 accuracy of weighted k nearest neighbours by cosine similarity (arXiv:1805.01978): features (N, d), labels (N,)."""
    similarity, neighbours = nearest_neighbours(train_x, test_x, k, **chunks)
    return vote(similarity, train_y[neighbours], temperature).eq(test_y).float().mean().item()


def vote(similarity: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """The class of the largest sum of exp(similarity / temperature) among neighbours: two (M, k) -> (M,)."""
    votes = torch.zeros(len(labels), int(labels.max()) + 1, device=labels.device)
    # Relative to the most similar one, without which a low temperature would leave no weight that float32 can hold.
    votes.scatter_add_(1, labels, ((similarity - similarity.amax(dim=1, keepdim=True)) / temperature).exp())
    return votes.argmax(dim=-1)


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Linear centred kernel alignment of two sets of features of the same samples (arXiv:1905.00414): (N, d), (N, e) -> [0, 1]."""
    x, y = ((values - values.mean(dim=0)).double() for values in (x, y))
    cross, own_x, own_y = ((a.T @ b).square().sum() for a, b in ((x, y), (x, x), (y, y)))
    return (cross / (own_x * own_y).sqrt().clamp_min(1e-30)).item()


def change_under(original: torch.Tensor, transformed: torch.Tensor) -> float:
    """Mean squared distance that features move under g, relative to that of two different images: two (N, d) -> 0 (invariant) or more."""
    spread = 2 * original.var(dim=0).sum().clamp_min(1e-12)
    return ((transformed - original).square().sum(dim=-1).mean() / spread).item()


def predictability(
    train: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    test: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    seed: int = 0,
    rank: int = 32,
) -> float:
    """How linearly g acts on features: the share of their change z(g x) - z(x) that a bilinear map of z(x) and the parameters predicts.

    Each argument holds z(x) (N, d), z(g x) (N, d) and parameters (N, P). The change is predicted by ridge regression from the parameters,
    their squares, z(x) and the products of z(x) with both, z(x) being its `rank` largest principal components: a linear action rho(g) z
    to second order in the parameters. 1: g acts linearly; 0: no better than the mean change; not clipped.
    """
    (z, moved, parameters), (test_z, test_moved, test_parameters) = train, test
    mean = z.mean(dim=0)
    directions = torch.linalg.eigh((z - mean).T.double() @ (z - mean).double()).eigenvectors[:, -rank:].to(z)
    parameters, test_parameters = standardize(parameters, test_parameters)
    inputs = [_bilinear((a - mean) @ directions, p) for a, p in ((z, parameters), (test_z, test_parameters))]
    (predicted,) = linear_regression(inputs[0], moved - z, inputs[1], seed=seed)
    change = test_moved - test_z
    return (1 - (change - predicted).square().sum() / (change - change.mean(dim=0)).square().sum().clamp_min(1e-12)).item()


def _bilinear(z: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """(N, r), (N, P) -> (N, 2 P + r + 2 P r)."""
    powers = torch.cat([parameters, parameters.square()], dim=-1)
    return torch.cat([powers, z, (powers[:, :, None] * z[:, None, :]).flatten(1)], dim=-1)
