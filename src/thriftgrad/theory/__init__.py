"""Closed forms and solvers: distributions, adaptive levels, variance bounds, code lengths. NumPy alone."""

from __future__ import annotations

from thriftgrad.theory.alq import alq_levels, alq_levels_by_gradient
from thriftgrad.theory.amq import amq_levels, amq_multiplier
from thriftgrad.theory.bounds import nuqsgd_variance_bound, qsgd_variance_bound, two_stage_variance, variance_bound
from thriftgrad.theory.code_length import (
    alq_code_length_bits,
    entropy_bits,
    nuqsgd_code_length_bits,
    nuqsgd_nonzeros_bound,
    qsgd_code_length_bits,
    qsgd_nonzeros_bound,
)
from thriftgrad.theory.distributions import Distribution, Mixture, TruncatedNormal
from thriftgrad.theory.grid import check_levels, exact_variance, expected_variance, level_probabilities, signed
from thriftgrad.theory.histogram import Histogram
from thriftgrad.theory.lloyd import lloyd_levels
from thriftgrad.theory.worst_case import worst_case_variance, worst_case_vector

__all__ = [
    "Distribution",
    "Histogram",
    "Mixture",
    "TruncatedNormal",
    "alq_code_length_bits",
    "alq_levels",
    "alq_levels_by_gradient",
    "amq_levels",
    "amq_multiplier",
    "check_levels",
    "entropy_bits",
    "exact_variance",
    "expected_variance",
    "level_probabilities",
    "lloyd_levels",
    "nuqsgd_code_length_bits",
    "nuqsgd_nonzeros_bound",
    "nuqsgd_variance_bound",
    "qsgd_code_length_bits",
    "qsgd_nonzeros_bound",
    "qsgd_variance_bound",
    "signed",
    "two_stage_variance",
    "variance_bound",
    "worst_case_variance",
    "worst_case_vector",
]
