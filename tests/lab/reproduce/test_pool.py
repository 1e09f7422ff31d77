"""Jobs in processes."""

import pytest

from thriftgrad.lab.reproduce.pool import work
from thriftgrad.lab.reproduce.probes import ProbedGradients
from thriftgrad.lab.reproduce.records import recorded
from thriftgrad.lab.reproduce.synthetic import WorstCases

SMALL = ((2, 64),)


def test_two_processes_leave_what_one_does(tmp_path):
    jobs = [WorstCases(f"w{i}", cases=SMALL, draws=i + 1) for i in range(3)]
    signs = []
    work(jobs, tmp_path / "two", signs.append, processes=2)
    work(jobs, tmp_path / "one", lambda _: None, processes=1)
    for job in jobs:
        assert recorded(job.path(tmp_path / "two")) == recorded(job.path(tmp_path / "one"))
    assert [(sign.jobs_done, sign.jobs) for sign in signs] == [(1, 3), (2, 3), (3, 3)]
    assert (signs[-1].seconds_done, signs[-1].seconds) == (30.0, 30.0)


def test_what_is_done_is_left_alone_and_counts_as_progress(tmp_path):
    jobs = [WorstCases(f"w{i}", cases=SMALL, draws=1) for i in range(2)]
    work(jobs[:1], tmp_path, lambda _: None, processes=1)
    before = jobs[0].path(tmp_path).stat().st_mtime_ns
    signs = []
    work(jobs, tmp_path, signs.append, processes=1)
    assert [sign.jobs_done for sign in signs] == [2]
    assert jobs[0].path(tmp_path).stat().st_mtime_ns == before


def test_the_longest_jobs_are_begun_first(tmp_path):
    jobs = [WorstCases(f"w{seconds}", cases=SMALL, draws=1, seconds=seconds) for seconds in (1.0, 9.0, 4.0)]
    order = []
    work(jobs, tmp_path, lambda sign: order.append(sign.seconds_done), processes=1)
    assert order == [9.0, 13.0, 14.0]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_that_fails_says_why(tmp_path, processes):
    jobs = [ProbedGradients(f"g{i}", "no such task", 0, (), 1.0) for i in range(2)]
    with pytest.raises(ValueError, match="There is no task 'no such task'"):
        work(jobs, tmp_path, lambda _: None, processes=processes)
