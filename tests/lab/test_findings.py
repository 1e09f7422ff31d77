"""The headline sentences, word for word: they are what a reader takes away."""

from lab.fabricate import FAST, SLOW, configuration, end, evaluation, finished, method, start, write
from thriftgrad.lab.findings import findings
from thriftgrad.lab.summary import read_summary

EARLY = [0.1, 0.96, 0.97]
LATE = [0.1, 0.5, 0.97]
NEVER = [0.1, 0.2, 0.3]


def linked(slug, seed, qualities, *, slow, fast, bytes_a_step):
    """A run whose link takes so many seconds a step on each link."""
    seconds = [{SLOW: 10 * at * slow, FAST: 10 * at * fast} for at in range(len(qualities))]
    evaluations = [
        evaluation(10 * at, quality, bytes_a_step=bytes_a_step, link_seconds=seconds[at])
        for at, quality in enumerate(qualities)
    ]
    return [start(slug, seed), *evaluations, end(10 * (len(qualities) - 1))]


def found(directory, runs, **changes):
    slugs = dict.fromkeys(slug for slug, _ in runs)
    seeds = sorted({seed for _, seed in runs})
    settings = configuration([method(slug) for slug in slugs], seeds=seeds, **changes)
    return findings(read_summary(write(directory, settings, runs)))


def test_who_wins_bytes_and_each_link_and_where_compression_does_not_pay(tmp_path):
    runs = {
        ("bf16", 0): linked("bf16", 0, EARLY, slow=0.4, fast=0.001, bytes_a_step=200.0),
        ("qsgd", 0): linked("qsgd", 0, LATE, slow=0.05, fast=0.001, bytes_a_step=20.0),
        ("sign", 0): finished("sign", 0, NEVER),
    }
    assert found(tmp_path, runs) == (
        "qsgd reaches test accuracy ≥ 0.95 in the fewest bytes, 1.60 kB per worker, 5.00x fewer than bf16.",
        # (0.4 + 0.013) * 10 s against (0.05 + 0.013) * 20 s
        "On 100mbit,1ms, qsgd is first to the target, after 1.26 s, 3.28x faster than bf16.",
        "On 10gbit,0.1ms, bf16 is first to the target, after 0.140 s; "
        "sending less than bf16 does not pay: qsgd, the best that does, needs 2.00x as much.",
        "Not at the target on every seed: sign (0 of 1 seeds).",
    )


def test_without_a_plain_method_nothing_is_said_about_compressing(tmp_path):
    sentences = found(tmp_path, {("qsgd", 0): finished("qsgd", 0, EARLY)})
    assert sentences[0] == "qsgd reaches test accuracy ≥ 0.95 in the fewest bytes, 4.00 kB per worker."
    assert sentences[-1] == "Nothing here says whether to compress: no method as large as bf16 reaches the target."


def test_if_only_plain_methods_arrive_that_is_said(tmp_path):
    runs = {
        ("sgd", 0): finished("sgd", 0, EARLY, bytes_a_step=400.0),
        ("qsgd", 0): finished("qsgd", 0, NEVER),
    }
    assert found(tmp_path, runs)[0] == (
        "sgd reaches test accuracy ≥ 0.95 in the fewest bytes, 16.0 kB per worker; "
        "no method that sends less than bf16 gets there on every seed."
    )


def test_seeds_that_overlap_do_not_separate(tmp_path):
    runs = {("a", seed): finished("a", seed, EARLY if seed else LATE) for seed in range(3)}
    runs |= {("b", seed): finished("b", seed, LATE) for seed in range(3)}
    runs |= {("c", seed): finished("c", seed, LATE, bytes_a_step=101.0) for seed in range(3)}
    assert found(tmp_path, runs)[0].endswith("per worker; the seeds do not separate a from b.")


def test_nobody_at_the_target(tmp_path):
    runs = {("a", 0): finished("a", 0, NEVER), ("b", 0): finished("b", 0, [0.1, 0.2, 0.94])}
    assert found(tmp_path, runs) == (
        "No method reaches test accuracy ≥ 0.95 on every seed within 40 steps; "
        "the best final mean is 0.9400, by b at 400 B a step.",
    )


def test_everything_diverged(tmp_path):
    runs = {("a", 0): [start("a", 0), evaluation(0, 0.1), evaluation(10, None), end(10, diverged=True)]}
    assert found(tmp_path, runs) == (
        "No method reaches test accuracy ≥ 0.95 on every seed within 40 steps, and no run finished.",
        "Runs left out of the final quality: a (1 of 1 diverged).",
    )


def test_a_target_met_before_training_is_no_ratio(tmp_path):
    runs = {
        ("sgd", 0): finished("sgd", 0, [0.96, 0.97], bytes_a_step=400.0),
        ("qsgd", 0): finished("qsgd", 0, [0.96, 0.97]),
    }
    assert found(tmp_path, runs)[0] == (
        "sgd reaches test accuracy ≥ 0.95 in the fewest bytes, 0 B per worker; the seeds do not separate sgd from qsgd."
    )


def looked_on(error, variance, bias, floor, **changes):
    return finished(
        "x",
        0,
        EARLY,
        relative_error=error,
        variance=variance,
        bias=bias,
        bias_floor=floor,
        bytes_a_step=20.0,
        **changes,
    )


def test_where_plain_sgd_trained_nobody_wins_a_race(tmp_path):
    runs = {
        ("sgd", 0): finished("sgd", 0, EARLY, bytes_a_step=400.0, relative_error=1e-8, variance=0.0, bias=1e-8),
        ("fine", 0): looked_on(0.3, 0.09, 0.15, 0.15, bits_per_coordinate=3.07),
        ("rough", 0): looked_on(1.2, 1.44, 0.6, 0.6),
        ("top", 0): looked_on(0.9, 0.0, 0.9, 0.0),
    }
    runs = {(slug, 0): [start(slug, 0), *run[1:]] for (slug, _), run in runs.items()}
    assert found(tmp_path, runs, protocol="on-sgd") == (
        "On the gradients of plain SGD, fine comes closest to their mean among the methods that send less than bf16: "
        "a relative error of 0.300, at 3.07 bits a coordinate.",
        "No bias seen, by normalised variance: fine 0.0900, rough 1.44.",
        "Biased, by |E estimate - mean| / |mean|: top 0.900.",
        "Plain SGD itself ends at a mean test accuracy of 0.9700.",
    )


def test_plain_sgd_among_methods_that_send_no_less(tmp_path):
    runs = {("sgd", 0): finished("sgd", 0, EARLY, bytes_a_step=400.0)}
    assert (
        found(tmp_path, runs, protocol="on-sgd")[0] == "On the gradients of plain SGD, no method sent less than bf16."
    )
