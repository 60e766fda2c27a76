"""Counter-based random numbers: each draw is a pure function of (seed, sample key, epoch, stream), on any device.

Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011, doi 10.1145/2063384.2063405).
Nothing is stored between draws, so views do not depend on workers, on the number of processes, or on where a run was
interrupted.
"""

from __future__ import annotations

import math

import torch

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(counter: tuple[torch.Tensor, ...], key: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Four 32-bit counters and two 32-bit keys -> four 32-bit words, all int64 tensors of one shape."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0 = c0 * _MULTIPLIERS[0]  # the low 64 bits; the mask below removes the sign
        product1 = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _MASK) ^ c1 ^ k0,
            product1 & _MASK,
            ((product0 >> 32) & _MASK) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0 = (k0 + _WEYL[0]) & _MASK
        k1 = (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def uniforms(
    seed: int, *, keys: torch.Tensor, epochs: torch.Tensor, stream: int | torch.Tensor, count: int
) -> torch.Tensor:
    """Uniform numbers in [0, 1), float32 of shape (B, count), for sample keys (B,) in epochs (B,), both int64.

    `stream`, a number or (B,), separates the draws of one sample: first view, second view, path ...
    """
    blocks = math.ceil(count / 4)
    block = torch.arange(blocks, device=keys.device).expand(len(keys), blocks)
    shape = torch.zeros_like(block)
    counter = (
        shape + (keys & _MASK)[:, None],
        shape + ((keys >> 32) & _MASK)[:, None],
        shape + (stream[:, None] if isinstance(stream, torch.Tensor) else stream),
        block,
    )
    words = philox(counter, (shape + (seed & _MASK), shape + (epochs & _MASK)[:, None]))
    # The top 24 bits fill the mantissa of a float32 exactly, so rounding cannot reach 1.0.
    return ((torch.stack(words, dim=-1) >> 8).float() * 2.0**-24).flatten(1)[:, :count]
