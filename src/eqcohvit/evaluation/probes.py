"""Probes on frozen features: tensors in, numbers out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def r2_score(predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Coefficient of determination 1 - RSS / TSS per parameter, not clipped: two (N, P) -> (P,)."""
    residual = (true - predicted).square().sum(dim=0)
    return 1 - residual / (true - true.mean(dim=0)).square().sum(dim=0)


def standardize(train: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Shift and scale all (N, d) by the mean and standard deviation of `train`; constant dimensions become 0."""
    mean, std = train.mean(dim=0), train.std(dim=0)
    return tuple((x - mean) / std.clamp_min(1e-6) for x in (train, *others))


def mlp_regression(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    seed: int = 0,
    hidden_dim: int = 128,
    num_steps: int = 300,
    batch_size: int = 512,
    learning_rate: float = 4e-3,
    weight_decay: float = 0.05,
) -> torch.Tensor:
    """Predict parameters with a light MLP (one hidden layer, dropout), as the paper's head h: (N, d), (N, P), (M, d) -> (M, P).

    A tenth of the training samples chooses the epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train_x), generator=generator)
    held_out = max(1, len(order) // 10)
    train_x, test_x = standardize(train_x, test_x)
    target_mean, target_std = train_y.mean(dim=0), train_y.std(dim=0).clamp_min(1e-6)
    train_y = (train_y - target_mean) / target_std
    val_x, val_y = train_x[order[:held_out]], train_y[order[:held_out]]
    fit_x, fit_y = train_x[order[held_out:]], train_y[order[held_out:]]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Sequential(
            nn.Linear(fit_x.shape[1], hidden_dim), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden_dim, fit_y.shape[1])
        )
        optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=weight_decay)
        steps_per_epoch = -(-len(fit_x) // batch_size)
        epochs = -(-num_steps // steps_per_epoch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=epochs * steps_per_epoch, pct_start=0.1)
        best_error, best_prediction = float("inf"), None
        for _ in range(epochs):
            head.train()
            for rows in torch.randperm(len(fit_x), generator=generator).split(batch_size):
                loss = F.mse_loss(head(fit_x[rows]), fit_y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            head.eval()
            with torch.no_grad():
                error = F.mse_loss(head(val_x), val_y).item()
                if error < best_error:
                    best_error, best_prediction = error, head(test_x)
    return best_prediction * target_std + target_mean


def knn_accuracy(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    test_y: torch.Tensor,
    k: int = 20,
    temperature: float = 0.07,
    chunk_size: int = 1024,
) -> float:
    """Top-1 accuracy of weighted k nearest neighbours by cosine similarity (arXiv:1805.01978): features (N, d), labels (N,)."""
    k = min(k, len(train_x))
    train_x, test_x = F.normalize(train_x, dim=-1), F.normalize(test_x, dim=-1)
    num_classes = int(max(train_y.max(), test_y.max())) + 1
    correct = 0
    for features, labels in zip(test_x.split(chunk_size), test_y.split(chunk_size), strict=True):
        similarity, neighbours = (features @ train_x.T).topk(k, dim=-1)
        votes = torch.zeros(len(features), num_classes)
        votes.scatter_add_(1, train_y[neighbours], (similarity / temperature).exp())
        correct += int((votes.argmax(dim=-1) == labels).sum())
    return correct / len(test_y)
