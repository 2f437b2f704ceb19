"""Philox4x32-10, the counter-based generator of Salmon et al. (SC 2011), in torch.

The same words as ``triton.language.philox``, so that a twin draws what its kernel draws.
"""

import torch
from torch import Tensor

__all__ = ["philox"]

_WORD = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10


def philox(seed: int, ids: Tensor, elements: Tensor, purpose: int) -> tuple[Tensor, Tensor]:
    """The first two words for a counter of (element, id's low word, id's high word, purpose).

    Args:
        seed: the key, 64 bits.
        ids, elements: int64, broadcast against each other.

    Returns:
        two int64 tensors with values in [0, 2^32).
    """
    ids, elements = torch.broadcast_tensors(ids, elements)
    c0, c1, c2 = elements & _WORD, ids & _WORD, (ids >> 32) & _WORD
    c3 = torch.full_like(c0, purpose)
    k0, k1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(_ROUNDS):
        # Products wrap in int64; the mask after the shift leaves the right bits all the same.
        low, high = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = ((high >> 32) & _WORD) ^ c1 ^ k0, ((low >> 32) & _WORD) ^ c3 ^ k1
        c1, c3 = high & _WORD, low & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1
