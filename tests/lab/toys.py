"""Tasks small enough to follow by hand."""

from dataclasses import replace

import torch
from torch import nn

from thriftgrad.lab.cluster import Simulated
from thriftgrad.lab.training import train, train_plain
from thriftgrad.tasks.task import Task

FEATURES = torch.randn(64, 300, generator=torch.Generator().manual_seed(7))


def weights(seed=0):
    model = nn.Linear(300, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def toy(**changes):
    """The loss is <mean sample, w>, so a worker's gradient is the mean of its batch, wherever w is."""
    return Task(
        **{
            "name": "toy",
            "description": "a linear loss",
            "quality": "loss",
            "higher_is_better": False,
            "target": 0.0,
            "batch_size": 32,
            "steps": 4,
            "learning_rate": 0.1,
            "evaluate_every": 1,
            "provenance": {},
            "samples": 64,
            "build": weights,
            "draw": lambda indices, _: (FEATURES[indices],),
            "loss": lambda model, batch: model(batch[0]).mean(),
            "evaluate": lambda model: 0.0,
        }
        | changes
    )


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(300)
        self.out = weights()

    def forward(self, x):
        return self.out(self.norm(x))


def normed():
    """A regression behind a BatchNorm, whose averages are buffers; the quality is a view of them."""
    return toy(
        build=lambda seed: Normed(),
        loss=lambda model, batch: (model(batch[0]) - batch[0][:, :1]).square().mean(),
        evaluate=lambda model: float(model.norm.running_mean.square().sum()),
    )


def spied(task, look):
    """The task, and a list to which each evaluation adds what ``look`` sees of the model."""
    seen = []

    def evaluate(model):
        seen.append(look(model))
        return task.evaluate(model)

    return replace(task, evaluate=evaluate), seen


def parameters_of(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def trained(task, method, *, workers=2, steps=4, seed=0, learning_rate=0.1, evaluate_every=1, links=None):
    return list(
        train(
            task,
            method,
            Simulated(workers),
            seed=seed,
            learning_rate=learning_rate,
            steps=steps,
            evaluate_every=evaluate_every,
            links=links or {},
        )
    )


def looked_on(task, methods, *, workers=2, steps=4, seed=0, learning_rate=0.1, evaluate_every=1, links=None):
    """The evaluations of each method while plain SGD trains."""
    settings = {"seed": seed, "learning_rate": learning_rate, "steps": steps, "evaluate_every": evaluate_every}
    return list(zip(*train_plain(task, methods, Simulated(workers), **settings, links=links or {}), strict=True))
