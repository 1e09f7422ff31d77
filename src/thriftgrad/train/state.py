"""What a checkpoint of the exchange holds: facts that must agree, and aggregator states as flat dictionaries."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from thriftgrad.aggregate import Aggregator, TensorState
from thriftgrad.comm import simulate
from thriftgrad.compress.adaptive import adapted_levels
from thriftgrad.core import Key, TensorSpec

Leaf = Tensor | int


def facts(method: object, seed: int, specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """What two ranks, or a checkpoint and a model, must agree on.

    >>> facts("sgd", 0, [TensorSpec((3, 2), name="weight")])
    {'method': "'sgd'", 'seed': 0, 'parameter/weight': 'float32[3, 2]'}
    """
    described = {
        f"parameter/{spec.name}": f"{str(spec.dtype).removeprefix('torch.')}{list(spec.shape)}" for spec in specs
    }
    return {"method": repr(method), "seed": seed} | described


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first fact in which the two differ, with both values; one that is missing is "absent".

    >>> first_difference({"seed": 0, "parameter/a": "float32[2]"}, {"seed": 0})
    ('parameter/a', 'float32[2]', 'absent')
    """
    for fact in {**one, **other}:
        values = one.get(fact, "absent"), other.get(fact, "absent")
        if values[0] != values[1]:
            return fact, *values
    return None


def agree(
    group: dist.ProcessGroup | None, owner: str, mine: Mapping[str, Any], site: dist.ProcessGroup | None = None
) -> None:
    """Raise ``ValueError`` on every rank if two ranks differ in one of these facts; all ranks call it.

    ``site``: ranks of which the first alone is in ``group``, and the others give None for it; counted site by site.
    """
    everyone: list[Any] = [mine]
    for ranks in (site, group):
        if ranks is not None:
            gathered: list[Any] = [None] * dist.get_world_size(ranks)
            dist.all_gather_object(gathered, everyone, group=ranks)
            everyone = [facts for each in gathered for facts in each]
    if site is not None:
        told = [everyone]
        dist.broadcast_object_list(told, group=site, group_src=0)
        (everyone,) = told
    for rank, theirs in enumerate(everyone):
        if difference := first_difference(everyone[0], theirs):
            fact, first, other = difference
            raise ValueError(
                f"{owner}: the ranks disagree on {fact}: rank 0 has {first}, rank {rank} has {other}; "
                "give every rank the same."
            )


def _digest(levels: Tensor) -> str:
    return f"{zlib.crc32(levels.numpy().tobytes()):08x}"


def levels_facts(states: Mapping[str, TensorState]) -> dict[str, str]:
    """Which levels each parameter has reached; ranks that differ would not fit new ones together.

    >>> levels_facts({})
    {}
    """
    return {
        f"the levels of {name}": f"version {levels.version} at step {levels.step} (digest {_digest(levels.levels)})"
        for name, state in states.items()
        for levels in adapted_levels(state.inner)
    }


def flatten(tree: Any, path: str) -> dict[str, Leaf]:
    """The leaves of nested tuples by their paths; a branch is called by its field, or by its number.

    >>> flatten((7, (None, torch.zeros(1))), "memory/bias")
    {'memory/bias/0': 7, 'memory/bias/1/1': tensor([0.])}
    """
    if isinstance(tree, tuple):
        return {at: leaf for name, branch in _branches(tree) for at, leaf in flatten(branch, f"{path}/{name}").items()}
    return {} if tree is None else {path: alone(tree)}


def alone(leaf: Leaf) -> Leaf:
    """The leaf in memory of its own: a piece of a batch or of a buffer would keep, and save, all of that."""
    if isinstance(leaf, Tensor) and leaf.untyped_storage().nbytes() > leaf.nbytes:
        return leaf.clone()
    return leaf


def below(saved: Mapping[str, Any], path: str) -> dict[str, Any]:
    """What ``flatten`` put under a path.

    >>> below({"a/b/0": 1, "a/bc": 2}, "a/b")
    {'a/b/0': 1}
    """
    return {at: leaf for at, leaf in saved.items() if at == path or at.startswith(f"{path}/")}


def like(template: Tensor, saved: Mapping[str, Any], path: str) -> Tensor:
    """A tensor of the checkpoint, copied; ``ValueError`` where it is missing or of another shape or type."""
    x = saved.get(path)
    if not isinstance(x, Tensor) or x.shape != template.shape or x.dtype != template.dtype:
        raise ValueError(
            f"load_state_dict: {path!r} is missing or is not {template.dtype} of shape {tuple(template.shape)}; "
            "the state is incomplete or altered, so use another checkpoint."
        )
    return x.to(template.device, copy=True)


def restore(
    aggregator: Aggregator[Any], spec: TensorSpec, rank: int, world: int, path: str, saved: dict[str, Leaf]
) -> TensorState:
    """One tensor's state from its leaves, which ``flatten`` put under ``path``.

    A state may grow at the first step, when the number of workers is known. So the leaves fit either a form that the
    aggregator tells of or what becomes of it in the first step, which is found by simulating that step on zeros.

    Raises ``ValueError`` if they fit none.
    """
    for template in _templates(aggregator, spec, rank, world):
        left = dict(saved)
        try:
            inner = _fill(template, path, left, spec.device)
        except LookupError:
            continue
        if not left:
            return TensorState(spec, inner)
    raise ValueError(
        f"load_state_dict: what was saved for parameter {spec.name!r} is no state of {aggregator!r}; it is incomplete "
        "or altered, so use another checkpoint."
    )


def _templates(aggregator: Aggregator[Any], spec: TensorSpec, rank: int, world: int) -> Iterator[Any]:
    forms = list(aggregator.forms(spec))
    yield from forms
    zeros = torch.zeros((), dtype=spec.dtype, device=spec.device).expand(spec.shape)
    for form in forms:
        before = (TensorState(spec, form),)
        results = simulate([aggregator.aggregate([zeros], before, Key(0)) for _ in range(world)])
        (after,) = results[rank][1]
        yield after.inner


def _fill(template: Any, path: str, saved: dict[str, Leaf], device: torch.device) -> Any:
    """The template with its leaves taken out of ``saved``; a leaf that is None may have been one or not."""
    if isinstance(template, tuple):
        filled = [_fill(branch, f"{path}/{name}", saved, device) for name, branch in _branches(template)]
        return type(template)(*filled) if hasattr(template, "_fields") else tuple(filled)
    leaf = saved.pop(path, None)
    if template is not None and not _alike(leaf, template):
        raise LookupError(path)
    return leaf.to(device, copy=True) if isinstance(leaf, Tensor) else leaf


def _alike(leaf: Leaf | None, template: Leaf) -> bool:
    if isinstance(leaf, Tensor) and isinstance(template, Tensor):
        return leaf.shape == template.shape and leaf.dtype == template.dtype
    return type(leaf) is type(template)


def _branches(tree: tuple[Any, ...]) -> Iterable[tuple[str | int, Any]]:
    return zip(tree._fields, tree, strict=True) if hasattr(tree, "_fields") else enumerate(tree)
