"""Methods by name, mixed in one network: trained, run as integers, lowered in bits, on two ranks."""

import math
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import quant
from common import distributed
from quant.errors import QuantError
from quant.quantizers import activation_quantizer, parse_spec, weight_quantizer
from tests.quant.quantizers.methods import ACTIVATIONS, WEIGHTS


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pact:4,alpha=-1", "alpha"),
        ("lsq:9", "2 to 8"),
        ("int8:1", "2 to 8"),
        ("pact:4,beta=1", "no option 'beta'"),
        ("lsq:x", "'x' is no number"),
        ("int8:²", "no number"),
        ("lsq:4,granularity", "name=value"),
        ("", "no quantizer"),
        ("int8:4,scheme=round", "'round' is not one of"),
        ("gdrq:3,k=x", "k is 'x', must be of type float"),
        ("gdrq:3,k=nan", "finite"),
        ("int8:4,bias_correct=1", "must be of type bool"),
        ("gdrq:3,group_size=2.5", "must be of type int"),
        ("gdrq:3,k=-1", "k: -1, must be at least 0"),
        ("qil:3,reach=-1", "reach"),
    ],
)
def test_bad_specs_are_named(spec, message):
    with pytest.raises(QuantError, match=message):
        (
            weight_quantizer
            if not spec.startswith("pact")
            else lambda s, *_: activation_quantizer(s, 0.0, math.inf, False)
        )(spec, 127, 0)


def test_a_method_for_activations_alone_is_refused_for_weights():
    with pytest.raises(QuantError, match="'pact' does not quantize weights; choose from int8"):
        quant.QuantConfig(weight="pact:4")


def test_specs_round_trip():
    for spec in WEIGHTS + ACTIVATIONS:
        assert parse_spec(str(parse_spec(spec))) == parse_spec(spec)


def test_older_files_may_still_say_levels():
    assert parse_spec("gdrq:3,levels=signed,k=2") == parse_spec("gdrq:3,k=2")
    assert parse_spec("int8:8,scheme=symmetric,levels=unsigned") == parse_spec("int8:8,scheme=symmetric,unsigned=True")
    with pytest.raises(QuantError, match="int8:4,levels=seed.* is gone; 'int8:5' has the same levels"):
        parse_spec("int8:4,levels=seed")
    with pytest.raises(QuantError, match="levels=seed is gone; 8 bits are the most"):
        parse_spec("int8,levels=seed")
    for method in ("pact", "qil", "gdrq"):
        with pytest.raises(QuantError, match=f"'{method}:4,levels=unsigned': only int8 has the option levels=unsigned"):
            parse_spec(f"{method}:4,levels=unsigned")
    with pytest.raises(QuantError, match="lsq has no option 'levels'"):
        weight_quantizer("lsq:4,levels=signed", 127, 0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + x)
        return self.fc(x.mean((2, 3)))


EDGES = (quant.Override("conv1", "int8:8", "int8:8"), quant.Override("fc", "int8:8", "int8:8"))
MIXES = [
    ("int8:4", "int8:4"),
    ("dorefa:3", "pact:4"),
    ("gdrq:2", "pact:2"),
    ("lsq:3", "lsq:3"),
    ("qil:3", "qil:3"),
    ("fqn:4", "fqn:4"),
    ("dorefa:1", "dorefa:2"),
    ("int8:3,scheme=affine", "int8:4,scheme=symmetric"),
    ("int8:8", "gdrq:8"),
]


@pytest.mark.parametrize(("weight", "activation"), MIXES)
def test_mixes_train_and_run_as_integers(weight, activation):
    torch.manual_seed(0)
    x, target = torch.randn(16, 3, 8, 8), torch.randint(5, (16,))
    graph = quant.attach(Net(), x, quant.QuantConfig(weight=weight, activation=activation, overrides=EDGES)).train()
    own = quant.quantizer_parameters(graph)
    optimizer = torch.optim.SGD(
        [{"params": [p for n, p in graph.named_parameters() if "quant" not in n]}, *own], lr=0.05, momentum=0.9
    )
    losses = []
    for _ in range(25):
        loss = nn.functional.cross_entropy(graph(x), target) + quant.extra_loss(graph)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    for engine in ("reference", "fbgemm") if "fbgemm" in quant.available() else ("reference",):
        quant.parity(graph, quant.convert(graph, engine), x).check(max_layer_steps=1)


def test_first_and_last_layer_can_stay_float():
    x = torch.randn(4, 3, 8, 8)
    graph = quant.attach(
        Net(), x, quant.QuantConfig(weight="dorefa:3", activation="pact:4", ignore=("conv1", "fc"))
    ).train()
    graph(x)
    assert type(graph.conv1) is nn.Conv2d and type(graph.fc) is nn.Linear
    report = quant.parity(graph, quant.convert(graph, "reference"), x)
    assert report.check().layer_steps <= 1


def test_set_bits_moves_what_follows_the_configuration():
    graph = quant.attach(
        Net(), torch.randn(2, 3, 8, 8), quant.QuantConfig(weight="lsq:5", activation="lsq:5", overrides=EDGES)
    )
    quant.set_bits(graph, 2)
    widths = {name: q.bits for name, q in quant.quantizers_of(graph).items()}
    assert widths["conv2.weight_quant"] == 2 and widths["conv1.weight_quant"] == widths["fc.weight_quant"] == 8
    assert sum(bits == 2 for bits in widths.values()) == 2  # conv2's weight, and what it reads


def test_an_override_stays_although_it_says_what_the_default_says():
    fixed = (quant.Override("fc", "lsq:5", "lsq:5"),)
    graph = quant.attach(
        Net(), torch.randn(2, 3, 8, 8), quant.QuantConfig(weight="lsq:5", activation="lsq:5", overrides=fixed)
    )
    quant.set_bits(graph, 2)
    assert graph.fc.weight_quant.bits == 5 and graph.conv2.weight_quant.bits == 2
    with pytest.raises(QuantError, match="takes 2 to 8"):
        quant.set_bits(graph, 1)
    assert graph.conv2.weight_quant.bits == 2


def test_learned_ranges_come_as_parameter_groups():
    x = torch.randn(2, 3, 8, 8)
    assert quant.quantizer_parameters(quant.attach(Net(), x)) == []
    graph = quant.attach(Net(), x, quant.QuantConfig(weight="qil:4", activation="pact:4", overrides=EDGES))
    groups = {group["lr_scale"]: group for group in quant.quantizer_parameters(graph)}
    assert {scale: len(group["params"]) for scale, group in groups.items()} == {0.01: 2, 1.0: 1}
    assert all(group["weight_decay"] == 0.0 and group["boost"] is False for group in groups.values())


def _train_on_a_rank(rank: int, port_file: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=2)
    states = {}
    for spec in ACTIVATIONS:
        if "group" in spec:
            continue
        torch.manual_seed(rank)  # unlike pictures
        residual = "int8" if spec.startswith("qil") else spec
        graph = quant.attach(
            Net(), torch.randn(2, 3, 8, 8), quant.QuantConfig(activation=spec, residual=residual)
        ).train()
        optimizer = torch.optim.SGD([p for p in graph.parameters() if p.requires_grad], lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            (graph((1 + rank) * torch.randn(4, 3, 8, 8)).square().sum() + quant.extra_loss(graph)).backward()
            distributed.average([graph])
            optimizer.step()
        states[spec] = {n: p.detach().clone() for n, q in quant.quantizers_of(graph).items() for n, p in _own(n, q)}
    torch.save(states, f"{results}/{rank}.pt")
    dist.destroy_process_group()


def _own(name, quantizer):
    return [(f"{name}.{n}", t) for n, t in (*quantizer.named_parameters(), *quantizer.named_buffers())]


def test_two_ranks_have_the_same_ranges():
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_train_on_a_rank, (f"{folder}/store", folder), nprocs=2, start_method="spawn")
        first, second = (torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in (0, 1))
    assert any(state for state in first.values())
    for spec, state in first.items():
        for name, value in state.items():
            torch.testing.assert_close(value, second[spec][name], rtol=0, atol=0, msg=f"{spec}: {name}")
