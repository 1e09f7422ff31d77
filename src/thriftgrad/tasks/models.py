"""The networks that the tasks train. Every size is stated, and a test counts the parameters."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

Model = TypeVar("Model", bound=nn.Module)


def initialised(make: Callable[[], Model], seed: int) -> Model:
    """The model that `make()` builds with the CPU generator at `seed`; the global generator is left as it was.

    Example:
        >>> a, b = (initialised(lambda: nn.Linear(2, 1), seed=7) for _ in range(2))
        >>> bool((a.weight == b.weight).all())
        True
    """
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        return make()


def he_initialise(network: nn.Module) -> None:
    """He et al., arXiv:1502.01852: weights N(0, 2 / fan in), zero biases, so that ReLUs keep the signal's variance."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class SmallCNN(nn.Sequential):
    """Two convolutions and two linear layers for square grey images; 38 282 parameters for ten classes.

    float32[batch, 1, image_size, image_size] to logits float32[batch, classes]. The pooling leaves 4 x 4 positions
    at any image size that is a multiple of four, so the number of parameters does not depend on it.
    """

    def __init__(self, image_size: int = 8, classes: int = 10) -> None:
        if image_size < 4 or image_size % 4:
            raise ValueError(f"SmallCNN pools to 4 x 4, so image_size must be a multiple of 4, not {image_size}.")
        super().__init__(
            nn.Conv2d(1, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(image_size // 4),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
            nn.Linear(64, classes),
        )
        he_initialise(self)


# -- residual networks, He et al., "Deep Residual Learning for Image Recognition", arXiv:1512.03385 --

Shortcut = Callable[[int, int, int], nn.Module]  # (channels in, channels out, stride) -> the module beside a block


class Subsample(nn.Module):
    """Shortcut option A: every `stride`-th pixel, with zeros for the new channels. It has no parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """float32[batch, inputs, h, w] to float32[batch, outputs, h / stride, w / stride]."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Shortcut option B: a 1 x 1 convolution with batch norm where the shape changes, else the identity."""
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + f(x)), with f two 3 x 3 convolutions, each followed by batch norm."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.f = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """float32[batch, inputs, h, w] to float32[batch, outputs, h / stride, w / stride]."""
        return F.relu(self.shortcut(x) + self.f(x))


def residual_network(widths: tuple[int, ...], blocks: int, shortcut: Shortcut, classes: int) -> nn.Sequential:
    """A 3 x 3 stem, one stage of `blocks` blocks per width (all but the first halve the image), mean, linear layer.

    float32[batch, 3, h, w] to logits float32[batch, classes].
    """
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    channels = widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(ResidualBlock(channels, width, stride, shortcut))
            channels = width
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
    he_initialise(network)
    return network


def cifar_resnet(depth: int, classes: int = 10) -> nn.Sequential:
    """The residual networks for CIFAR-10 of arXiv:1512.03385, section 4.2, with shortcut option A.

    depth = 6 n + 2. Parameters for ten classes: 75 290 at depth 8, 269 722 at 20, 464 154 at 32, 1 727 962 at 110.

    Raises:
        ValueError: `depth` is not 6 n + 2.
    """
    blocks, remainder = divmod(depth - 2, 6)
    if blocks < 1 or remainder:
        raise ValueError(f"A CIFAR ResNet has 6 n + 2 layers, and depth is {depth}; use 8, 20, 32 or 110.")
    return residual_network((16, 32, 64), blocks, Subsample, classes)


def resnet18(classes: int = 10, width: int = 64) -> nn.Sequential:
    """ResNet-18 with a 3 x 3 stem and no first pooling, for small images; its stages are 1, 2, 4, 8 times `width` wide.

    Parameters for ten classes: 11 173 962 at width 64, 176 402 at width 8.
    """
    return residual_network((width, 2 * width, 4 * width, 8 * width), 2, projection, classes)


# -- language models --


class LSTM(nn.Module):
    """A recurrent language model (Hochreiter and Schmidhuber, 1997) whose output layer is its embedding, and a bias.

    int64[batch, length] to logits float32[batch, length, vocabulary]; every sequence starts from a zero state.
    Parameters: vocabulary (width + 1) + layers (8 width^2 + 8 width); 28 949 319 with 28 869 words, width 650 and three
    layers, which is the model of Vogels et al., arXiv:1905.13727, without its dropout.
    Tied: Press and Wolf, arXiv:1608.05859. Every matrix starts as N(0, 1 / columns), forget gates with a bias of one.
    """

    def __init__(self, vocabulary: int = 256, width: int = 96, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.LSTM(width, width, layers, batch_first=True)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            else:
                nn.init.zeros_(parameter)
                if "bias_hh" in name:
                    nn.init.ones_(parameter[width : 2 * width])  # in the order of torch.nn.LSTM: the forget gate

    def forward(self, tokens: Tensor) -> Tensor:
        """int64[batch, length] to logits float32[batch, length, vocabulary]."""
        states, _ = self.layers(self.embedding(tokens))
        return F.linear(states, self.embedding.weight, self.bias)


# After Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2), 2019.


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a position sees itself and what stands before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """float32[batch, length, width] to the same shape."""
        batch, length, width = x.shape
        parts = self.query_key_value(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind()  # each [batch, heads, length, width / heads]
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.output(mixed.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): the pre-norm form."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """float32[batch, length, width] to the same shape."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """A decoder-only transformer with learned positions.

    int64[batch, length <= context] to logits float32[batch, length, vocabulary].
    Parameters: (2 vocabulary + context) width + depth (12 width^2 + 13 width) + 2 width; 279 168 by default.
    Differs from GPT-2: the output layer does not share the token embedding, and every matrix starts as
    N(0, 1 / columns) where GPT-2 takes N(0, 0.02^2), because plain SGD then learns much faster.

    Raises:
        ValueError: `width` is not a multiple of `heads`, or a sequence is longer than `context`.
    """

    def __init__(
        self, vocabulary: int = 256, context: int = 64, width: int = 96, depth: int = 2, heads: int = 4
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"GPT splits its width between the heads, and {width} is not a multiple of {heads}.")
        self.context = context
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.final_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocabulary, bias=False)
        self._initialise(residual_scale=(2 * depth) ** -0.5)

    def _initialise(self, residual_scale: float) -> None:
        """As GPT-2, the layers that add to the residual stream start smaller, so that its variance does not grow."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                adds_to_residual = name.endswith(("attention.output.weight", "mlp.2.weight"))
                scale = residual_scale if adds_to_residual else 1.0
                nn.init.normal_(parameter, std=scale * parameter.shape[1] ** -0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64[batch, length] to logits float32[batch, length, vocabulary]."""
        length = tokens.shape[1]
        if length > self.context:
            raise ValueError(f"GPT was built for {self.context} positions and got a sequence of {length}.")
        positions = torch.arange(length, device=tokens.device)
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        return self.output(self.final_norm(self.blocks(x)))  # type: ignore[no-any-return]
