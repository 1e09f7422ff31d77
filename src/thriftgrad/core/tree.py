"""Nested tuples as trees: states, side information and their specs are tuples of leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def leaves(tree: Any) -> Iterator[Any]:
    """The leaves of nested tuples, in order; ``None`` is an empty branch.

    >>> list(leaves((1, (2, None), 3)))
    [1, 2, 3]
    """
    if isinstance(tree, tuple):
        for branch in tree:
            yield from leaves(branch)
    elif tree is not None:
        yield tree


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same tree with every leaf replaced; named tuples keep their type.

    >>> map_leaves(lambda leaf: 10 * leaf, (1, (2, None)))
    (10, (20, None))
    """
    if isinstance(tree, tuple):
        branches = [map_leaves(function, branch) for branch in tree]
        return type(tree)(*branches) if hasattr(tree, "_fields") else tuple(branches)
    return None if tree is None else function(tree)
