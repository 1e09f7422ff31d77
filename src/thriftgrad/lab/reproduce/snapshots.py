"""Gradients along the path of plain SGD: what quantisers are compared on without training by any of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from thriftgrad.lab.training import local_gradients
from thriftgrad.tasks.task import Task

Snapshots = dict[int, list[Tensor]]
"""By step: the gradient of each worker, all tensors in one float32 vector, at the model that so many steps made."""


def along_sgd(task: Task, seed: int, steps: Iterable[int], workers: int = 4) -> Snapshots:
    """The workers' gradients at the given steps (0: the untrained model) of SGD with momentum 0.9 on their mean.

    The protocol "no train" of Faghri et al., 2020, arXiv:2010.12460: every quantiser sees the same gradients.
    """
    wanted = set(steps)
    model = task.build(seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=task.learning_rate, momentum=0.9)
    batches = [task.batches(seed, rank, workers) for rank in range(workers)]
    found: Snapshots = {}
    for step in range(max(wanted) + 1):
        gradients = local_gradients(task, model, batches, [[] for _ in batches])
        if step in wanted:
            found[step] = [torch.cat([g.reshape(-1) for g in each]) for each in gradients]
        for parameter, *shares in zip(parameters, *gradients, strict=True):
            parameter.grad = torch.stack(shares).mean(0)
        optimizer.step()
    return found


def sampling_variance(gradients: list[Tensor]) -> float:
    """E|g - E g|^2 of one worker's gradient, from how the workers' gradients differ.

    >>> sampling_variance([torch.tensor([0.0, 1.0]), torch.tensor([2.0, 1.0])])
    2.0
    """
    stacked = torch.stack(gradients).to(torch.float64)
    return float((stacked - stacked.mean(0)).square().sum()) / (len(gradients) - 1)
