"""The models have the sizes that their papers state, and start the same for the same seed."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from thriftgrad.tasks.models import (
    GPT,
    LSTM,
    CausalAttention,
    SmallCNN,
    Subsample,
    cifar_resnet,
    initialised,
    resnet18,
)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (SmallCNN, 38_282),
        (partial(SmallCNN, image_size=28), 38_282),
        (partial(cifar_resnet, 8), 75_290),
        (partial(cifar_resnet, 20), 269_722),
        (partial(cifar_resnet, 32), 464_154),
        (partial(cifar_resnet, 110), 1_727_962),
        (resnet18, 11_173_962),
        (partial(resnet18, width=8), 176_402),
        (GPT, 279_168),
        (LSTM, 173_824),
        (partial(LSTM, vocabulary=28_869, width=650, layers=3), 28_949_319),  # of PowerSGD's paper
    ],
)
def test_parameter_counts(make, count):
    with torch.device("meta"):
        assert parameters(make()) == count


def test_gpt_size_follows_its_formula():
    vocabulary, context, width, depth = 50, 12, 24, 3
    expected = (2 * vocabulary + context) * width + depth * (12 * width**2 + 13 * width) + 2 * width
    assert parameters(GPT(vocabulary, context, width, depth, heads=4)) == expected


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (SmallCNN(28, classes=26), (2, 1, 28, 28)),
        (cifar_resnet(8, classes=26), (2, 3, 32, 32)),
        (resnet18(classes=26), (2, 3, 20, 20)),
    ],
)
def test_image_models_map_images_to_logits(model, shape):
    assert model(torch.randn(shape)).shape == (2, 26)


def test_option_a_shortcut_subsamples_and_pads_with_zero_channels():
    x = torch.randn(2, 3, 4, 6)
    y = Subsample(3, 5, stride=2)(x)
    assert torch.equal(y[:, :3], x[:, :, [0, 2]][..., [0, 2, 4]])
    assert y.shape == (2, 5, 2, 3)
    assert not y[:, 3:].any()


def test_residual_stages_halve_the_image():
    network = cifar_resnet(8)
    sizes = []
    x = torch.randn(1, 3, 32, 32)
    for layer in network:
        x = layer(x)
        sizes.append(tuple(x.shape[1:]))
    assert sizes[3:6] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_he_initialisation_keeps_the_variance_through_relu_layers():
    network = initialised(partial(cifar_resnet, 8), 0)
    weight = network[5].f[3].weight  # 64 x 64 x 3 x 3
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


def test_gpt_looks_only_backwards():
    model = initialised(partial(GPT, 20, context=8, width=16, depth=2, heads=2), 0)
    tokens = torch.arange(8)[None]
    changed = tokens.clone()
    changed[0, 5] = 19
    difference = (model(tokens) - model(changed)).abs().amax(dim=2)[0]
    assert difference[:5].max() == 0
    assert difference[5:].min() > 0


def test_attention_is_softmax_of_scaled_products_over_the_past():
    attention = CausalAttention(width=6, heads=2)
    x = torch.randn(1, 4, 6)
    query, key, value = attention.query_key_value(x)[0].split(6, dim=1)
    heads = []
    for head in (slice(0, 3), slice(3, 6)):
        scores = query[:, head] @ key[:, head].T / 3**0.5
        scores = scores.masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(dim=1) @ value[:, head])
    torch.testing.assert_close(attention(x)[0], attention.output(torch.cat(heads, dim=1)))


def test_lstm_is_the_recurrence_with_its_embedding_as_output():
    model = initialised(partial(LSTM, 5, width=3, layers=1), 0)
    tokens = torch.tensor([[1, 4, 2]])
    of_input, of_state, input_bias, state_bias = (p.detach() for p in model.layers.parameters())
    state = cell = torch.zeros(3)
    for at, token in enumerate(tokens[0]):
        gates = of_input @ model.embedding.weight[token] + input_bias + of_state @ state + state_bias
        enter, forget, new, show = gates.split(3)
        cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
        state = show.sigmoid() * cell.tanh()
        torch.testing.assert_close(model(tokens)[0, at], model.embedding.weight @ state + model.bias)


def test_lstm_starts_as_it_says():
    model = initialised(partial(LSTM, 64, width=32, layers=2), 0)
    assert not model.bias.any()
    for layer in range(2):
        assert not getattr(model.layers, f"bias_ih_l{layer}").any()
        gates = getattr(model.layers, f"bias_hh_l{layer}").view(4, 32)
        assert gates.any(1).tolist() == [False, True, False, False]
        assert (gates[1] == 1).all()
        assert getattr(model.layers, f"weight_hh_l{layer}").std().item() == pytest.approx(32**-0.5, rel=0.05)


def test_lstm_forgets_what_came_before_a_sequence():
    model = initialised(partial(LSTM, 20, width=8), 0)
    tokens = torch.arange(10).view(2, 5)
    torch.testing.assert_close(model(tokens)[1], model(tokens[1:])[0])


def test_gpt_knows_positions():
    model = initialised(partial(GPT, 20, context=8, width=16, depth=1, heads=2), 0)
    same = torch.zeros(1, 2, dtype=torch.int64)
    first, second = model(same)[0]
    assert not torch.allclose(first, second)


def test_initialisation_is_a_function_of_the_seed_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, again, other = (initialised(SmallCNN, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one[0].weight, other[0].weight)


def test_the_global_generator_is_restored_even_when_building_fails():
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="depth is 21"):
        initialised(partial(cifar_resnet, 21), 0)
    assert np.array_equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(SmallCNN, 30), r"SmallCNN pools to 4 x 4, so image_size must be a multiple of 4, not 30\."),
        (partial(SmallCNN, 0), "not 0"),
        (partial(cifar_resnet, 21), r"A CIFAR ResNet has 6 n \+ 2 layers, and depth is 21; use 8, 20, 32 or 110\."),
        (partial(cifar_resnet, 2), "depth is 2;"),
        (partial(GPT, width=30, heads=4), r"GPT splits its width between the heads, and 30 is not a multiple of 4\."),
    ],
)
def test_wrong_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_gpt_refuses_a_sequence_beyond_its_context():
    model = GPT(20, context=8, width=16, depth=1, heads=2)
    with pytest.raises(ValueError, match=r"GPT was built for 8 positions and got a sequence of 9\."):
        model(torch.zeros(1, 9, dtype=torch.int64))
