"""Models of which only the shapes are needed, as the papers count their bytes: built without memory."""

from __future__ import annotations

import torch
from torch import nn

from thriftgrad import TensorSpec
from thriftgrad.tasks.models import resnet18


class TiedLSTM(nn.Module):
    """The language model of PowerSGD's WikiText-2 runs: three layers of 650, the embedding also the output's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(28_869, 650)
        self.lstm = nn.LSTM(650, 650, num_layers=3)
        self.output = nn.Linear(650, 28_869)
        self.output.weight = self.embedding.weight


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, bias=False), nn.BatchNorm2d(outputs))


def resnet50() -> nn.Sequential:
    """Bottleneck blocks, 3, 4, 6 and 3 of them, for 1000 classes: He et al., arXiv:1512.03385."""
    layers: list[nn.Module] = [convolution(3, 64, 7, 2)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            layers += [convolution(channels, width, 1), convolution(width, width, 3), convolution(width, 4 * width, 1)]
            if block == 0:
                layers.append(convolution(channels, 4 * width, 1))
            channels = 4 * width
    return nn.Sequential(*layers, nn.Linear(channels, 1000))


MODELS = {"ResNet-18": resnet18, "ResNet-50": resnet50, "LSTM": TiedLSTM}
PARAMETERS = {"ResNet-18": 11_173_962, "ResNet-50": 25_557_032, "LSTM": 28_949_319}


def specs(name: str) -> list[TensorSpec]:
    """Those of a model's parameters."""
    with torch.device("meta"):
        model = MODELS[name]()
    return [TensorSpec(tuple(each.shape), name=path) for path, each in model.named_parameters()]
