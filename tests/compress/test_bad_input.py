"""A quantiser that makes no sense is refused where it is written: one sentence, with the value that was given."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from thriftgrad import AllGather, ErrorFeedback, ParameterServer, ScatterReduce, Sign, TopK, parse
from thriftgrad.aggregate import SymbolServer
from thriftgrad.cli import main
from thriftgrad.compress import (
    ALQ,
    ALQ_N,
    AMQ,
    AMQ_N,
    DRIVE,
    EDEN,
    NUQSGD,
    QSGD,
    Lloyd,
    OneBit,
    Quantizer,
    TernGrad,
)
from thriftgrad.wire.coders import Huffman

WITH_BITS: tuple[tuple[Callable[..., Any], int], ...] = (  # and the least of them
    (QSGD, 2),
    (NUQSGD, 2),
    (ALQ, 2),
    (ALQ_N, 2),
    (AMQ, 1),
    (AMQ_N, 1),
    (Lloyd, 1),
    (EDEN, 1),
)
ADAPTIVE = (ALQ, ALQ_N, AMQ, AMQ_N, Lloyd)
BUCKETED = (QSGD, NUQSGD, *ADAPTIVE)


def one_sentence(make: Callable[[], Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=re.escape(words)) as raised:
        make()
    told = str(raised.value)
    assert type(raised.value) is kind
    assert told.endswith(".")
    assert "\n" not in told
    assert not re.search(r"[.] [A-Z]", told)


@pytest.mark.parametrize(("make", "least"), WITH_BITS, ids=lambda each: getattr(each, "__name__", ""))
def test_bits(make: Callable[..., Any], least: int) -> None:
    name = make.__name__
    for bits in (least - 1, 9, -3, 10**9):
        words = f"{name}: bits must lie in {least} ... 8 (sign included), got {bits}"
        one_sentence(partial(make, bits=bits), ValueError, words)
    for nonsense in ("3", 2.5, 3.0, (3,), True, np.int64(3), math.nan):
        words = f"{name}: bits must be an integer, got {nonsense!r}."
        one_sentence(partial(make, bits=nonsense), TypeError, words)


@pytest.mark.parametrize("make", [QSGD, NUQSGD, ALQ, AMQ])
def test_one_bit_is_for_levels_without_zero(make: Callable[..., Any]) -> None:
    words = "bits must lie in 2 ... 8 (sign included), got 1; one bit has no zero, so write include_zero=False."
    one_sentence(lambda: make(bits=1, include_zero=True), ValueError, words)
    assert make(bits=1, include_zero=False).bits == 1


@pytest.mark.parametrize("make", [*BUCKETED, EDEN], ids=lambda make: make.__name__)
@pytest.mark.parametrize("bucket", [0, -512])
def test_a_bucket_of_nothing(make: Callable[..., Any], bucket: int) -> None:
    wanted = "a power of two for the Hadamard rotation" if make is EDEN else "at least 1"
    words = f"{make.__name__}: bucket must be {wanted}, got {bucket}."
    one_sentence(lambda: make(bits=3, bucket=bucket), ValueError, words)


@pytest.mark.parametrize("make", [*BUCKETED, EDEN], ids=lambda make: make.__name__)
@pytest.mark.parametrize("bucket", [None, "512", 2.5, 512.0, True])
def test_a_bucket_that_is_no_number(make: Callable[..., Any], bucket: Any) -> None:
    if make is QSGD and bucket is None:
        return  # the whole tensor
    words = f"{make.__name__}: bucket must be an integer, got {bucket!r}."
    one_sentence(lambda: make(bits=3, bucket=bucket), TypeError, words)


@pytest.mark.parametrize("make", BUCKETED, ids=lambda make: make.__name__)
@pytest.mark.parametrize("norm", ["l1", "L2", 2, None])
def test_a_norm_that_is_unknown(make: Callable[..., Any], norm: Any) -> None:
    words = f'{make.__name__}: norm must be "l2" or "linf", got {norm!r}.'
    one_sentence(lambda: make(bits=3, norm=norm), ValueError, words)


@pytest.mark.parametrize("make", ADAPTIVE, ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"update_at": (0, -1)}, ValueError, "update_at counts steps from 0, got (0, -1)"),
        ({"update_at": (0, 2.5)}, TypeError, "a step of update_at must be an integer, got 2.5"),
        ({"update_at": "abc"}, TypeError, "a step of update_at must be an integer, got 'a'"),
        ({"update_at": 5}, TypeError, "update_at must be a sequence of steps, such as (0, 100), got 5"),
        ({"update_at": None}, TypeError, "update_at must be a sequence of steps, such as (0, 100), got None"),
        ({"update_every": 0}, ValueError, "update_every must be at least 1, or None, got 0"),
        ({"update_every": -1}, ValueError, "update_every must be at least 1, or None, got -1"),
        ({"update_every": 1e4}, TypeError, "update_every must be an integer, got 10000.0"),
        ({"update_every": "10"}, TypeError, "update_every must be an integer, got '10'"),
        ({"distribution": "laplace"}, ValueError, 'distribution must be "empirical" or "normal", got \'laplace\''),
        ({"distribution": None}, ValueError, 'distribution must be "empirical" or "normal", got None'),
    ],
    ids=str,
)
def test_a_schedule_or_a_distribution_that_makes_no_sense(
    make: Callable[..., Any], options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    one_sentence(lambda: make(bits=3, **options), kind, f"{make.__name__}: {words}")


@pytest.mark.parametrize("make", [ALQ, AMQ, Lloyd])
def test_a_power_of_the_norm_that_makes_no_sense(make: Any) -> None:
    for power in (-1, 5):
        words = f"{make.__name__}: weight_power must lie in 0 ... 4, got {power}."
        one_sentence(partial(make, bits=3, weight_power=power), ValueError, words)
    words = f"{make.__name__}: weight_power must be an integer, got 1.5."
    one_sentence(lambda: make(bits=3, weight_power=1.5), TypeError, words)


@pytest.mark.parametrize("make", [ALQ, ALQ_N, AMQ, AMQ_N])
def test_a_reference_mode_that_there_is_not(make: Any) -> None:
    for zero in (True, False):
        words = f"{make.__name__}: reference_mode must be None or \"ltq\", got 'nuq'."
        one_sentence(partial(make, bits=3, include_zero=zero, reference_mode="nuq"), ValueError, words)
    words = (
        f'{make.__name__}: the published code has no zero level, got reference_mode="ltq" with include_zero=True; '
        "set include_zero=False."
    )
    one_sentence(lambda: make(bits=3, include_zero=True, reference_mode="ltq"), ValueError, words)
    assert make(bits=3, include_zero=False, reference_mode="ltq").reference_mode == "ltq"


@pytest.mark.parametrize(
    ("levels", "kind", "words"),
    [
        ((0, 0.5, 0.2, 1), ValueError, "levels must increase strictly, got 0.5 before 0.2"),
        ((0, 0.5, 0.5, 1), ValueError, "levels must increase strictly, got 0.5 before 0.5"),
        ((0, math.nan, 1), ValueError, "levels must be finite, got nan"),
        ((0, math.inf), ValueError, "levels must be finite, got inf"),
        ((0, 0.5, 0.9), ValueError, "levels must end at 1, got 0.9"),
        ((0, 0.5, 1.5), ValueError, "levels must end at 1, got 1.5"),
        ((0.1, 1), ValueError, "levels must start at 0 (magnitudes) or -1 (signed), got 0.1"),
        ((-0.5, 0, 1), ValueError, "levels must start at 0 (magnitudes) or -1 (signed), got -0.5"),
        ((1,), ValueError, "a grid is a sequence of at least 2 levels, got (1.0,)"),
        ((), ValueError, "a grid is a sequence of at least 2 levels, got ()"),
        (tuple(np.linspace(-1, 1, 257)), ValueError, "a symbol is one byte at most, got 257 levels; give up to 256"),
        (tuple(np.linspace(0, 1, 130)), ValueError, "a symbol is one byte at most, got 259 levels; give up to 256"),
        ((0, 0.5, 0.5 + 1e-12, 1), ValueError, "levels must differ in float32 too, got two of 0.5"),
        ((0, 1e-60, 1), ValueError, "levels must differ in float32 too, got two of "),
        ("abc", TypeError, "levels must be a sequence of numbers, got 'abc'"),
        ("01", TypeError, "levels must be a sequence of numbers, got '01'"),
        (3, TypeError, "levels must be a sequence of numbers, got 3"),
        (None, TypeError, "levels must be a sequence of numbers, got None"),
        (((0, 1),), TypeError, "levels must be a sequence of numbers, got ((0, 1),)"),
        ((0, (1,)), TypeError, "levels must be a sequence of numbers, got (0, (1,))"),
    ],
    ids=str,
)
def test_levels_that_are_no_grid(levels: Any, kind: type[Exception], words: str) -> None:
    one_sentence(lambda: Quantizer(levels=levels), kind, f"Quantizer: {words}")


def test_a_quantizer_checks_bucket_and_norm_too() -> None:
    one_sentence(lambda: Quantizer((0, 1), bucket=0), ValueError, "Quantizer: bucket must be at least 1, got 0.")
    one_sentence(lambda: Quantizer((0, 1), bucket=None), TypeError, "Quantizer: bucket must be an integer, got None.")  # type: ignore[arg-type]
    one_sentence(
        lambda: Quantizer((0, 1), norm="l3"), ValueError, 'Quantizer: norm must be "l2" or "linf", got \'l3\'.'
    )


@pytest.mark.parametrize(
    "levels", [[0, 0.1, 1], np.array([0, 0.1, 1]), torch.tensor([0, 0.1, 1]).double(), (0, 0.1, 1)]
)
def test_levels_of_any_kind_print_as_the_constructor(levels: Any) -> None:
    """So two ranks that gave the same levels, one as a list and one as an array, agree about the method."""
    made = Quantizer(levels=levels)
    assert parse(repr(made)) == made
    assert repr(made) == repr(Quantizer(levels=tuple(float(each) for each in levels)))


def test_levels_of_qsgd() -> None:
    one_sentence(lambda: QSGD(levels=0), ValueError, "QSGD: levels must lie in 1 ... 255, got 0.")
    one_sentence(lambda: QSGD(levels=256), ValueError, "QSGD: levels must lie in 1 ... 255, got 256.")
    one_sentence(lambda: QSGD(levels=2.5), TypeError, "QSGD: levels must be an integer, got 2.5.")  # type: ignore[arg-type]
    one_sentence(lambda: QSGD(levels="7"), TypeError, "QSGD: levels must be an integer, got '7'.")  # type: ignore[arg-type]
    one_sentence(
        lambda: QSGD(levels=3, include_zero=False),
        ValueError,
        "QSGD: levels=3 counts those above zero, which include_zero=False leaves out; give bits.",
    )


@pytest.mark.parametrize("clip", [0, -2.5, 0.0, math.nan, math.inf, -math.inf])
def test_a_clip_that_clips_nothing_or_everything(clip: float) -> None:
    words = f"TernGrad: clip must be positive and finite, or None to leave it out, got {clip}."
    one_sentence(lambda: TernGrad(clip=clip), ValueError, words)


@pytest.mark.parametrize("clip", ["2.5", (2.5,), True, np.float32(2.5)])
def test_a_clip_that_is_no_number(clip: Any) -> None:
    words = f"TernGrad: clip must be a number, or None for no clipping, got {clip!r}."
    one_sentence(lambda: TernGrad(clip=clip), TypeError, words)


@pytest.mark.parametrize("make", [TernGrad, OneBit])
def test_a_bucket_that_may_be_the_whole_tensor(make: Any) -> None:
    assert make(bucket=None).bucket is None
    one_sentence(lambda: make(bucket=0), ValueError, f"{make.__name__}: bucket must be at least 1, got 0.")
    one_sentence(lambda: make(bucket="x"), TypeError, f"{make.__name__}: bucket must be an integer, got 'x'.")


@pytest.mark.parametrize("make", [DRIVE, lambda **options: EDEN(bits=2, **options)])
def test_a_rotation(make: Any) -> None:
    name = type(make()).__name__
    words = f"{name}: bucket must be a power of two for the Hadamard rotation, got 100."
    one_sentence(lambda: make(bucket=100), ValueError, words)
    one_sentence(lambda: make(bucket=4.0), TypeError, f"{name}: bucket must be an integer, got 4.0.")
    one_sentence(lambda: make(bucket="4"), TypeError, f"{name}: bucket must be an integer, got '4'.")
    words = f'{name}: scale must be "unbiased" or "biased", got \'best\'.'
    one_sentence(lambda: make(scale="best"), ValueError, words)


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (
            lambda: SymbolServer(TernGrad(shared_scale=False)),
            ValueError,
            "SymbolServer: the sum of symbols means something on one scale alone, and TernGrad(clip=2.5, "
            "shared_scale=False) has one for each worker; use TernGrad(shared_scale=True), or ParameterServer.",
        ),
        (lambda: SymbolServer(QSGD(bits=2)), ValueError, "on one scale alone, and QSGD(bits=2) has one for each"),
        (
            lambda: SymbolServer(TopK(k=2) >> TernGrad()),
            ValueError,
            "SymbolServer: sums go coordinate by coordinate, and TopK(k=2) >> TernGrad(clip=2.5) does not send a "
            "symbol for each; leave out what codes or chooses, as in SymbolServer(TernGrad()).",
        ),
        (lambda: SymbolServer(TernGrad() >> Huffman()), ValueError, "TernGrad(clip=2.5) >> Huffman() does not send a"),
        (lambda: SymbolServer("TernGrad"), TypeError, "SymbolServer needs a compressor such as"),  # type: ignore[arg-type]
        (
            lambda: ScatterReduce(QSGD(bits=4), TernGrad()),
            ValueError,
            "ScatterReduce (down): TernGrad(clip=2.5) shares its scales among workers, who each hold another shard; "
            "use shared_scale=False.",
        ),
        (
            lambda: ParameterServer(QSGD(bits=4), TernGrad(clip=None)),
            ValueError,
            "ParameterServer (down): TernGrad(clip=None) shares its scales among workers, and the server is alone; "
            "use shared_scale=False.",
        ),
        (
            lambda: ParameterServer(QSGD(bits=4), TopK(k=3) >> TernGrad()),
            ValueError,
            "ParameterServer (down): TopK(k=3) >> TernGrad(clip=2.5) shares its scales among workers",
        ),
        (
            lambda: ErrorFeedback(Lloyd(bits=2, per_tensor=False)),
            ValueError,
            "ErrorFeedback keeps a memory for each tensor, and Lloyd(bits=2, per_tensor=False) takes all tensors as "
            "one; use per_tensor=True.",
        ),
        (
            lambda: ErrorFeedback(TopK(k=2) >> Lloyd(bits=2, per_tensor=False)),
            ValueError,
            "takes all tensors as one; use per_tensor=True.",
        ),
        (
            lambda: ParameterServer(QSGD(bits=4, per_tensor=False), ErrorFeedback(Sign())),
            ValueError,
            "ParameterServer: ErrorFeedback(compressor=Sign()) keeps a memory for each tensor, and QSGD(bits=4, "
            "per_tensor=False) takes all tensors as one; use per_tensor=True.",
        ),
        (
            lambda: ScatterReduce(ErrorFeedback(Sign()), ALQ(bits=3, per_tensor=False)),
            ValueError,
            "ScatterReduce: ErrorFeedback(compressor=Sign()) keeps a memory for each tensor, and ALQ(bits=3, "
            "per_tensor=False) takes all tensors as one; use per_tensor=True.",
        ),
        (
            lambda: TopK(k=3, index_coder=QSGD(bits=4)),
            ValueError,
            "TopK: indices must come back as they were, and the index_coder QSGD(bits=4) is lossy; "
            "use GolombRice() or Elias().",
        ),
        (lambda: TopK(k=3, index_coder="elias"), TypeError, "TopK (index_coder) needs a compressor such as"),  # type: ignore[arg-type]
        (lambda: ErrorFeedback(ALQ(bits=3)), ValueError, "ErrorFeedback needs a contraction"),
        (lambda: AllGather(ALQ), TypeError, "AllGather needs a compressor such as"),  # type: ignore[arg-type]
    ],
)
def test_parts_that_do_not_go_together(make: Callable[[], Any], kind: type[Exception], words: str) -> None:
    one_sentence(make, kind, words)


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("ALQ(bits=9)", "ALQ: bits must lie in 2 ... 8 (sign included), got 9."),
        ("AllGather(ALQ(bits=9))", "ALQ: bits must lie in 2 ... 8 (sign included), got 9."),
        ("alq(bits=9)", "ALQ: bits must lie in 2 ... 8 (sign included), got 9."),
        ("ALQ(bits='3')", "expression: ALQ: bits must be of type int, got '3'."),
        ("ALQ(bits=2.5)", "expression: ALQ: bits must be of type int, got 2.5."),
        ("NUQSGD(bits=3, bucket=None)", "expression: NUQSGD: bucket must be of type int, got None."),
        ("Quantizer(levels='abc')", "expression: Quantizer: levels must be of type tuple, got 'abc'."),
        ("Quantizer(levels=(0, 2, 1))", "Quantizer: levels must increase strictly, got 2.0 before 1.0."),
        ("ALQ(bits=3, update_at=(0, 'x'))", "ALQ: a step of update_at must be an integer, got 'x'."),
        ("terngrad(clip=-1)", "TernGrad: clip must be positive and finite, or None to leave it out, got -1."),
    ],
)
def test_from_the_command_line(expression: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["explain", expression])
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", f"thriftgrad: {sentence}\n")
