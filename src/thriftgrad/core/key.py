"""Counter-based randomness: the same path of folds gives the same bits, on any device, in any order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

from thriftgrad.kernels.philox import MASK, philox


@dataclass(frozen=True)
class Key:
    """A 64-bit seed that is never used up: randomness is a function of the key, not of a generator's history.

    ``fold`` mixes in what distinguishes one use from another (step, tensor, purpose). A key folded from shared
    facts alone is *public*: every worker holds it, so every worker draws the same support or rotation.
    ``private`` folds in the rank, so that the workers' rounding errors are independent and average out.

    Raises ``ValueError`` for a seed outside [0, 2**64).

    >>> Key(0).fold("step", 3) == Key(0).fold("step", 3)
    True
    >>> Key(0).private(1) == Key(0).private(2)
    False
    """

    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"Key: seed must lie in [0, 2**64), got {self.seed}.")

    def fold(self, *salts: int | str) -> Key:
        """The key for one use: equal salts, equal key; any difference, an unrelated key."""
        seed = self.seed
        for salt in salts:
            seed = _mix(seed, salt, 0) if isinstance(salt, int) else _mix(seed, _digest(salt), 1)
        return Key(seed)

    def private(self, rank: int) -> Key:
        """This worker's own key: for rounding, where workers must differ."""
        return Key(_mix(self.seed, rank, 2))


def _mix(seed: int, salt: int, domain: int) -> int:
    low, high, _, _ = philox((salt & MASK, (salt >> 32) & MASK, domain, 0), seed)
    return high << 32 | low


@lru_cache(maxsize=1 << 16)  # tensors have the same names at each step
def _digest(salt: str) -> int:
    return int.from_bytes(blake2b(salt.encode(), digest_size=8).digest(), "little")
