"""The papers' methods by their names, with the papers' defaults: one function each, returning a method.

``gradients`` holds those that exchange gradients at every step (a ``Method``), ``local`` those whose workers train on
their own in between (a ``LocalMethod``). What a recipe returns prints as the expression it stands for, so a reader sees
the parts and can change one.

Error feedback delays what it does not send, by about 1 / delta steps, and a long delay wants a shorter step: hence
``learning_rate_scale`` below 1 for the coarsest of them. Votes have steps of length one in every coordinate.

>>> from thriftgrad import recipes
>>> recipes.top_k(fraction=0.01).aggregator
AllGather(compressor=ErrorFeedback(compressor=TopK(fraction=0.01)))
"""

from thriftgrad.recipes.gradients import (
    acp_sgd,
    alq,
    alq_n,
    amq,
    amq_n,
    atomo,
    best_rank,
    dgc,
    double_squeeze,
    drive,
    eden,
    ef_sign_sgd,
    gradiveq,
    natural,
    nuqsgd,
    one_bit_sgd,
    power_sgd,
    qsgd,
    qsgd_inf,
    random_k,
    sgd,
    sign_sgd,
    signum,
    spectral_atomo,
    terngrad,
    top_k,
    unbiased_low_rank,
)
from thriftgrad.recipes.local import (
    demo,
    diloco,
    dist_ef_sgd,
    ef_sgd,
    local_sgd,
    mem_sgd,
    post_local_sgd,
    qsparse_local_sgd,
    slow_mo,
    sparse_loco,
    streaming_diloco,
)

__all__ = [
    "acp_sgd",
    "alq",
    "alq_n",
    "amq",
    "amq_n",
    "atomo",
    "best_rank",
    "demo",
    "dgc",
    "diloco",
    "dist_ef_sgd",
    "double_squeeze",
    "drive",
    "eden",
    "ef_sgd",
    "ef_sign_sgd",
    "gradiveq",
    "local_sgd",
    "mem_sgd",
    "natural",
    "nuqsgd",
    "one_bit_sgd",
    "post_local_sgd",
    "power_sgd",
    "qsgd",
    "qsgd_inf",
    "qsparse_local_sgd",
    "random_k",
    "sgd",
    "sign_sgd",
    "signum",
    "slow_mo",
    "sparse_loco",
    "spectral_atomo",
    "streaming_diloco",
    "terngrad",
    "top_k",
    "unbiased_low_rank",
]
