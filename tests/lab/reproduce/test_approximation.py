"""Estimates against what they estimate: measured on matrices and quadratics whose answers are known."""

import pytest
import torch

from lab.reproduce.fabricated import rows
from thriftgrad import tasks
from thriftgrad.aggregate import AllReduce, PowerSGD
from thriftgrad.compress import Identity
from thriftgrad.core import TensorSpec
from thriftgrad.lab.reproduce import check_approximation
from thriftgrad.lab.reproduce.approximation import WHOLE, Approximations, Look, looks, mean_gradients
from thriftgrad.lab.reproduce.claims import Reasons, Verdict
from thriftgrad.lab.reproduce.evidence import Evidence
from thriftgrad.lab.reproduce.quadratics import GONE, Quadratics, descend

REASONS = Reasons(holds="yes", contradicted="no")
PLAIN = AllReduce(Identity())


def form(rank=1, **settings):
    return PowerSGD(rank=rank, min_compression_rate=1.0, **settings)


def test_looks_take_squared_norms_of_compressed_matrices_alone():
    specs = [TensorSpec((5, 4), name="matrix"), TensorSpec((4,), name="vector"), TensorSpec((6, 5), name="zero")]
    owed = [torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0])), torch.ones(4), torch.zeros(6, 5)]
    owed[0] = torch.cat([owed[0], torch.zeros(1, 4)])
    estimate = [torch.zeros(5, 4), torch.ones(4), torch.zeros(6, 5)]
    found = looks(form(), specs, owed, estimate)
    assert set(found) == {"matrix", WHOLE}
    assert found["matrix"] == Look(pytest.approx(14), pytest.approx(14), pytest.approx(5))  # 9 + 4 + 1; without 9
    assert found[WHOLE] == found["matrix"]
    two = looks(form(residual_iterations=2), specs, owed, [owed[0], *estimate[1:]])["matrix"]
    assert (two.rest, two.least) == (0.0, pytest.approx(1))  # two iterations of rank 1 send rank 2


def test_looks_of_nothing_are_none():
    assert looks(form(), [TensorSpec((4,), name="vector")], [torch.ones(4)], [torch.ones(4)]) == {}


def test_mean_gradients_follow_sgd_with_momentum():
    task = tasks.load("softmax")
    model, twin = task.build(0), task.build(0)
    optimizer = torch.optim.SGD(twin.parameters(), lr=task.learning_rate, momentum=0.9)
    batches = [task.batches(0, rank, 2) for rank in range(2)]
    for mean in mean_gradients(task, model, 0, 3, 2):
        optimizer.zero_grad()
        for source in batches:
            (task.loss(twin, next(source)) / 2).backward()
        for ours, p in zip(mean, twin.parameters(), strict=True):
            torch.testing.assert_close(ours, p.grad)
        optimizer.step()


def test_forms_look_on_and_leave_the_path_alone():
    forms = (("one", form()), ("two", form(rank=2)))
    found = list(Approximations("name", "softmax", 0, forms, steps=8, workers=2, seconds=1.0).rows())
    alone = list(Approximations("name", "softmax", 0, forms[:1], steps=8, workers=2, seconds=1.0).rows())
    assert [row for row in found if row["label"] == "one"] == alone
    by = {row["label"]: row for row in found if row["tensor"] == WHOLE}
    assert by["two"]["error"] < by["one"]["error"]
    for row in found:
        assert 0 < row["best"] <= row["error"] < 1
        assert row["least_kept"] <= row["kept"] <= 1


def test_steps_on_a_quadratic_have_a_closed_form():
    assert descend(PLAIN, 0.1, None, 20, 0) == pytest.approx(0.9**20, rel=1e-4)
    assert descend(PLAIN, 0.1, 0.0, 20, 0) == pytest.approx(0.9**20, rel=1e-4)
    assert descend(PLAIN, 0.1, 100.0, 20, 0) == pytest.approx(0.9**20, rel=1e-3)  # the noise is not looked at
    assert descend(PLAIN, 2.5, None, 200, 0) == GONE
    # All 20 directions of a flat spectrum, one a step: at rate 1 each is learnt as it is sent.
    assert descend(form(memory="none"), 1.0, None, 40, 0) < 1e-4 < 0.5 < descend(form(memory="none"), 1.0, None, 10, 0)


def test_a_memory_has_a_limit_of_stability_and_none_has_not():
    assert descend(form(), 0.1, None, 400, 0) < 0.01
    assert descend(form(), 0.2, None, 400, 0) > 1
    assert descend(form(warm_start=False), 0.5, None, 400, 0) == GONE
    assert descend(form(memory="none"), 0.5, None, 400, 0) < 0.01


def test_quadratics_are_a_row_for_each_case():
    found = list(Quadratics("flat-seed3", (("plain", PLAIN),), (0.1, 0.5), (None, 1.0), 2, 3, 1.0).rows())
    assert [(row["rate"], row["noise"], row["seed"]) for row in found] == [
        (0.1, None, 3),
        (0.5, None, 3),
        (0.1, 1.0, 3),
        (0.5, 1.0, 3),
    ]
    assert found[1]["error"] == pytest.approx(0.25, rel=1e-4)


def path(folder, errors, best=0.5, least=0.1):
    """Errors by label, alike on two seeds but for a hair."""
    rows(
        folder,
        "path-toy",
        [
            {"label": label, "tensor": tensor, "error": error * (1 + 0.001 * seed), "best": best, "kept": 0.2}
            | {"least_kept": least + 0.0001 * seed, "seed": seed}
            for label, error in errors.items()
            for tensor in ("matrix", WHOLE)
            for seed in range(3)
        ],
    )
    return Evidence(folder)


def test_errors_are_compared_seed_by_seed(tmp_path):
    evidence = path(tmp_path, {"a": 0.5, "b": 0.6})
    lower = check_approximation.lower({"path-toy": "toy"}, [("a", "b")], 1.0, REASONS)(evidence)
    assert lower.verdict is Verdict.HOLDS
    assert "toy: a / b 0.833 [0.833, 0.833]" in lower.ours
    other = check_approximation.lower({"path-toy": "toy"}, [("b", "a"), ("a", "b")], 1.0, REASONS)(evidence)
    assert other.verdict is Verdict.IN_PART


def test_nearness_to_the_best_is_a_ratio(tmp_path):
    evidence = path(tmp_path, {"near": 0.53, "far": 0.7})
    near = check_approximation.near_best({"path-toy": "toy"}, ["near"], 1.1, REASONS)(evidence)
    assert near.verdict is Verdict.HOLDS
    assert near.tables[0].rows[0][:2] == ("near", "0.531 [0.529, 0.532]")
    assert near.charts[0].columns == ("matrix", WHOLE)
    far = check_approximation.near_best({"path-toy": "toy"}, ["far"], 1.1, REASONS)(evidence)
    assert far.verdict is Verdict.CONTRADICTED


@pytest.mark.parametrize(("least", "verdict"), [(0.1, Verdict.HOLDS), (-0.1, Verdict.CONTRADICTED)])
def test_a_contraction_loses_part_of_every_matrix(least, verdict, tmp_path):
    check = check_approximation.contracts({"path-toy": "toy"}, ["a"], REASONS)
    assert check(path(tmp_path, {"a": 0.5}, least=least)).verdict is verdict


@pytest.mark.parametrize(
    ("side", "bound", "verdict"),
    [
        ("below", 0.2, Verdict.HOLDS),
        ("below", 0.05, Verdict.CONTRADICTED),
        ("above", 0.05, Verdict.HOLDS),
        ("above", 0.2, Verdict.CONTRADICTED),
        ("below", 0.1, Verdict.NOT_MEASURABLE),
    ],
)
def test_errors_left_are_below_or_above_a_bound(side, bound, verdict, tmp_path):
    left = [0.099, 0.1, 0.101]
    found = [
        {"label": "a", "rate": rate, "noise": None, "error": error, "seed": seed}
        for rate in (0.1, 0.2)
        for seed, error in enumerate(left)
    ]
    rows(tmp_path, "flat", found)
    finding = check_approximation.below_error("flat", [("a", 0.1, None, side, bound)], REASONS, "caption")(
        Evidence(tmp_path)
    )
    assert finding.verdict is verdict
    assert f"a at rate 0.1 0.1 [0.098, 0.1] ({side} {bound:g})" in finding.ours
    assert finding.tables[0].columns == ("method", "rate 0.1", "rate 0.2")
    assert finding.charts[0].curves[0].x == (0.1, 0.2)
