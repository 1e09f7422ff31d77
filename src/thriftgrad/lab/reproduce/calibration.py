"""Qualities that do not jump with batch norm's running averages."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from thriftgrad.tasks.task import Task, evaluation, spread


def calibrated(task: Task, samples: int) -> Task:
    """The task, its quality measured with batch norm's averages taken anew over so many of its training samples.

    The running averages of a short run at a large learning rate lag behind the weights, so that one evaluation is tens
    of points off the next, whatever the method. The description says that it is done. A task without batch norm is
    returned as it is. Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021, arXiv:2105.07576.
    """
    if not _norms(task.build(0)):
        return task
    batch = task.draw(spread(task.samples, samples), np.random.default_rng(0))

    def evaluate(model: nn.Module) -> float:
        copy = deepcopy(model)
        with evaluation(copy):
            for norm in _norms(copy):
                norm.train()
                norm.momentum = 1.0  # the averages of this batch alone
            task.loss(copy, batch)
        return task.evaluate(copy)

    description = f"{task.description}; evaluated with batch norm's averages over {samples} training samples"
    return replace(task, description=description, evaluate=evaluate)


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]
