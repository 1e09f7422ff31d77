"""Counter-based randomness: the same path of folds gives the same bits, on any device, in any order."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def philox(counter: tuple[int, int, int, int], seed: int) -> tuple[int, int, int, int]:
    """Philox4x32-10 of one counter: four independent 32-bit words.

    The cipher of Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011); ``seed`` is its 64-bit key.

    >>> [hex(word) for word in philox((0, 0, 0, 0), seed=0)]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    a, b, c, d = counter
    low, high = seed & MASK, seed >> 32
    for _ in range(ROUNDS):
        left, right = MULTIPLIERS[0] * a, MULTIPLIERS[1] * c
        a, b, c, d = (right >> 32) ^ b ^ low, right & MASK, (left >> 32) ^ d ^ high, left & MASK
        low, high = (low + WEYL[0]) & MASK, (high + WEYL[1]) & MASK
    return a, b, c, d


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


def _digest(salt: str) -> int:
    return int.from_bytes(blake2b(salt.encode(), digest_size=8).digest(), "little")
