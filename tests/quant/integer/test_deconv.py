"""quant.integer.transforms: transposed convolutions as ordinary ones, exactly; and on every engine."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import quant
from quant.integer.graph import Op
from quant.integer.transforms import deconv_as_conv, deconv_weight_as_conv, interleave_phases
from tests.strategies import examples

SIDE = st.tuples(
    st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.integers(1, 2), st.integers(0, 2)
)  # kernel stride pad dil. extra


@given(rows=SIDE, columns=SIDE, groups=st.sampled_from([1, 2]), seed=st.integers(0, 9))
@examples(150)
def test_the_convolution_of_phases_equals_torchs_transposed_one(rows, columns, groups, seed):
    kernel, stride, padding, dilation, extra = zip(rows, columns)
    assume(all(e < max(s, d) for e, s, d in zip(extra, stride, dilation)))  # torch's own condition
    assume(all((5 - 1) * s - 2 * p + d * (k - 1) + e + 1 > 0 for k, s, p, d, e in (rows, columns)))
    torch.manual_seed(seed)
    weight, x = torch.randint(-9, 10, (4, 3, *kernel)).double(), torch.randint(-9, 10, (2, 4, 5, 5)).double()
    bias = torch.randint(-9, 10, (3 * groups,)).double()
    expected = F.conv_transpose2d(x, weight, bias, stride, padding, extra, groups, dilation)
    attrs = {"stride": stride, "padding": padding, "output_padding": extra, "dilation": dilation, "groups": groups}
    conv, steps, keep = deconv_as_conv(
        Op("y", "deconv", ("x",), None, deconv_weight_as_conv(weight, groups), torch.ones(3 * groups), bias, attrs)
    )
    assert torch.equal(interleave_phases(F.conv2d(x, conv.weight, conv.bias, **conv.attrs), steps, keep), expected)


def test_the_usual_upsampling_layer_wastes_no_rows():
    """Kernel 4, stride 2, padding 1: four 2x2 convolutions, of which one row on either side is cropped."""
    attrs = {"stride": (2, 2), "padding": (1, 1), "output_padding": (0, 0), "dilation": (1, 1), "groups": 1}
    conv, _, keep = deconv_as_conv(
        Op("y", "deconv", ("x",), None, torch.ones(3, 5, 4, 4), torch.ones(3), torch.ones(3), attrs)
    )
    assert conv.weight.shape == (12, 5, 2, 2)
    assert keep == (slice(1, -1), slice(1, -1))


class Decoder(nn.Module):
    def __init__(self, kernel, stride, padding, groups=1):
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 12, kernel, stride, padding, groups=groups, bias=False)
        self.bn, self.relu = nn.BatchNorm2d(12), nn.ReLU()
        self.last = nn.ConvTranspose2d(12, 3, 2, 2)

    def forward(self, x):
        return self.last(self.relu(self.bn(self.up(self.encode(x)))))


@pytest.mark.parametrize("engine", ["reference", *quant.available()])
@pytest.mark.parametrize("shape", [(4, 2, 1), (3, 2, 1), (2, 2, 0), (5, 1, 2), (4, 2, 1, 4)])
def test_decoders_run_as_integers_on_every_engine(engine, shape):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16)
    model = Decoder(*shape)
    with torch.no_grad():
        model.bn.weight.copy_(torch.linspace(-1, 1, 12))  # folding must reach every phase of a channel, of either sign
    graph = quant.attach(model, x, quant.QuantConfig(engine=engine)).train()
    with torch.no_grad():
        for _ in range(3):
            graph(x)
    executor = quant.convert(graph, engine)
    assert executor.float_ops == []
    assert quant.parity(graph, executor, x).check(1).output_steps <= 3
