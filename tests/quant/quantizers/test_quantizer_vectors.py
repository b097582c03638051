"""Known answers of the quantizers, computed independently in float64: values, gradients, and where the published
operators differ.

tests/fixtures/quantizer_vectors.json holds them by name; gradient and 8-bit-training vectors are checked in
test_gradients.py, test_range_bn.py and test_train_8bit.py.
"""

import json

import pytest
import torch
from torch import Tensor, nn

from quant.quantizers.dorefa import DorefaActivation, DorefaWeight
from quant.quantizers.fake_quant import fake_quantize
from quant.quantizers.fqn import FqnWeight
from quant.quantizers.gdrq import GdrqActivation, GdrqWeight
from quant.quantizers.grid import affine_qparams
from quant.quantizers.int8 import Int8Activation, Int8Weight
from quant.quantizers.pact import PactActivation, learned_clip
from quant.quantizers.qil import QilActivation, QilWeight, activation_interval, signed_interval, weight_interval
from tests import ROOT

VECTORS = json.loads((ROOT / "tests" / "fixtures" / "quantizer_vectors.json").read_text())
DOUBLE = torch.float64


def vector(name: str) -> dict:
    return {k: torch.tensor(v, dtype=DOUBLE) if isinstance(v, list) else v for k, v in VECTORS[name].items()}


def close(got, expected, rel: float = 1e-6) -> None:
    torch.testing.assert_close(
        torch.as_tensor(got, dtype=DOUBLE), torch.as_tensor(expected, dtype=DOUBLE), rtol=rel, atol=rel
    )


def run(function, x: Tensor, grad=None) -> tuple[Tensor, Tensor]:
    """The value at x and the gradient with respect to it, for the upstream gradient `grad` (ones by default)."""
    x = x.clone().requires_grad_()
    y = function(x)
    y.backward(torch.ones_like(y) if grad is None else grad)
    return y.detach(), x.grad


def one_by_channels(w: Tensor) -> Tensor:
    return w.view(1, -1)


# int8


@pytest.mark.parametrize(
    ("name", "bits"), [("int8_w_pertensor seed L=2^b-1", 3), ("int8_w_pertensor std L=2^(b-1)-1", 2)]
)
def test_int8_weights(name, bits):
    """The MXNet operators count the bits of the magnitude: their 2 bits are 3 with the sign."""
    v = vector(name)
    quantizer = Int8Weight(bits)
    y, dw = run(quantizer, one_by_channels(v["w"]))
    close(y[0], v["out"])
    close(quantizer.scale(one_by_channels(v["w"])).item(), v["step"])
    close(quantizer.codes(one_by_channels(v["w"]))[0], v["codes"])
    assert dw.eq(1.0).all()


def test_int8_weights_by_channel():
    v = vector("int8_w_perchannel L=3 (eps 1e-6)")
    close(Int8Weight(3)(v["w"]), v["out"], rel=3e-6)  # the operator adds 1e-6 to each maximum


def test_int8_bias_correction():
    v = vector("int8_w bias_correct (python only)")
    w = vector("int8_w_perchannel L=3 (eps 1e-6)")["w"]
    y = Int8Weight(3, bias_correct=True)(w)
    close(y, v["out"], rel=1e-5)
    close(y.mean(1), v["mean_in"])


def test_rounding_is_half_to_even():
    v = vector("rounding ties (step 1)")
    close(torch.round(v["x"]), v["half_even"])


def test_int8_symmetric_activations_follow_the_largest_value():
    quantizer = Int8Activation(4, scheme="symmetric", momentum=0.01)
    seen = []
    for largest in (4.0, 6.0, 2.0):
        quantizer(torch.tensor([-largest, largest / 2]))
        seen.append(quantizer.hi.item())
    close(seen, vector("int8_act EMA decay .99, batch max|x| 4,6,2 (python variant & cxx fresh start)")["T"])


@pytest.mark.parametrize(("grad", "expected"), [("ste", "grad_ste"), ("clip", "grad_clip_le")])
def test_int8_symmetric_activations(grad, expected):
    v = vector("int8_act T=4 L=15")
    quantizer = Int8Activation(5, scheme="symmetric", grad=grad)
    quantizer(torch.tensor([4.0]))
    y, dx = run(quantizer.eval(), v["x"])
    close(y, v["out"])
    close(dx, v[expected])


@pytest.mark.parametrize(
    ("name", "lo", "hi"),
    [
        ("jacob b=2 min=-1 max=2", -1.0, 2.0),
        ("jacob b=2 min=-1 max=2.1 (nudge)", -1.0, 2.1),
        ("jacob b=2 min=.5 max=2 (range widened to 0)", 0.5, 2.0),
    ],
)
def test_affine_activations(name, lo, hi):
    v = vector(name)
    x = v.get("x", torch.tensor(VECTORS["jacob b=2 min=-1 max=2"]["x"], dtype=DOUBLE))
    quantizer = Int8Activation(2)
    quantizer(torch.tensor([lo, hi]))
    y, dx = run(quantizer.eval(), x)
    grid = quantizer.qparams()
    close(grid.scale, v["S"])
    assert grid.zero_point == v["Z"]
    close([grid.lowest, grid.highest], v["nudged"])
    close(y, v["out"])
    if "grad" in v:
        close(dx, v["grad"])
        close(grid.quantize(x).double(), v["codes"])


# fqn


def test_fqn_without_zero_point():
    v = vector("fqn seed b=2 per-tensor")
    y, dw = run(FqnWeight(2, granularity="tensor", zero_point=False), v["x"])
    close(y, v["out"])
    close(y[2], v["zero_maps_to"])
    assert dw.eq(1.0).all()
    channels = vector("fqn seed per-channel b=2")
    # the operator adds 1e-6 to each maximum
    close(FqnWeight(2, zero_point=False)(channels["x"]), channels["out"], rel=3e-6)


def test_fqn_as_the_paper_has_it():
    v = vector("fqn paper-style (zero point) same data")
    quantizer = FqnWeight(2, granularity="tensor")
    x = vector("fqn seed b=2 per-tensor")["x"]
    y, dw = run(quantizer, x)
    close(y, v["out"])
    close(dw, v["grad"])
    close(quantizer.scale(x).item(), v["S"])
    assert affine_qparams(-0.7, 0.8, 3).zero_point == v["Z"]


# pact


def pact(x: Tensor, grad: Tensor, **options) -> tuple[Tensor, Tensor, float]:
    alpha = nn.Parameter(torch.tensor(2.0, dtype=DOUBLE))
    y, dx = run(lambda x: learned_clip(x, alpha, 3, **options), x, grad)
    return y, dx, alpha.grad.item()


def test_pact():
    v = vector("pact paper b=2 alpha=2")
    y, dx, dalpha = pact(v["x"], v["grad_out"])
    close(y, v["out"])
    close(dx, v["dx"])
    close(dalpha, v["dalpha"])
    *_, dalpha = pact(v["x"], v["grad_out"], alpha_grad="lsq")
    close(dalpha, v["dalpha_with_naive_autograd"])


def test_pact_on_signed_values():
    v = vector("pact seed V2 (signed) alpha=2")
    y, dx, dalpha = pact(v["x"], v["grad_out"], signed=True)
    close(y, v["out"])
    close(dx, v["dx"])
    close(dalpha, v["dgamma"])


@pytest.mark.parametrize("name", ["pact seed cxx (symmetric clip)", "pact seed PY v1 (no lower clip)"])
def test_published_pact_operators_keep_the_negative_values_that_a_relu_would_have_removed(name):
    v, paper = vector(name), vector("pact paper b=2 alpha=2")
    y, dx, _ = pact(paper["x"], paper["grad_out"], signed=True)
    close(y, v["out"])  # the same values as our signed form
    inside = paper["x"] < 2.0
    close(dx[inside], v["dx"][inside])  # and gradients, except that the C++ operator passes one at alpha itself
    *_, dalpha = pact(paper["x"], paper["grad_out"])
    assert dalpha - v["dgamma"] in (0.0, paper["grad_out"][5].item())


def test_pact_pulls_alpha_down_once():
    v = vector("pact L2")
    quantizer = PactActivation(2, alpha=v["alpha"], l2=v["lam"])
    loss = quantizer.extra_loss()
    loss.backward()
    close(loss.item(), v["penalty_sum_form"])
    close(quantizer.alpha.grad.item(), v["grad_sum_form"])


# dorefa


@pytest.mark.parametrize("mode", ["through_max", "max_detached"])
def test_dorefa_weights(mode):
    v, g = vector("dorefa w b=2"), vector("dorefa w grad2")
    y, dw = run(DorefaWeight(2, weight_grad=mode), v["w"])
    close(y, v["out"])
    close(dw, v[f"grad_{mode}"])
    _, dw = run(DorefaWeight(2, weight_grad=mode), v["w"], g["grad_out"])
    close(dw, g[f"grad_{mode}"])


def test_dorefa_identity_gradient():
    v = vector("dorefa w b=2")
    y, dw = run(DorefaWeight(2, weight_grad="identity"), v["w"])
    close(y, v["out"])
    close(dw, v["grad_plain_ste"])


@pytest.mark.parametrize(
    "name",
    ["dorefa cxx backward when extreme is negative (bug)", "dorefa cxx backward, flipped sign w (extreme positive)"],
)
def test_dorefa_is_right_whatever_the_sign_of_the_extreme_weight(name):
    v = vector(name)
    sign = -1.0 if "flipped" in name else 1.0
    w, g = vector("dorefa w b=2")["w"] * sign, vector("dorefa w grad2")["grad_out"]
    _, dw = run(DorefaWeight(2, weight_grad="through_max"), w, g * sign)
    close(dw * sign, v["correct"])


def test_dorefa_one_bit():
    v = vector("dorefa w b=1")
    quantizer = DorefaWeight(1)
    y, dw = run(quantizer, v["w"])
    close(y, v["out"])
    close(quantizer.scale(v["w"]).item(), v["E"])
    assert dw.eq(1.0).all()


def test_dorefa_activations():
    v = vector("dorefa act b=2")
    y, dx = run(DorefaActivation(2, signed=False), v["x"])
    close(y, v["out"])
    close(dx, v["dx"])


# qil


def interval(function, x: Tensor, gamma: float | None, q: int) -> tuple[Tensor, ...]:
    own = [nn.Parameter(torch.tensor(value, dtype=DOUBLE)) for value in (0.5, 0.3, *([] if gamma is None else [gamma]))]
    y, dx = run(lambda x: function(x, *own, q), x)
    return y, dx, *(p.grad.item() for p in own)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_qil_weights(gamma):
    v = vector("qil w c=.5 d=.3 gamma=1 q=3" if gamma == 1.0 else "qil w gamma=2 q=3")
    x = vector("qil w c=.5 d=.3 gamma=1 q=3")["x"]
    y, dx, dc, dd, dgamma = interval(weight_interval, x, gamma, 3)
    for got, name in ((y, "out"), (dx, "dx"), (dc, "dc"), (dd, "dd")):
        close(got, v[name])
    if "dgamma" in v:
        close(dgamma, v["dgamma"])
    else:
        quick = interval(signed_interval, x, None, 3)
        for got, expected in zip(quick, (y, dx, dc, dd), strict=True):
            close(got, expected)
    fine, *_ = interval(weight_interval, x, gamma, 10**9)
    close(fine, v["transformed"])


def test_qil_two_bits_are_ternary():
    x = vector("qil w c=.5 d=.3 gamma=1 q=3")["x"]
    y, *_ = interval(weight_interval, x, 1.0, QilWeight(2).levels()[1])
    close(y, vector("qil w same, paper q=2^(2-1)-1=1")["out"])


def test_qil_activations():
    v = vector("qil act q=3")
    y, dx, dc, dd = interval(activation_interval, v["x"], None, QilActivation(2, signed=False).levels()[1])
    for got, name in ((y, "out"), (dx, "dx"), (dc, "dc"), (dd, "dd")):
        close(got, v[name])
    fine, *_ = interval(activation_interval, v["x"], None, 10**9)
    close(fine, v["transformed"])


def test_qil_prunes_below_and_clips_above_its_thresholds():
    v = vector("qil thresholds c=.5 d=.3 q=3")
    x = torch.linspace(0, 1, 100_001, dtype=DOUBLE)
    y, *_ = interval(weight_interval, x, 1.0, 3)
    assert x[y > 0].min().item() == pytest.approx(v["prune"], abs=2e-5)
    assert x[y == 1].min().item() == pytest.approx(v["clip"], abs=2e-5)


def test_qil_starts_where_small_weights_are_small():
    v = vector("qil seed cxx init c=0 d=max: transform of tiny values")
    quantizer = QilWeight(8)
    quantizer.init_from(v["x"])
    ours = quantizer(v["x"]).detach()
    assert abs(v["transformed"][3]) > 0.5  # the published start maps 0.01 to 0.505
    close(ours, v["x"], rel=1.0 / 127)


# gdrq


def test_gdrq_weights():
    v = vector("gdrq w k=2 L=3")
    quantizer = GdrqWeight(3, k=2.0)
    y, dw = run(quantizer, v["w"])
    close(y, v["out"])
    close(dw, v["dw_ste"])
    close(quantizer.scale(v["w"]).item() * 3, v["T"])
    _, dw = run(GdrqWeight(3, k=2.0, grad="clip"), v["w"])
    close(dw, v["dw_clip"])
    close(GdrqWeight(3, k=2.0, reshape=10)(v["w"]), v["clip_only"])


def test_gdrq_groups():
    v = vector("gdrq group_size=2 (4 filters) k=2")
    w = torch.tensor([[1, -1], [3, -1], [0.1, 0.3], [0.25, -0.15]], dtype=DOUBLE)
    quantizer = GdrqWeight(3, k=2.0, group_size=2)
    close(quantizer(w), v["out"])
    close(quantizer.scale(w).flatten()[::2] * 3, v["T"])


def test_gdrq_activations_move_towards_their_batches():
    v = vector("gdrq act alpha0=1 T=.5 lambda=.1")
    quantizer = GdrqActivation(4, k=2.0, momentum=0.1)
    quantizer(torch.tensor([[-0.5, 0.5]]))
    assert quantizer.largest.item() == pytest.approx(1.0)
    seen = []
    for _ in range(5):
        quantizer(torch.tensor([[-0.25, 0.25]]))
        seen.append(quantizer.largest.item())
    close(seen, v["corrected_sign"])
    # the published sign runs away
    assert all(later > earlier for earlier, later in zip(v["seed_sign"], v["seed_sign"][1:]))


def test_gdrq_masks_both_ends():
    v = vector("gdrq cxx clip backward (paren bug)")
    _, dx = run(lambda x: fake_quantize(x, -1.0, 1.0, 0.5), v["x"])
    close(dx, v["correct"])
    assert v["seed"][0] != v["correct"][0]
