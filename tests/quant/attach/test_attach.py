"""quant.attach: where quantizers go, and that attaching changes nothing else."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

import quant
from frostnet import frostnet
from quant.quantizers import ActivationQuantizer, WeightQuantizer

NETWORKS = {
    "frostnet_small": lambda: frostnet("small", 0.35, num_classes=10, input_size=32),
    "resnet18": lambda: models.resnet18(num_classes=10),
    "mobilenet_v2": lambda: models.mobilenet_v2(num_classes=10, width_mult=0.35),
    "mobilenet_v3_small": lambda: models.mobilenet_v3_small(num_classes=10, width_mult=0.5),
    "shufflenet_v2_x1_0": lambda: models.shufflenet_v2_x1_0(num_classes=10),
}


def activation_names(graph):
    return [name for name, q in quant.quantizers_of(graph).items() if isinstance(q, ActivationQuantizer)]


class Toy(nn.Module):
    """Every shape of group: conv-bn-relu, conv-bn, a shared ReLU, relu6, addition with ReLU, pooling, linear."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x))
        y += x
        y = F.relu(y, inplace=True)
        z = F.relu6(self.conv3(F.max_pool2d(y, 2)))
        z = F.dropout(z, 0.1, training=self.training)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(z, 1), 1))


def test_groups_get_one_quantizer_at_their_end():
    graph = quant.attach(Toy(), torch.randn(2, 3, 8, 8))
    assert activation_names(graph) == [
        "x_quant",
        "relu_quant",
        "bn2_quant",
        "relu_1_quant",
        "relu6_quant",
        "adaptive_avg_pool2d_quant",
        "fc_quant",
    ]
    by_name = quant.quantizers_of(graph)
    assert (by_name["relu_quant"].floor, by_name["relu6_quant"].ceiling) == (0.0, 6.0)
    assert by_name["bn2_quant"].floor == float("-inf")
    targets = [str(node.target) for node in graph.graph.nodes]
    assert not any("relu" in t and "quant" not in t for t in targets), "a group's ReLU moves into its quantizer's clamp"


def test_functional_dropout_follows_train_and_eval():
    graph = quant.attach(Toy().eval(), torch.randn(2, 3, 8, 8))
    assert any(isinstance(m, nn.Dropout) and m.p == 0.1 for m in graph.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_with_quantizers_off_the_graph_computes_what_the_model_computes(name):
    torch.manual_seed(0)
    model, x = NETWORKS[name](), torch.randn(2, 3, 64, 64)
    model.train()(x)  # statistics unlike their initial values
    graph = quant.attach(model, x)
    quant.set_mode(graph, observe=False, fake_quant=False)
    assert torch.equal(graph.eval()(x), model.eval()(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_stay_the_same_objects_under_the_same_names(name):
    model = NETWORKS[name]()
    before = dict(model.named_parameters())
    after = dict(quant.attach(model, torch.randn(1, 3, 64, 64)).named_parameters())
    assert before.keys() == after.keys()
    assert all(after[k] is v for k, v in before.items())


def test_the_model_itself_stays_as_it_was():
    model, x = Toy().eval(), torch.randn(2, 3, 8, 8)
    expected, keys = model(x), list(model.state_dict())
    quant.attach(model, x).train()(x)
    assert type(model.conv1) is nn.Conv2d
    assert list(model.state_dict()) == keys
    assert not torch.equal(expected, torch.zeros_like(expected))


def test_optimizer_state_survives_attach():
    model, x = Toy(), torch.randn(4, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(x).square().mean().backward()
    optimizer.step()
    momenta = {id(p): s["momentum_buffer"].clone() for p, s in optimizer.state.items()}
    graph = quant.attach(model, x)
    assert all(torch.equal(optimizer.state[p]["momentum_buffer"], momenta[id(p)]) for p in graph.parameters())
    before = [p.detach().clone() for p in graph.parameters()]
    graph(x).square().mean().backward()
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters())), (
        "the step moved the model's own weights"
    )


def test_gradients_reach_every_parameter():
    model, x = Toy(), torch.randn(4, 3, 8, 8)
    graph = quant.attach(model, x)
    graph(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in graph.parameters())
    assert model.conv1.weight.grad.abs().sum() > 0


def test_a_block_inside_a_network_takes_its_input_as_it_is():
    graph = quant.attach(Toy(), torch.randn(1, 3, 8, 8), quant.QuantConfig(quantize_input=False))
    assert "x_quant" not in activation_names(graph)


def test_part_and_whole_name_their_quantizers_alike():
    net = frostnet("small", 0.5, num_classes=10, input_size=32)
    whole = set(quant.quantizers_of(quant.attach(net, torch.randn(1, 3, 32, 32))))
    block = net.blocks[4]
    x = torch.randn(1, net.arch.blocks[4].in_channels, 8, 8)
    part = quant.quantizers_of(quant.attach(block, x, quant.QuantConfig(quantize_input=False)))
    assert {f"blocks.4.{name}" for name in part} == {name for name in whole if name.startswith("blocks.4.")}


def test_state_round_trips_bit_for_bit():
    model, x = Toy(), torch.randn(4, 3, 8, 8)
    graph = quant.attach(model, x)
    graph(x)
    other = quant.attach(Toy(), x)
    other.load_state_dict(graph.state_dict())
    assert torch.equal(graph.eval()(x), other.eval()(x))


def test_frozen_batch_norm_keeps_its_statistics():
    graph = quant.attach(Toy(), torch.randn(4, 3, 8, 8)).train()
    quant.freeze_bn(graph)
    before = graph.bn1.running_mean.clone()
    graph(5 + torch.randn(4, 3, 8, 8))
    assert torch.equal(graph.bn1.running_mean, before)


def test_what_cannot_be_traced_is_refused_in_words():
    class Branchy(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(quant.QuantError, match="Branchy cannot be traced"):
        quant.attach(Branchy(), torch.randn(1, 3))


@pytest.mark.parametrize("field", ["weight", "activation", "engine"])
def test_unknown_settings_are_refused_with_the_known_ones(field):
    with pytest.raises(quant.QuantError, match=f"{field}: 'x.*(int8|fbgemm)"):
        quant.attach(Toy(), torch.randn(1, 3, 8, 8), quant.QuantConfig(**{field: "x"}))


def test_training_imports_no_torch_ao():
    code = (
        "import sys, torch; before = set(sys.modules); import quant; from torch import nn;"
        "m = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()); g = quant.attach(m, torch.randn(1, 3, "
        "8, 8));"
        "g(torch.randn(2, 3, 8, 8)).sum().backward();"
        "print([m for m in set(sys.modules) - before if m.startswith('torch.ao')])"
    )
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_layers_with_hooks_are_refused_and_layers_without_integer_form_are_named():
    hooked = nn.Sequential(nn.Conv2d(3, 4, 1))
    hooked[0].register_forward_pre_hook(lambda module, inputs: None)
    with pytest.raises(quant.QuantError, match="hooks"):
        quant.attach(hooked, torch.randn(1, 3, 4, 4))
    with pytest.warns(UserWarning, match="0: Conv1d .* stays float"):
        quant.attach(nn.Sequential(nn.Conv1d(3, 4, 2)), torch.randn(1, 3, 8))


def test_examples_that_the_model_cannot_take_are_named():
    with pytest.raises(quant.QuantError, match=r"example_inputs: .*\(1, 5, 8, 8\)"):
        quant.attach(Toy(), torch.randn(1, 5, 8, 8))


def test_batch_norms_that_were_frozen_stay_so():
    model = Toy()
    model.bn1.eval()
    quant.attach(model, torch.randn(1, 3, 8, 8))
    assert not model.bn1.training and model.bn2.training


def test_a_layer_under_two_names_keeps_one_quantizer():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 3, 1)
            self.b = self.a

        def forward(self, x):
            return self.b(self.a(x))

    graph = quant.attach(Twice(), torch.randn(1, 3, 4, 4))
    assert sum(isinstance(q, WeightQuantizer) for q in quant.quantizers_of(graph).values()) == 1


class Forks(nn.Module):
    """Everything that a group's end can meet: a ReLU before a batch norm, a fork, a name like a quantizer's."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.a_quant = nn.Conv2d(8, 8, 1)
        self.bn = nn.BatchNorm2d(8)
        self.b, self.c = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = self.a_quant(self.a(x))
        return self.b(torch.relu(x)) + self.c(x)


def test_a_layer_named_like_a_quantizer_is_kept():
    model, x = Forks(), torch.randn(2, 3, 8, 8)
    graph = quant.attach(model, x)
    quant.set_mode(graph, observe=False, fake_quant=False)
    torch.testing.assert_close(graph(x), model(x))


@pytest.mark.parametrize("spec", ["pact:4", "int8"])
def test_readers_of_one_float_group_get_their_own_integers(spec):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    config = quant.QuantConfig(activation=spec, overrides=(quant.Override("a_quant", output="float"),))
    graph = quant.attach(Forks(), x, config).train()
    graph(x)
    quant.parity(graph, quant.convert(graph, "reference"), x).check(max_layer_steps=1)


def test_a_batch_norm_behind_a_relu_is_not_folded_into_the_layer_before():
    class Odd(nn.Sequential):
        pass

    x = torch.randn(4, 3, 8, 8)
    model = Odd(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    graph = quant.attach(model, x, quant.QuantConfig(overrides=(quant.Override("1", output="float"),))).train()
    graph(x)
    with pytest.raises(quant.QuantError, match="no quantizer on its output"):
        quant.convert(graph, "reference")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ignore": ("conv_1",)}, "'conv_1' matches no layer or node; there are conv1"),
        ({"overrides": (quant.Override("x9", "int8"),)}, "'x9' matches"),
        ({"share": (("nothing",),)}, "'nothing' matches"),
        ({"share": (("conv1", "conv2"), ("conv2",))}, "in two groups"),
        ({"ignore": "conv1"}, "write a tuple"),
        ({"op_types": ()}, "at least one"),
        ({"residual": "qil:4"}, "only layers may read them"),
        ({"weight": "gdrq:4,group_size=3"}, "conv1: group_size: 3 does not divide"),
    ],
)
def test_settings_that_cannot_be_meant_are_named(settings, message):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            return self.conv2(self.conv1(x)) + 1.0

    with pytest.raises(quant.QuantError, match=message):
        quant.attach(Two(), torch.randn(1, 3, 8, 8), quant.QuantConfig(**settings))


def test_a_layer_that_is_called_twice_is_treated_alike_each_time():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(self.conv(x))

    with pytest.raises(quant.QuantError, match="conv: is called several times"):
        quant.attach(Twice(), torch.randn(1, 3, 4, 4), quant.QuantConfig(skip_last={"conv": 1}))


def test_gradients_are_quantized_where_asked_and_the_plan_says_so():
    config = quant.QuantConfig(gradient="dorefa:4", overrides=(quant.Override("a", gradient="float"),))
    graph = quant.attach(Forks(), torch.randn(1, 3, 8, 8), config)
    rows = {row.name: row.gradient for row in graph.plan_rows}
    assert rows["b"] == "dorefa:4" and rows["a"] == "float"
    assert type(graph.a.gradient_quant) is nn.Identity and type(graph.b.gradient_quant) is not nn.Identity
