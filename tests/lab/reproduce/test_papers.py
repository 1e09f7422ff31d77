"""The papers' own reproductions: every claim finds its evidence in what is measured and trained."""

import random
import re
from dataclasses import replace

import pytest

from lab.fabricate import configuration, evaluation, method, start, write
from lab.reproduce.fabricated import probed, rows
from thriftgrad import parse
from thriftgrad.compress import OneBit, TernGrad
from thriftgrad.core import ErrorFeedback
from thriftgrad.lab.reproduce import alq, alq_work, nuqsgd
from thriftgrad.lab.reproduce.evidence import Evidence
from thriftgrad.lab.reproduce.probes import ProbedGradients
from thriftgrad.lab.reproduce.reproduction import as_json, judge
from thriftgrad.lab.reproduce.studies import AdamMethod
from thriftgrad.lab.reproduce.synthetic import CodeLengths, WorstCases, ZeroLevel
from thriftgrad.lab.reproduce.timing import Timing

PAPERS = [
    pytest.param(paper, quick, id=f"{paper.__name__[-6:]}-{quick}")
    for paper in (nuqsgd, alq)
    for quick in (True, False)
]


def planned(reproduction, folder):
    """Evidence in the shape that the reproduction would leave, its numbers drawn at random."""
    chance = random.Random(0)
    for each in reproduction.measurements:
        found = []
        if isinstance(each, ProbedGradients):
            for probe in each.probes:
                exact = probe.sweep == "bucket" and probe.x == 1
                variance = 0.0 if exact else chance.uniform(1, 2)
                found += [probed(probe.sweep, probe.label, each.seed, variance, probe.x, step) for step in probe.steps]
        elif isinstance(each, Timing):
            cost = {"encode_seconds": 1e-3, "decode_seconds": 1e-4, "update_seconds": 1e-2, "nbytes": 1000}
            cost["every_step_seconds"] = 0.0
            found = [
                {"label": label, "bucket": bucket, "draw": draw} | cost | {"encode_seconds": chance.uniform(1e-3, 2e-3)}
                for label, bucket, _ in each.compressors
                for draw in range(each.draws)
            ]
        elif isinstance(each, CodeLengths):
            base = {"nonzeros": 1.0, "nonzeros_bound": 2.0, "bits": 1.0, "bits_bound": 2.0}
            found = [{"s": s, "d": d, "draw": draw} | base for s, d in each.cases for draw in range(each.draws)]
        elif isinstance(each, WorstCases):
            base = {"gaussian": 0.1, "adversarial": 0.2, "exact": 0.2, "bound": 0.3}
            found = [{"s": s, "d": d, "draw": draw} | base for s, d in each.cases for draw in range(each.draws)]
        else:
            found = list(ZeroLevel(each.name, n=256, draws=2).rows())
        rows(folder, each.name, found)
    for study in reproduction.studies:
        runs = {}
        for arm in study.arms:
            for seed in range(study.seeds):
                steps = [evaluation(step, chance.uniform(0.8, 0.9)) for step in (10, 20)]
                end = {"kind": "end", "steps": 20, "wall_seconds": 1.0, "diverged": False}
                runs[arm.slug, seed] = [start(arm.slug, seed), evaluation(0, 0.1), *steps, end]
        methods = [method(arm.label, arm.slug) for arm in study.arms]
        settings = configuration(methods, seeds=list(range(study.seeds)), workers=study.workers)
        write(folder / "studies" / study.name, settings, runs)


@pytest.mark.parametrize(("paper", "quick"), PAPERS)
def test_every_claim_finds_its_evidence(paper, quick, tmp_path):
    reproduction = paper.reproduction(quick)
    planned(reproduction, tmp_path)
    result = judge(reproduction, tmp_path)
    for answer in result.answers:
        assert answer.finding.ours.endswith(".")
        assert answer.finding.why.endswith(".")
        assert answer.claim.paper.endswith(".")
    statements = [answer.claim.statement for answer in result.answers]
    assert len(set(statements)) == len(statements) >= 14
    assert as_json(result)["claims"][0]["verdict"] == result.answers[0].finding.verdict.value


NAMES = re.compile(r"(?:ALQ|AMQ)(?:-N)?|EF-SignSGD|TernGrad|SuperSGD|full precision|NUQSGD|QSGDinf|QSGD|SGD(?!'s path)")


def methods(text):
    """The methods that a statement or a label names; SuperSGD is the full precision of several workers."""
    found = {"full precision" if name == "SuperSGD" else name for name in NAMES.findall(text)}
    return {"full precision"} if "fp32" in text else found


@pytest.mark.parametrize(("paper", "quick"), PAPERS)
def test_a_statement_names_the_methods_that_its_verdict_is_read_off_and_no_other(paper, quick, tmp_path):
    reproduction = paper.reproduction(quick)
    planned(reproduction, tmp_path)
    for answer in judge(reproduction, tmp_path).answers:
        statement = answer.claim.statement
        assert methods(statement) == set().union(*map(methods, answer.finding.judged)), statement
        for label in answer.finding.judged:
            assert "without 0" not in label or re.search("without 0|zero level|normal model", statement), statement
            assert "no clipping" not in label or re.search("[Uu]nclipped|clipping", statement), statement


def test_the_method_that_is_timed_is_the_one_that_is_trained():
    (timing,) = (each for each in nuqsgd.reproduction(quick=False).measurements if isinstance(each, Timing))
    timed = {label: compressor for label, _, compressor in timing.compressors}
    (study, *_) = nuqsgd.reproduction(quick=False).studies
    trained = {arm.label: arm.method.aggregator for arm in study.arms}
    label = "EF-SignSGD, bucket 64"
    assert timed[label] == trained[label].compressor == ErrorFeedback(OneBit(bucket=64))


@pytest.mark.parametrize("quick", [True, False])
def test_clipping_alone_differs_between_the_terngrads_that_are_compared(quick, tmp_path):
    reproduction = alq.reproduction(quick)
    planned(reproduction, tmp_path)
    (judged,) = (
        answer.finding.judged
        for answer in judge(reproduction, tmp_path).answers
        if "needs its clipping" in answer.claim.statement
    )
    arms = {arm.label: arm.method.aggregator for arm in reproduction.studies[0].arms}
    clipped, plain = (arms[label].compressor for label in judged)
    assert clipped == TernGrad()
    assert replace(clipped, clip=None) == plain
    assert arms[alq_work.UNCLIPPED].compressor.bucket is not None  # the paper's own baseline


def test_methods_compared_by_variance_are_unbiased():
    for paper in (nuqsgd, alq):
        biased = set()
        for each in paper.reproduction(quick=False).measurements:
            for probe in each.probes if isinstance(each, ProbedGradients) else ():
                if not probe.compressor.unbiased:
                    biased.add((probe.sweep, probe.label))
        assert biased <= {("3 bits", label) for label in ("Lloyd", "EDEN", alq_work.CLIPPED)}


def test_the_papers_schedule_has_ten_updates():
    assert len(alq_work.PAPER_SCHEDULE) == 10
    assert alq_work.PAPER_SCHEDULE[:4] == (0, 100, 2_000, 10_000)
    assert alq_work.PAPER_SCHEDULE[-1] == 70_000 < alq_work.PAPER_STEPS


@pytest.mark.parametrize(("paper", "quick"), PAPERS)
def test_plans_are_consistent(paper, quick):
    reproduction = paper.reproduction(quick)
    names = [each.name for each in (*reproduction.measurements, *reproduction.studies)]
    assert len(set(names)) == len(names)
    for study in reproduction.studies:
        assert len({arm.slug for arm in study.arms}) == len({arm.label for arm in study.arms}) == len(study.arms)
        assert len(study.grid) >= 3  # a rate between two others can win
        for arm in study.arms:
            if not isinstance(arm.method, AdamMethod):
                assert parse(repr(arm.method)) == arm.method
    if not quick:
        assert all(study.seeds >= 5 for study in reproduction.studies)
    # By the rough costs that progress goes by, on two cores: below 3 and 40 minutes with room to spare.
    jobs = sum(each.seconds for each in reproduction.measurements)
    for study in reproduction.studies:
        steps = study.seeds * study.steps + len(study.grid) * study.tuning_steps
        jobs += len(study.arms) * steps * study.workers * study.step_seconds
    assert jobs / 2 < (2.5 * 60 if quick else 30 * 60)


def test_evidence_that_is_missing_is_said(tmp_path):
    first = nuqsgd.reproduction(quick=True).claims[0]
    with pytest.raises(ValueError, match=r"has no measurement 'gradients-digits'"):
        first.measure(Evidence(tmp_path))
