"""Every word explains itself, and its numbers are those of the wire and the ledger."""

import io
import re

import pytest
import torch
from rich.console import Console

from thriftgrad import Key, Ledger, TensorSpec, kernels, parse, recipes, simulate, vocabulary, wire
from thriftgrad.lab.comparison import ComparisonError
from thriftgrad.lab.explain import explain, overview, prose
from thriftgrad.lab.table import human_bytes
from thriftgrad.local import LocalMethod

COMPRESSORS = [
    "Identity",
    "Cast('bf16')",
    "QSGD(bits=4)",
    "TopK(k=10)",
    "RandomK(fraction=0.1)",
    "Sign",
    "Vote",
    "ErrorFeedback(TopK(k=3))",
    "Shrink(QSGD(bits=2))",
    "TopK(fraction=0.01) >> QSGD(bits=4)",
    "SignTopK(k=10)",
    "DCT",
]
AGGREGATORS = [
    "AllReduce(Identity())",
    "AllGather(ErrorFeedback(Sign()))",
    "ScatterReduce(QSGD(bits=4), QSGD(bits=8))",
    "ParameterServer(Sign(scaled=False), Vote())",
    "PowerSGD(rank=3)",
    "LocalMomentum(AllReduce(Cast('fp16')))",
    "Partition({'rest': PowerSGD(rank=4)})",
]


def told(thing, width=200):
    out = io.StringIO()
    Console(file=out, width=width).print(thing)
    lines = (line.rstrip() for line in out.getvalue().splitlines())
    return "\n".join(line for line in lines if line)


def fact(text, name):
    """The row of the table of numbers that begins with this name."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name}  ")]
    return line.removeprefix(name).strip()


@pytest.mark.parametrize("text", COMPRESSORS)
def test_a_compressors_bytes_are_its_payloads_on_the_wire(text):
    shown = told(explain(text, 1000, 4))
    compressor = parse(text)
    spec = TensorSpec((1000,))
    payload, _ = compressor.compress(torch.ones(1000), compressor.init(spec), Key(0))
    length = len(wire.pack(payload)) - wire.HEADER_BYTES
    assert shown.startswith(repr(compressor))
    assert fact(shown, "payload of 1,000 float32") == f"{human_bytes(length)} + {wire.HEADER_BYTES} B header"
    assert fact(shown, "unbiased") == ("yes" if compressor.unbiased else "no")
    delta = compressor.contraction(1000)
    assert fact(shown, "contraction delta") == ("none claimed" if delta is None else f"{delta:.4g}")
    omega = compressor.variance_bound(1000)
    assert fact(shown, "variance bound omega") == ("none claimed" if omega is None else f"{omega:.4g}")


def cells(text, name):
    """The cells of the row of the table of bytes that begins with this name."""
    return re.split(r"\s{2,}", fact(text, name))


def booked(aggregator, shape, workers):
    """What the ledger says of two exchanges, less what it says of one."""
    spec, books = TensorSpec(shape), []
    for exchanges in (1, 2):
        ledger = Ledger()
        states = [aggregator.init([spec]) for _ in range(workers)]
        for step in range(exchanges):
            xs = [kernels.normal(spec.numel, rank).view(shape) for rank in range(workers)]
            comms = [aggregator.aggregate([x], state, Key(step)) for x, state in zip(xs, states, strict=True)]
            states = [state for _, state in simulate(comms, ledger)]
        books.append((ledger.up_bytes, ledger.down_bytes))
    return [two - one for one, two in zip(*books, strict=True)]


@pytest.mark.parametrize("text", AGGREGATORS)
@pytest.mark.parametrize("workers", [1, 3])
def test_an_aggregators_bytes_are_the_ledgers(text, workers):
    up, down = booked(parse(text), (40, 50), workers)
    shown = told(explain(text, 2000, workers))
    assert fact(shown, "tensor") == f"float32, Gaussian, 40 x 50; {workers} workers"
    assert fact(shown, "link bytes a worker and step") == f"{human_bytes(up)} up, {human_bytes(down)} down"


@pytest.mark.parametrize(
    ("text", "first", "later"),
    [
        # Of 4 workers' 10,000 elements, 6/4 of 4 bytes each; then 32 numbers for each of 40 slices of 256.
        ("AllReduce(Identity())", None, "1 AllReduce"),
        ("PowerSGD(rank=2)", None, "2 AllReduce"),
        ("GradiVeQ()", "1 AllReduce, 1 AllGather, 60.0 kB up", "1 AllReduce"),
        ("PowerSGD(rank=2, start_after=1, alternating=True)", "1 AllReduce, 60.0 kB up", "1 AllReduce"),
        ("PowerSGD(rank=2, start_after=1)", "1 AllReduce, 60.0 kB up", "2 AllReduce"),
    ],
)
def test_a_first_step_that_is_another_is_told(text, first, later):
    shown = told(explain(text, 10_000, 4))
    assert fact(shown, "collectives a step") == later
    if first is None:
        assert "the first step  " not in shown
    else:
        assert fact(shown, "the first step") == first


@pytest.mark.parametrize("name", recipes.__all__)
def test_a_recipe_tells_its_own_story_its_paper_and_where_momentum_sits(name):
    method = parse(name)
    shown = told(explain(name, 1000, 2), width=2000)
    assert f"\n{name}\n" in shown
    assert prose(getattr(recipes, name)).splitlines()[0] in shown
    assert fact(shown, "momentum") == method.momentum_described
    if method.paper:
        assert fact(shown, "paper") == method.paper
    up, down = booked(method.aggregator, (25, 40), 2)
    if isinstance(method, LocalMethod):
        assert cells(shown, "link, a sync") == [human_bytes(up), human_bytes(down), human_bytes(up + down)]
    else:
        assert fact(shown, "link bytes a worker and step") == f"{human_bytes(up)} up, {human_bytes(down)} down"


def test_against_a_ring():
    assert fact(told(explain("sgd", 10_000, 4)), "against a ring all-reduce") == (
        "1.00 times less than fp32, 0.500 times less than bf16"
    )
    assert fact(told(explain("sgd('bf16')", 10_000, 4)), "against a ring all-reduce") == (
        "2.00 times less than fp32, 1.00 times less than bf16"
    )


def test_every_part_is_explained_once_with_its_papers():
    shown = told(explain("AllGather(ErrorFeedback(TopK(k=5) >> QSGD(bits=4)))", 100, 2))
    titles = [line for line in shown.splitlines() if line.isidentifier()]
    assert titles == ["AllGather", "ErrorFeedback", "Chain", "TopK", "QSGD"]
    papers = fact(shown.replace("Papers: ", "Papers  "), "Papers").split(", ")
    assert {"arXiv:1610.02132", "arXiv:1809.07599", "arXiv:1906.02367"} <= set(papers)
    assert papers == sorted(set(papers))


def test_what_has_no_effect_on_this_tensor_is_noted_once(recwarn):
    shown = told(explain("Partition({'matrix': PowerSGD(rank=1), 'rest': AllReduce(Identity())})", 10_000, 4))
    assert fact(shown, "note") == "Partition: the rule 'rest' fits no tensor that is left, so it has no effect."
    assert not recwarn.list


@pytest.mark.parametrize(
    ("text", "size", "workers", "sentence"),
    [
        ("qsgd", 0, 4, "explain: it takes 1 to 100,000,000 elements and at least one worker, got 0 and 4."),
        ("qsgd", 10**9, 4, "1 to 100,000,000 elements and at least one worker, got 1,000,000,000 and 4."),
        ("qsgd", 10, -1, "at least one worker, got 10 and -1."),
        (
            "LinkModel(1e8)",
            10,
            2,
            "explain: 'LinkModel(1e8)' is no compressor, aggregator, schedule or method; try qsgd, TopK(k=10) or "
            "Every(8).",
        ),
        ("AllReduce(TopK(k=3))", 10, 2, "AllReduce needs a linear compressor, and TopK(k=3) is not"),
    ],
)
def test_what_cannot_be_explained(text, size, workers, sentence):
    with pytest.raises(ComparisonError) as caught:
        explain(text, size, workers)
    assert sentence in str(caught.value)


HEADINGS = [
    "Recipes: gradients at every step",
    "Recipes: local updates",
    "Compressors",
    "Coders",
    "Aggregators",
    "Schedules",
    "Inner and outer optimisers",
    "And",
]


def test_a_schedule_for_another_number_of_workers():
    with pytest.raises(ValueError, match="2 schedules for 3 workers; give one for each"):
        explain("PerWorker((Every(2), Every(3)))", 10, 3)


def test_an_operator_that_is_a_chain_tells_its_story_before_those_of_its_parts():
    shown = told(explain("SignTopK(k=10, order=2)", 1000, 2))
    assert shown.startswith("TopK(k=10) >> Sign(order=2)\n")
    assert shown.index("the signs of the k largest magnitudes") < shown.index("Keep the k")
    assert "arXiv:1906.02367" in shown


def test_the_overview_has_a_line_for_every_word_and_fits_80_columns():
    shown = told(overview(), width=80)
    lines = shown.splitlines()
    words = {line.split()[0] for line in lines if not line.startswith(" ") and line not in HEADINGS}
    assert words == set(vocabulary.names())
    assert [line for line in lines if line in HEADINGS] == HEADINGS
    assert "``" not in shown
    assert max(map(len, lines)) <= 80


def test_words_stand_under_their_headings():
    shown = told(overview(), width=200)
    under = dict(zip(HEADINGS, [set(part.split()) for part in re.split("|".join(HEADINGS), shown)[1:]], strict=True))
    assert "top_k" in under["Recipes: gradients at every step"]
    assert "diloco" in under["Recipes: local updates"]
    assert "AsyncServer" in under["Aggregators"]
    assert {"Every", "At", "RandomGaps", "PerWorker", "PostLocal", "Streaming"} <= under["Schedules"]
    assert {"InnerSGD", "InnerAdamW", "Average", "SlowMo"} <= under["Inner and outer optimisers"]
    assert {"LocalMethod", "Method", "LinkModel"} <= under["And"]


def test_prose_flows_and_leaves_out_errors_and_examples():
    class Documented:
        """One line.

        Two lines
        that flow, of ``code``. Raises ``ValueError`` for bits outside 2 ... 8, or
        none. A paper.

            a list
            of two

        Raises TypeError for text.

        >>> 1 + 1
        2
        """

    assert prose(Documented) == ("One line.\n\nTwo lines that flow, of code. A paper.\n\n    a list\n    of two")
