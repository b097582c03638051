"""zoo.generators.discriminators: what they cost, see and learn."""

import pytest
import torch
import torch.nn.functional as F

from common.errors import UserError
from zoo.generators import NORMS
from zoo.generators.discriminators import NAMES, build, check_size

# Parameters as published. Instance norm is published with the biases that it takes away again: 896 of them for "patch",
# 128 for "pixel".
PUBLISHED = [
    ("patch", 6, "batch", 2_768_705),
    ("patch", 3, "none", 2_764_737),
    ("patch", 3, "instance", 2_764_737 - 896),
    ("pixel", 6, "batch", 9_024),
]
FORMS = [(name, norm) for name in NAMES for norm in NORMS]


@pytest.mark.parametrize("name, in_channels, norm, params", PUBLISHED)
def test_they_cost_what_was_published(name, in_channels, norm, params):
    with torch.device("meta"):
        assert sum(p.numel() for p in build(name, in_channels, norm).parameters()) == params


@pytest.mark.parametrize("name, side, first, step", [("patch", 70, -11, 8), ("pixel", 1, 0, 1)])
def test_a_logit_sees_a_square(name, side, first, step):
    """By the gradient of one logit: that of (5, 7) sees `side` pixels from its row's and column's first one on."""
    torch.manual_seed(0)
    model = build(name, 2, "none", channels=4)  # a norm sees the whole picture
    x = torch.rand(1, 2, 160, 160, requires_grad=True)
    model(x)[0, 0, 5, 7].backward()
    rows, columns = x.grad[0].any(0).nonzero().T
    assert (rows.min().item(), rows.max().item() + 1) == (
        first + 5 * step - 12 * (side > 1),
        first + 5 * step - 12 * (side > 1) + side,
    )
    assert (columns.min().item(), columns.max().item() + 1) == (
        rows.min().item() + 2 * step,
        rows.max().item() + 1 + 2 * step,
    )


@pytest.mark.parametrize("name, norm", FORMS)
def test_logits_lie_on_a_map_and_are_undecided_at_first(name, norm):
    torch.manual_seed(0)
    model, size = build(name, 6, norm), (32, 48) if name == "pixel" else (2, 4)
    logits = model(torch.rand(2, 6, 32, 48) * 2 - 1)
    assert logits.shape == (2, 1, *size)
    assert logits.abs().mean() < 1.5


@pytest.mark.parametrize("name, norm", FORMS)
def test_they_learn_to_tell_two_sorts_of_pictures_and_every_parameter_takes_part(name, norm):
    torch.manual_seed(0)
    model = build(name, 3, norm, channels=8)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    bright, dark = torch.rand(2, 3, 32, 32), -torch.rand(2, 3, 32, 32)
    dark = dark * (torch.arange(32) % 4 < 2)  # striped: brightness alone does not pass instance norm
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, (0.5, 0.999))
    losses = []
    for _ in range(30):
        loss = F.softplus(-model(bright)).mean() + F.softplus(model(dark)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert [key for key, p in model.named_parameters() if torch.equal(p, before[key])] == []


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("patches", 6), "discriminator: 'patches', must be patch or pixel"),
        (("patch", 6, "layer"), "norm: 'layer', must be batch or instance or none"),
        (("patch", 0), "in_channels: 0, must be a whole number from 1"),
        (("pixel", 6, "none", 2.5), "channels: 2.5, must be a whole number from 1"),
    ],
)
def test_mistakes_are_told(arguments, words):
    with pytest.raises(UserError, match=words):
        build(*arguments)


def test_small_pictures_are_for_pixels():
    check_size("patch", 32)
    check_size("pixel", 1)
    with pytest.raises(UserError, match="input_size: 31, must be 32 or more for discriminator 'patch'; .*'pixel'"):
        check_size("patch", 31)
