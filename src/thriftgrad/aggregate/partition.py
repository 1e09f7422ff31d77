"""Different aggregators for different tensors."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import Tensor

from thriftgrad.aggregate.aggregator import Aggregator
from thriftgrad.comm import Comm
from thriftgrad.core import Key, TensorSpec

Rules = tuple[tuple[str, Aggregator[Any]], ...]
_SIZE = re.compile(r"numel(<|>=)(\d+)")


@dataclass(frozen=True, repr=False)
class Partition(Aggregator[Any]):
    """The first rule that fits a tensor says which aggregator it goes to.

    A rule is one of
        "matrix"        two dimensions or more
        "vector"        fewer
        "numel>=10000"  at least (or, with <, fewer than) so many elements
        "name:*.bias"   the name, with the wildcards of the shell
        "rest"          every tensor

    ``rules`` is a mapping from rules to aggregators, in order. Each group of tensors is exchanged on its own.
    Warns of a rule that fits no tensor. Raises ``ValueError`` for a rule that is none of these and for a tensor that no
    rule fits.

    >>> from thriftgrad import AllReduce, Cast, PowerSGD
    >>> Partition({"matrix": PowerSGD(rank=4), "rest": AllReduce(Cast("bf16"))})
    Partition({'matrix': PowerSGD(rank=4), 'rest': AllReduce(compressor=Cast(to='bf16'))})
    """

    rules: Mapping[str, Aggregator[Any]] | Rules

    def __post_init__(self) -> None:
        rules = tuple(self.rules.items()) if isinstance(self.rules, Mapping) else self.rules
        object.__setattr__(self, "rules", rules)
        if not rules:
            raise ValueError('Partition: no rules given; end with {"rest": ...}.')
        if len(dict(rules)) < len(rules):
            raise ValueError(f"Partition: a rule is given twice in {[rule for rule, _ in rules]}; give each once.")
        for rule, aggregator in rules:
            if not isinstance(rule, str):
                raise TypeError(f'Partition: a rule is a text such as "matrix" or "rest", got {rule!r}.')
            if not isinstance(aggregator, Aggregator):
                raise TypeError(
                    f"Partition: the rule {rule!r} needs an aggregator such as AllGather(...), got {aggregator!r}."
                )
            if rule not in ("matrix", "vector", "rest") and not _SIZE.fullmatch(rule) and not rule.startswith("name:"):
                raise ValueError(
                    f'Partition: {rule!r} is no rule; use "matrix", "vector", "numel>=N", "numel<N", "name:PATTERN" or '
                    '"rest".'
                )

    @property
    def _ordered(self) -> Rules:
        return cast(Rules, self.rules)  # a tuple since __post_init__

    def __repr__(self) -> str:
        return f"Partition({dict(self._ordered)!r})"

    def uncompressed(self, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
        names: set[str] = set()
        for (_, aggregator), group in zip(self._ordered, self._groups(specs), strict=True):
            names.update(aggregator.uncompressed([specs[i] for i in group]))
        return tuple(spec.name for spec in specs if spec.name in names)

    def check(self, specs: Sequence[TensorSpec]) -> None:
        groups = self._groups(specs)
        for (rule, aggregator), group in zip(self._ordered, groups, strict=True):
            if not group:
                warnings.warn(
                    f"Partition: the rule {rule!r} fits no tensor that is left, so it has no effect.", stacklevel=3
                )
            aggregator.check([specs[i] for i in group])

    def init_tensor(self, spec: TensorSpec) -> Any:
        return self._ordered[self._rule_of(spec)][1].init_tensor(spec)

    def exchange(
        self, tensors: Sequence[Tensor], specs: Sequence[TensorSpec], states: Sequence[Any], key: Key
    ) -> Comm[tuple[list[Tensor], list[Any]]]:
        means: dict[int, Tensor] = {}
        after: dict[int, Any] = {}
        for (_, aggregator), group in zip(self._ordered, self._groups(specs), strict=True):
            if group:
                chosen = [tensors[i] for i in group], [specs[i] for i in group], [states[i] for i in group]
                some_means, some_states = yield from aggregator.exchange(*chosen, key)
                means |= zip(group, some_means, strict=True)
                after |= zip(group, some_states, strict=True)
        return [means[i] for i in range(len(tensors))], [after[i] for i in range(len(tensors))]

    def _groups(self, specs: Sequence[TensorSpec]) -> list[list[int]]:
        """The positions of the tensors of each rule."""
        groups: list[list[int]] = [[] for _ in self._ordered]
        for i, spec in enumerate(specs):
            groups[self._rule_of(spec)].append(i)
        return groups

    def _rule_of(self, spec: TensorSpec) -> int:
        for i, (rule, _) in enumerate(self._ordered):
            if _fits(rule, spec):
                return i
        raise ValueError(
            f'Partition: no rule fits tensor {spec.name!r} of shape {spec.shape}; end with {{"rest": ...}}.'
        )


def _fits(rule: str, spec: TensorSpec) -> bool:
    size = _SIZE.fullmatch(rule)
    if size:
        return spec.numel >= int(size[2]) if size[1] == ">=" else spec.numel < int(size[2])
    if rule.startswith("name:"):
        return fnmatchcase(spec.name, rule.removeprefix("name:"))
    return {"matrix": len(spec.shape) >= 2, "vector": len(spec.shape) < 2, "rest": True}[rule]
