"""PowerSGD: the claims about time; ``powersgd.py`` says whence.

Forward, backward, encode and decode are measured on one thread of this machine, whole steps on gloo processes over its
loopback; any other exchange is modelled (latency and bandwidth, ring) and says so. The paper: 16 GPUs, 10 Gbit/s, NCCL
or gloo. A processor is slower than a GPU, so the paper's link is scaled until SGD's exchange is as large a share of
the step as it was there; break-even bandwidths are given scaled and as they are.
"""

from __future__ import annotations

from thriftgrad.aggregate import AllGather, PowerSGD
from thriftgrad.compress import Sign, SpectralAtomo, TopK
from thriftgrad.core import ErrorFeedback
from thriftgrad.lab.reproduce import check_break_even, check_scaling, check_steps
from thriftgrad.lab.reproduce.claims import Claim, Reasons
from thriftgrad.lab.reproduce.loopback import Load, LoopbackTimes
from thriftgrad.lab.reproduce.powersgd_steps import CodecTimes, ComputeTimes
from thriftgrad.lab.reproduce.probes import Measurement
from thriftgrad.lab.reproduce.timed_steps import BF16, SERIAL, TOLD, Network, overlapping, slug

POWER = tuple((f"PowerSGD r={rank}", PowerSGD(rank=rank)) for rank in (1, 2, 4))
ALTERNATING = "PowerSGD r=2, alternating", PowerSGD(alternating=True)
SIGN = "Sign+Norm", AllGather(ErrorFeedback(Sign()))
TOP = "TopK 1 %", AllGather(ErrorFeedback(TopK(fraction=0.01)))
ATOMO = "Atomo r=2", AllGather(SpectralAtomo(rank=2))
CHEAP = (*POWER, ALTERNATING, SIGN, TOP)
RANK_2 = "PowerSGD r=2"

LARGEST = 16
BATCHES = (16, 8, 4, 2, 1)
"""A global batch of 16 on 1 to 16 workers, and the worker's own where that is fixed."""
REAL = (
    (BF16, 'AllReduce(Cast("bf16"))'),
    ("PowerSGD r=1", "PowerSGD(rank=1)"),
    (RANK_2, "PowerSGD(rank=2)"),
    ("TopK 1 %", "AllGather(ErrorFeedback(TopK(fraction=0.01)))"),
)
LOAD = Load(256, 96, 8)


def network(quick: bool) -> Network:
    """The paper's ResNet-18 with its batch; in a quick look one a quarter as wide."""
    return Network("small ResNet-18", LARGEST) if quick else Network("ResNet-18", 128)


LSTM = Network("LSTM", 64, TOLD["LSTM"])


def measurements(quick: bool) -> tuple[Measurement, ...]:
    """Half a minute of them, or about five."""
    draws = 3 if quick else 5
    small = tuple(
        each
        for model in ("small ResNet-18", "GPT")
        for each in (
            ComputeTimes(f"time-compute-{slug(model)}", ((model, BATCHES),), draws, repeats=3, seconds=5.0),
            CodecTimes(f"time-codec-{slug(model)}", model, (*CHEAP, ATOMO), draws, svd=True, seconds=5.0),
        )
    )
    loads = (LOAD, Load(256, 96, 1)) if quick else (LOAD, Load(256, 96, 1), Load(8192, 128, 1))
    real = tuple(
        LoopbackTimes(f"time-loopback-{n}", n, loads, REAL, draws, steps=6, seconds=10.0 * n) for n in _processes(quick)
    )
    if quick:
        return (*small, *real)
    large = (
        ComputeTimes("time-compute-resnet-18", (("ResNet-18", (128,)),), 3, repeats=1, seconds=25.0),
        ComputeTimes("time-compute-lstm", (("LSTM", (LSTM.batch,)),), 3, repeats=1, seconds=25.0),
        CodecTimes("time-codec-resnet-18", "ResNet-18", (*CHEAP, ATOMO), 3, svd=True, seconds=70.0),
        CodecTimes("time-codec-lstm", "LSTM", (*POWER, SIGN), 3, seconds=40.0),
        CodecTimes("time-codec-resnet-50", "ResNet-50", CHEAP, 3, seconds=60.0),
    )
    return (*small, *large, *real)


def claims(quick: bool) -> tuple[Claim, ...]:
    """What the paper and its reviews say of time."""
    there = network(quick)
    return (*_measured(quick), *_of_a_batch(there, quick), *_of_scaling(there), *_of_bandwidth(there, quick))


def _processes(quick: bool) -> tuple[int, ...]:
    return (2,) if quick else (2, 4)


def _measured(quick: bool) -> list[Claim]:
    names = [f"time-loopback-{n}" for n in _processes(quick)]
    return [
        Claim(
            "No step is shorter than one that exchanges nothing; where that saves under 10 %, compression cannot help.",
            "Not stated; reviewers find the gains small, and PyTorch has a hook to ask with.",
            check_steps.bounded(
                names,
                Reasons(
                    holds="It is the bound of every method, so it is measured first.",
                    contradicted="The processes disturb each other by more than an exchange costs.",
                    in_part="Where the exchange is small, the steps scatter by more than it costs.",
                    unsettled="The steps scatter by more than the exchange costs.",
                ),
            ),
        ),
        *(
            Claim(
                f"With gloo PowerSGD's step is shorter than SGD's ({n} processes on this machine).",
                "With gloo only PowerSGD keeps scaling (Fig. 3, secondary source), over 10 Gbit/s Ethernet.",
                check_steps.shorter(
                    f"time-loopback-{n}",
                    RANK_2,
                    Reasons(
                        holds="The exchange costs more than its factors.",
                        contradicted="Loopback is faster than the codec of a processor: its bandwidth is above B*, and "
                        "two rounds pay twice for waking up.",
                        in_part="On some of these networks it is.",
                        unsettled="The steps scatter by more than the methods differ.",
                    ),
                ),
            )
            for n in _processes(quick)
        ),
        Claim(
            "The model, given the loopback's bandwidth, foretells what real processes take, to a quarter.",
            "Not stated.",
            check_break_even.foretold(
                Network("GPT", LOAD.batch),
                RANK_2,
                {n: f"time-loopback-{n}" for n in _processes(quick)},
                LOAD.label,
                Reasons(
                    holds="Bytes, hops and codec seconds are all there is to it.",
                    contradicted="Processes that share cores, caches and a scheduler wait for each other, which no "
                    "link model knows.",
                    in_part="With as many processes as cores it does; with more they take turns.",
                    unsettled="The steps scatter by more than a quarter.",
                ),
            ),
        ),
    ]


def _of_a_batch(there: Network, quick: bool) -> list[Claim]:
    power = tuple(label for label, _ in POWER)
    overlapped = overlapping(RANK_2)
    shown = (*power, ALTERNATING[0], overlapped, SIGN[0], TOP[0], ATOMO[0])
    reasons = Reasons(
        holds="Even behind the backward pass and in bfloat16 SGD's exchange costs more than the factors do.",
        contradicted="The codec costs more than the exchange.",
        in_part="Against SGD that waits for its exchange it is so; behind the backward pass, and in bfloat16, SGD's "
        "exchange leaves little or nothing of that to save.",
        unsettled="The seconds scatter by more than the methods differ.",
    )
    found = [
        Claim(
            f"PowerSGD takes a quarter less time for a batch of {there.model} than SGD (at least half of that).",
            "312 ms; rank 1, 2 and 4: 229 (-26 %), 239 (-23 %), 260 (-16 %) (T3, unverified).",
            check_steps.time_per_batch(there, shown, 2, reasons),
        )
    ]
    told = [there] if quick else [there, LSTM]
    if not quick:
        found.append(
            Claim(
                "PowerSGD takes half the time for a batch of the LSTM (at least half of that saving).",
                "300 ms; rank 1, 2 and 4: 131 (-56 %), 141 (-53 %), 134 (-55 %) (T3; reviews confirm 300, 134).",
                check_steps.time_per_batch(LSTM, (*power, overlapped, SIGN[0]), 4, reasons),
            )
        )
    found += [
        Claim(
            f"A hundred times less traffic makes a step only as fast as Amdahl allows ({each.model}).",
            "Reviewers: 10 times less traffic gives only 2 times.",
            check_steps.amdahl(
                each,
                power,
                Reasons(
                    holds="The rest of the step stays as it was: what remains to be saved by fewer bytes is nothing.",
                    contradicted="Codec and latency take more than a fifth of the step.",
                    in_part="Of the higher ranks codec and latency take more than a fifth of the step.",
                ),
            ),
        )
        for each in told
    ]
    found.append(
        Claim(
            "Spectral Atomo is slower than SGD because of its SVD.",
            "948 against 312 ms, +204 % (T6, unverified).",
            check_steps.decomposing(
                there,
                ATOMO[0],
                Reasons(
                    holds="A full SVD of every matrix in every step.",
                    contradicted="On one thread and at this batch forward and backward take longer than the SVD.",
                    in_part="Its encoding is the SVD, and beside it forward and backward of a processor are long.",
                ),
            ),
        )
    )
    return found


def _of_scaling(there: Network) -> list[Claim]:
    return [
        Claim(
            "All-reduced exchanges hardly grow with the number of workers, gathered ones and their decoding do.",
            "So drawn in T5 and Fig. 3 (secondary source).",
            check_scaling.flat(
                there,
                (SERIAL, RANK_2),
                (SIGN[0], TOP[0]),
                Reasons(
                    holds="A ring carries 2 (n - 1) / n of the bytes, a gather n - 1 times them.",
                    contradicted="Latency decides.",
                    in_part="Bytes do so, but a ring's hops grow with the workers: small factors pay latency, and "
                    "where little is gathered it is latency too.",
                ),
            ),
        ),
        Claim(
            "With a fast backend SGD scales nearly as well as PowerSGD, with a slow one only PowerSGD scales.",
            "NCCL: all near 8 times on 16 GPUs (reviews); gloo: only PowerSGD keeps scaling (Fig. 3, secondary).",
            check_scaling.backends(
                there,
                RANK_2,
                SIGN[0],
                10.0,
                Reasons(
                    holds="At full bandwidth the exchange hides behind the backward pass, at a tenth of it it cannot.",
                    contradicted="The codec decides.",
                    in_part="Where SGD hides its exchange a codec on the same processor makes PowerSGD the slower one; "
                    "where SGD cannot hide it, PowerSGD scales.",
                ),
            ),
        ),
        *(
            Claim(
                f"PowerSGD's gain is larger where the global batch is fixed than where the worker's is ({model}).",
                "Not measured; reviewers ask for a fixed global batch.",
                check_scaling.strong_and_weak(
                    Network(model, LARGEST),
                    BATCHES,
                    RANK_2,
                    (1e9, 1e10),
                    Reasons(
                        holds="Less computing for the same exchange.",
                        contradicted="With less computing the codec, which stays as it was, weighs more than the "
                        "exchange that it saves.",
                        in_part="At the lower bandwidth the exchange weighs more with less computing; at the higher "
                        "one the codec does.",
                    ),
                ),
            )
            for model in ("small ResNet-18", "GPT")
        ),
    ]


def _of_bandwidth(there: Network, quick: bool) -> list[Claim]:
    labels = tuple(label for label, _ in (*CHEAP, ATOMO))
    found = [
        Claim(
            "PowerSGD pays at 10 Gbit/s on 16 workers, against the best uncompressed exchange too.",
            "Against SGD in fp32, backend as it was: -23 %. Reviewers: tables mislead where the backend is slow.",
            check_break_even.pays(
                there,
                labels,
                RANK_2,
                Reasons(
                    holds="Its break-even bandwidth lies above.",
                    contradicted="Its break-even bandwidth lies below.",
                    in_part="It does against an exchange that waits; behind the backward pass SGD hides its own.",
                ),
            ),
        )
    ]
    if not quick:
        found.append(
            Claim(
                "For the shapes of ResNet-50 encoding and decoding cost less than they save at 10 Gbit/s.",
                "CIFAR-10 only; reviewers ask for ImageNet.",
                check_break_even.shape_set(
                    "ResNet-50",
                    (SERIAL, BF16, *(label for label, _ in CHEAP)),
                    RANK_2,
                    Reasons(
                        holds="Even on one thread of a processor.",
                        contradicted="On one thread of a processor they cost more; as B* is in proportion to the "
                        "codec's speed, a processor of several threads or a GPU lies above it.",
                    ),
                ),
            )
        )
    return found
