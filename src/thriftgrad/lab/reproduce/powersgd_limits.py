"""PowerSGD: the claims about its approximation and its limits; ``powersgd.py`` says where they come from."""

from __future__ import annotations

from thriftgrad.lab.reproduce import check_approximation
from thriftgrad.lab.reproduce import powersgd_work as work
from thriftgrad.lab.reproduce.claims import Claim, Reasons
from thriftgrad.lab.reproduce.powersgd_methods import power, unbiased


def claims(quick: bool) -> list[Claim]:
    """All of them."""
    return [*approximation(quick), *stability(), *noise()]


def approximation(quick: bool) -> list[Claim]:
    """What one step leaves of gradient plus memory."""
    paths = {f"path-{task}": task for task in work.PATHS[quick]}
    warm = [power(rank).label for rank in work.RANKS]
    cold = work.iterated(False, 1).label
    return [
        Claim(
            "One warm iteration comes within a tenth of the best approximation of its rank.",
            "Warm start makes one iteration enough (T2 and the text).",
            check_approximation.near_best(
                paths,
                [power(2).label],
                1.1,
                Reasons(
                    holds="Gradient plus memory changes slowly, so each step goes on with the last one's iteration.",
                    contradicted="It changes too fast for that.",
                    in_part="On some tasks it does.",
                    unsettled="The seeds lie on both sides of a tenth.",
                ),
            ),
        ),
        Claim(
            "A warm start leaves less error than a cold one, and each power iteration less than fewer.",
            "So (T2); reviewers ask for k steps of the power method.",
            check_approximation.lower(
                paths,
                [
                    (work.iterated(True, 1).label, cold),
                    *(
                        (work.iterated(warm_, b).label, work.iterated(warm_, a).label)
                        for warm_ in (True, False)
                        for a, b in ((1, 2), (2, 4))
                    ),
                ],
                1.0,
                Reasons(
                    holds="Each product turns the subspace further towards the leading one; warm ones have little left "
                    "to gain.",
                    contradicted="They do not.",
                    in_part="Where the memory differs too, which each form has of its own, more iterations need not "
                    "leave a smaller share of it.",
                    unsettled="The seeds scatter by more than that.",
                ),
            ),
        ),
        Claim(
            "Each doubling of the rank leaves less error, from 1 to 32.",
            "Higher ranks approximate better (text).",
            check_approximation.lower(
                paths,
                list(zip(warm[1:], warm, strict=False)),
                1.0,
                Reasons(
                    holds="As it must, memories included.",
                    contradicted="It does not.",
                    in_part="Mostly it does, or the seeds do not settle it.",
                ),
            ),
        ),
        Claim(
            "Along training one power step is a contraction of every matrix.",
            "Its theory takes one for granted, and reviewers object; in the worst case it is none.",
            check_approximation.contracts(
                paths,
                [power(1).label, power(2).label, power(work.MEDIUM).label, cold],
                Reasons(
                    holds="At every look every matrix lost part of what it owed.",
                    contradicted="Some matrix lost nothing.",
                    in_part="Of most forms it is; of one direction, or random ones, the least share is too near 0 to "
                    "tell.",
                    unsettled="The least share is too near 0 to tell.",
                ),
            ),
        ),
    ]


def stability() -> list[Claim]:
    """Where a memory's delay meets a large learning rate."""
    one, bare, cold = power(1).label, power(1, memory="none").label, power(1, warm_start=False).label
    return [
        Claim(
            "With a memory rank 1 needs a small rate on a flat spectrum, without one it does not (20 x 20 quadratic).",
            "No analysis of the limit; reviewers ask for the bias.",
            check_approximation.below_error(
                "flat",
                [
                    (one, 0.05, None, "below", 0.1),
                    (one, 0.1, None, "below", 0.1),
                    (one, 0.2, None, "above", 1.0),
                    (cold, 0.2, None, "above", 1.0),
                    *((bare, rate, None, "below", 1.0) for rate in work.STABLE_RATES),
                ],
                Reasons(
                    holds="A memory delays by about 1 / delta steps, here 20, and what is so late must be small; "
                    "higher ranks stand larger rates.",
                    contradicted="It does not, or without one it does too.",
                    in_part="Some of the rates behave so.",
                ),
                "Flat 20 x 20 quadratic, plain steps, error left by learning rate (1000: gone)",
            ),
        )
    ]


def noise() -> list[Claim]:
    """One dominant noise direction beside a signal of rank 3."""
    one, bare = power(1).label, power(1, memory="none").label
    cold, neither = (power(1, **each).label for each in work.COLD)
    caption = "Signal of rank 3 and one noisy direction, rank 1, rate 0.02: what of the signal is not learnt, by noise"
    return [
        Claim(
            "Under one dominant noise direction rank 1 learns the signal with a memory and not without.",
            "Memory is indispensable (text); reviewers ask when one step fails.",
            check_approximation.below_error(
                "noisy",
                [
                    *((one, 0.02, at, "below", 0.2) for at in (3.0, 30.0)),
                    (bare, 0.02, 3.0, "above", 0.2),
                    (bare, 0.02, 30.0, "above", 0.5),
                    (neither, 0.02, 30.0, "above", 0.1),
                ],
                Reasons(
                    holds="The noise wins the only direction; the memory keeps the signal until it is the larger.",
                    contradicted="It does not, or without memory it learns it too.",
                    in_part="In part of the cases.",
                ),
                caption,
            ),
        ),
        Claim(
            "There a warm start learns slower than a cold one, and leaving the subspace mends it.",
            "Warm start helps (T2); its cost under such noise is not looked at.",
            check_approximation.below_error(
                "noisy",
                [
                    (cold, 0.02, 30.0, "below", 0.01),
                    (one, 0.02, 30.0, "above", 0.01),
                    (power(1, refresh_every=10).label, 0.02, 30.0, "below", 0.01),
                    (unbiased(1).label, 0.02, 30.0, "below", 0.01),
                ],
                Reasons(
                    holds="A warm start locks onto the noise; a new direction now and then is free of it.",
                    contradicted="It does not.",
                    in_part="In part of the cases, or the seeds do not settle it.",
                ),
                caption,
            ),
        ),
    ]
