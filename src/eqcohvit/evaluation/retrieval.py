"""Retrieval: find the picture itself from its transformed version, among all test images."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .context import Evaluation
from .features import part_name, parts_of
from .intervals import accuracy_resampled, half_width
from .r2_tasks import draws, pair_features
from .results import Row


def retrieval(evaluation: Evaluation) -> list[Row]:
    """Recall@1 by cosine similarity: the query is g(x), the gallery holds all N original test images.

    Nothing is fitted. Guessing finds 1 / N. Each seed has its own draw of g.
    """
    pooling = evaluation.settings.pooling[0]
    rows = []
    for path, protocol, _, test in pair_features(evaluation):
        settings = {"task": "retrieval", "transform": path.name, "protocol": protocol, "pooling": pooling}
        for encoder, features in test.items():
            for part, layer in parts_of(features.vectors):
                gallery, queries, _ = draws(features, part, layer, pooling, evaluation.settings.seeds)
                correct = torch.stack([found_itself(gallery, moved) for moved in queries]).cpu().numpy()
                values = correct.mean(axis=1).tolist()
                half = half_width(values, accuracy_resampled(correct))
                metric = f"recall@1 {path.name}, {protocol}"
                rows.append(Row(encoder, part_name(part, layer), metric, values, True, settings, half))
    return rows


def found_itself(gallery: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Whether the most similar row of the gallery is the query's own: two (N, d) -> (N,) of bool.

    Rows are compared by the cosine similarity of their difference from the gallery's mean, because features of one
    encoder share a large common direction.
    """
    mean = gallery.mean(dim=0)
    similarity = F.normalize(queries - mean, dim=-1) @ F.normalize(gallery - mean, dim=-1).T
    return similarity.argmax(dim=1) == torch.arange(len(gallery), device=gallery.device)
