"""The contract of a compressor, and the claims that theory makes about it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, overload

import torch
from torch import Tensor

from thriftgrad.core.finite import all_finite
from thriftgrad.core.key import Key
from thriftgrad.core.payload import Layout, Payload, Side
from thriftgrad.core.spec import TensorSpec

if TYPE_CHECKING:
    from thriftgrad.core.chain import Chain, LinearChain

State = TypeVar("State")


class Expression:
    """A frozen dataclass whose ``repr`` is the constructor call, defaults left out: ``parse(repr(x)) == x``."""

    def __repr__(self) -> str:
        shown = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
            if field.default is MISSING or getattr(self, field.name) != field.default
        ]
        # A linear variant is chosen by the constructor itself, so it is written under the plain name.
        return f"{type(self).__name__.removeprefix('Linear')}({', '.join(shown)})"


@dataclass(frozen=True, repr=False)
class Compressor(Expression, ABC, Generic[State, Side]):
    """A lossy map C one worker applies to one tensor: ``compress`` on this side, ``decompress`` on the other.

    A pair of pure functions: neither changes its input, all randomness comes from the key, and state
    is a value that is returned (the one that was given stays as it was). The claims below are data:
    combinators demand them, and the laws in ``tests/laws`` measure them.

    ``unbiased``    E C(x) = x.
    ``lossless``    C(x) = x, for carriers of any type.
    ``isometric``   decompress maps the carrier linearly and keeps its length, so claims survive a later stage.
    ``elementwise`` C(x)_i depends on x_i alone, so that it makes no difference which vector x_i lies in.
    ``projection``  C is an orthogonal projection onto a (possibly random) subspace.
    ``has_memory``  the state remembers what was not sent.
    """

    lossless: ClassVar[bool] = False
    isometric: ClassVar[bool] = False
    elementwise: ClassVar[bool] = False
    has_memory: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Layouts are asked for at every step and never change, so each is made once."""
        super().__init_subclass__(**kwargs)
        if "layout" in cls.__dict__:
            cls.layout = lru_cache(maxsize=1 << 14)(cls.layout)  # type: ignore[method-assign]

    @abstractmethod
    def init(self, spec: TensorSpec) -> State:
        """The state before the first step."""

    @abstractmethod
    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        """What the payload of such a tensor will look like, to the byte; ``shared`` is what ``shared`` returned."""

    @abstractmethod
    def compress(self, x: Tensor, state: State, key: Key) -> tuple[Payload[Side], State]:
        """Compress ``x`` (any shape, floating point); return the payload and the next state."""

    @abstractmethod
    def decompress(self, payload: Payload[Side]) -> Tensor:
        """The estimate C(x), in the shape and type of x."""

    def split(
        self, x: Tensor, memory: Tensor, decay: float, state: State, key: Key
    ) -> tuple[Payload[Side], Tensor | None, State]:
        """Compress x + decay * memory; the payload, what it leaves out (new, of memory's type), and the next state.

        What it leaves out is None if something in it is not finite. A kernel that does this at one go makes it faster,
        and changes no bit of it.
        """
        owed = x.to(memory.dtype) + decay * memory
        payload, after = self.compress(owed, state, key)
        rest = owed - self.decompress(payload)
        return payload, rest if all_finite([rest]) else None, after

    def add_to(self, total: Tensor, payload: Payload[Side]) -> None:
        """``total += decompress(payload)``, in place; total: of the tensor's shape, contiguous.

        Where the estimate is zero, a -0.0 in the total may stay one.
        """
        total.add_(self.decompress(payload))

    def compress_carrier(
        self, carrier: Tensor, spec: TensorSpec, state: State, key: Key
    ) -> tuple[Payload[Side], State]:
        """Compress the carrier of an earlier stage, of which more is known than a tensor tells; coders need that."""
        return self.compress(carrier, state, key)

    def shared(self, state: State) -> Any:
        """The codebooks in a state, as a tree: what both ends hold and need besides payload and spec."""
        return None

    def due(self, state: State) -> bool:
        """Whether the workers must agree on something before they compress next; the same on all of them."""
        return False

    def peaks(self, x: Tensor, state: State, key: Key) -> Any:
        """First round, where ``due``: float32 tensors (a tree) of which all workers need the greatest."""
        return None

    def counts(self, x: Tensor, state: State, key: Key, peaks: Any) -> Any:
        """Second round: int64 tensors (a tree) of which all workers need the sum, given the greatest peaks."""
        return None

    def adapt(self, state: State, peaks: Any, counts: Any) -> State:
        """The state that follows from what was agreed: the same levels on every worker, bit for bit."""
        return state

    def leaves_alone(self, spec: TensorSpec) -> bool:
        """Whether such a tensor travels as it is, because this compressor has no use for its shape."""
        return False

    @property
    def per_tensor(self) -> bool:
        """Whether aggregators give it each tensor by itself, and not all tensors of a call as one vector."""
        return True

    @property
    def shares_scale(self) -> bool:
        """Whether all workers compress with one scale, so that the sum of their symbols says the sum of estimates."""
        return False

    @property
    def unbiased(self) -> bool:
        """Whether E C(x) = x."""
        return False

    @property
    def projection(self) -> bool:
        """Whether C is an orthogonal projection."""
        return False

    def variance_bound(self, n: int) -> float | None:
        """omega with E|C(x) - x|^2 <= omega |x|^2 for every x of n elements; None where C is biased."""
        return None

    def contraction(self, n: int) -> float | None:
        """delta > 0 with E|C(x) - x|^2 <= (1 - delta) |x|^2 for every x of n elements; None where there is none."""
        omega = self.variance_bound(n)
        return 1 - omega if omega is not None and omega < 1 else None

    def after(self, first: Compressor[Any, Any]) -> Chain:
        """``first >> self``."""
        from thriftgrad.core.chain import Chain

        return Chain(first, self)

    def __rshift__(self, second: Compressor[Any, Any]) -> Chain:
        if not isinstance(second, Compressor):
            return NotImplemented
        return second.after(self)


@dataclass(frozen=True, repr=False)
class LinearCompressor(Compressor[State, Side]):
    """A compressor whose decompress is linear in the carrier and whose side is equal on all workers.

    This, and only this, makes an all-reduce of the carriers legal: the mean of the carriers decompresses to the
    mean of the estimates. (Equal sides need a public key.)
    """

    @overload
    def __rshift__(self, second: LinearCompressor[Any, Any]) -> LinearChain: ...
    @overload
    def __rshift__(self, second: Compressor[Any, Any]) -> Chain: ...
    def __rshift__(self, second: Compressor[Any, Any]) -> Chain:
        return super().__rshift__(second)


def floating(x: Tensor, compressor: Compressor[Any, Any]) -> Tensor:
    """``x`` as a flat vector, without its autograd history; ``TypeError`` if it is not floating point."""
    if not x.is_floating_point():
        raise TypeError(
            f"{compressor!r} compresses floating-point tensors, got {x.dtype}: convert it with .float() first."
        )
    return x.detach().reshape(-1)


def check_compressor(value: object, owner: str) -> None:
    """``TypeError`` unless ``value`` is a compressor, which ``owner`` needs."""
    if not isinstance(value, Compressor):
        raise TypeError(f"{owner} needs a compressor such as TopK(fraction=0.01) or QSGD(bits=4), got {value!r}.")


def check_takes_tensors(value: object, owner: str) -> None:
    """``TypeError`` unless ``value`` is a compressor of tensors of numbers, which a coder of symbols alone is not."""
    check_compressor(value, owner)
    assert isinstance(value, Compressor)
    value.layout(TensorSpec((1,)))  # says what it cannot take


def floats(x: Tensor, compressor: Compressor[Any, Any]) -> Tensor:
    """``floating``, in float32."""
    return floating(x, compressor).to(torch.float32)
