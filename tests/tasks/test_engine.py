"""The training loop: a stop leaves no trace, phases set the right switches, float training is plain torch."""

import errno
import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import common.files
from common.errors import UserError
from common.runs import Run
from quant import QuantConfig, Schedule
from quant.quantizers import Quantizer
from tasks import Classification, Recipe, Stream, fit, lr_factor
from tasks.engine import OPTIMIZERS, make_optimizer
from tasks.pictures import Memory

# qat, qat, freeze_observers, freeze_bn
RECIPE = Recipe(Schedule(epochs=6, float_epochs=2, observer_freeze=0.5, bn_freeze=0.75), lr=0.1)
STEPS, EPOCHS = 4, 6  # steps of an epoch


def tiny_model() -> nn.Module:
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    depthwise = [nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*first, *depthwise, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(8, 3))


def pictures(count: int, seed: int = 0) -> Memory:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=draw)
    labels = torch.arange(count) % 3
    images[:, 0] //= 1 + labels.view(-1, 1, 1).to(torch.uint8)  # something to learn
    return Memory(images, labels, 8, torch.full((3,), 0.45), torch.full((3,), 0.25))


class Stopped(Exception):
    pass


class Watched(Classification):
    """Classification that notes each step's model switches, and can stop or break at a step."""

    seen: list = []
    stop_at: int | None = None
    nan_at: int | None = None

    def train_step(self, model, batch):
        step = len(self.seen)
        if step == self.stop_at:
            raise Stopped
        bn = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        quantizer = next((m for m in model.modules() if hasattr(m, "observer_enabled")), None)
        self.seen.append(
            (
                quantizer is not None and quantizer.fake_quant_enabled,
                quantizer is not None and quantizer.observer_enabled,
                bn.training,
            )
        )
        loss, logs = super().train_step(model, batch)
        return (loss * math.nan if step == self.nan_at else loss), logs


def watched(already: int = 0, **settings) -> Watched:
    task = Watched(3)
    object.__setattr__(task, "seen", [None] * already)
    for name, value in settings.items():
        object.__setattr__(task, name, value)
    return task


def train(path, task=None, recipe=RECIPE, model=None):
    stream = Stream(pictures(50), 12, seed=recipe.seed)
    assert stream.steps_per_epoch == STEPS
    held_out = {"val": pictures(9, 1), "test": pictures(12, 2)}
    return fit(
        model or tiny_model(), task or Classification(3), stream, held_out, recipe, Run(path), torch.zeros(2, 3, 8, 8)
    )


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k != "seconds")
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, (list, tuple)) else a == b


def log(path) -> list[dict]:
    return [
        {k: v for k, v in json.loads(line).items() if k != "seconds"}
        for line in (path / "log.jsonl").read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    return path, train(path)


# first step, float phase, at the attach, in QAT, after the observer freeze, after the batch-norm freeze, the very last
# step
@pytest.mark.parametrize("stop", [0, 5, 8, 13, 18, 22, 23])
@pytest.mark.parametrize("every", [0.0, math.inf], ids=["each step", "each epoch"])
def test_a_stopped_run_ends_in_the_same_bits(tmp_path, uninterrupted, stop, every):
    whole_path, whole = uninterrupted
    recipe = replace(RECIPE, checkpoint_seconds=every)
    with pytest.raises(Stopped):
        train(tmp_path, watched(stop_at=stop), recipe)
    again = train(tmp_path, recipe=recipe, model=tiny_model())
    assert (again.metrics, again.float_metrics) == (whole.metrics, whole.float_metrics)
    assert same(Run(tmp_path).load_checkpoint(), Run(whole_path).load_checkpoint())
    assert log(tmp_path) == log(whole_path)


@pytest.mark.parametrize("optimizer, boost", [("adamw", "released"), ("rmsprop", "off"), ("adam", "paper")])
def test_every_optimizer_resumes_exactly(tmp_path, optimizer, boost):
    recipe = replace(RECIPE, optimizer=optimizer, boost=boost, lr=0.01, checkpoint_seconds=0.0)
    train(tmp_path / "whole", recipe=recipe)
    for stop in (6, 14):
        with pytest.raises(Stopped):
            train(tmp_path / "parts", watched(0 if stop == 6 else 6, stop_at=stop), recipe)
    train(tmp_path / "parts", recipe=recipe)
    assert same(Run(tmp_path / "parts").load_checkpoint(), Run(tmp_path / "whole").load_checkpoint())


LEARNED = {
    "qil": QuantConfig(weight="qil:5", activation="qil:5"),
    "lsq": QuantConfig(weight="lsq:5", activation="lsq:5", gradient="dorefa:6"),
    "dorefa+pact": QuantConfig(weight="dorefa:5", activation="pact:5"),
}


@pytest.mark.parametrize("method", LEARNED)
def test_learned_ranges_and_falling_widths_resume_exactly(tmp_path, method):
    # stops in the float phase, in the first width, right at the second, and within it; a checkpoint at every step
    recipe = replace(
        RECIPE, schedule=Schedule(5, 1, bits=(5, 3)), quant=LEARNED[method], lr=0.02, checkpoint_seconds=0.0
    )
    train(tmp_path / "whole", recipe=recipe)
    already = 0
    for stop in (3, 7, 12, 14):
        with pytest.raises(Stopped):
            train(tmp_path / "parts", watched(already, stop_at=stop), recipe)
        already = stop
    train(tmp_path / "parts", recipe=recipe)
    assert same(Run(tmp_path / "parts").load_checkpoint(), Run(tmp_path / "whole").load_checkpoint())
    assert log(tmp_path / "parts") == log(tmp_path / "whole")


class Widths(Classification):
    """Classification that notes each step's widths and learned ranges."""

    seen: list = []

    def train_step(self, model, batch):
        self.seen.append(
            {
                n: (m.bits, [p.item() for p in m.parameters()])
                for n, m in model.named_modules()
                if isinstance(m, Quantizer)
            }
        )
        return super().train_step(model, batch)


def widths() -> Widths:
    task = Widths(3)
    object.__setattr__(task, "seen", [])
    return task


def test_widths_fall_over_the_quantized_epochs(tmp_path):
    task = widths()
    config = QuantConfig(weight="dorefa:8", activation="pact:8", residual="int8")
    train(tmp_path, task, replace(RECIPE, schedule=Schedule(5, 1, bits=(5, 3)), quant=config))
    falling = [[bits for _, (bits, learned) in step.items() if learned] for step in task.seen]
    assert falling[: 1 * STEPS] == [[]] * STEPS
    assert all(set(bits) == {5} for bits in falling[1 * STEPS : 3 * STEPS]) and all(
        set(bits) == {3} for bits in falling[3 * STEPS :]
    )
    assert [row["phase"] for row in log(tmp_path)] == ["float", "qat", "qat", "qat", "freeze_bn"]


@pytest.mark.parametrize("boost", ["paper", "released"])
def test_learned_ranges_train_at_their_own_rate_undecayed_and_unboosted(tmp_path, boost):
    task = widths()
    recipe = replace(RECIPE, schedule=Schedule(2, 1), quant=LEARNED["qil"], weight_decay=0.1, lr=0.02, boost=boost)
    train(tmp_path, task, recipe)
    optimizer = Run(tmp_path).load_checkpoint()["optimizer"]
    weights, vectors, *learned = optimizer["optimizer"]["param_groups"]
    assert [g["lr"] for g in learned] == [pytest.approx(0.01 * weights["lr"])] and weights["lr"] == vectors["lr"]
    assert all(g["weight_decay"] == 0.0 and g["boost"] is False for g in learned)
    boosted = {i for bucket in optimizer["boost"]["buckets"] for i in bucket["positions"]}
    assert boosted == set(weights["params"]) | (set(vectors["params"]) if boost == "released" else set())
    first, last = (json.dumps([learned for _, learned in step.values()]) for step in (task.seen[STEPS], task.seen[-1]))
    assert first != last


def test_the_quantizers_regulariser_is_trained_on_and_not_logged(tmp_path):
    ends, losses = {}, {}
    for l2 in (0.0, 0.3):
        task, config = widths(), QuantConfig(weight="int8", activation=f"pact:4,alpha=10.0,l2={l2}")
        train(tmp_path / str(l2), task, replace(RECIPE, schedule=Schedule(1, 0), quant=config, clip_norm=0.0))
        ends[l2] = [learned[0] for _, learned in task.seen[-1].values() if learned]
        losses[l2] = log(tmp_path / str(l2))[0]["loss"]
    assert all(pulled < 0.9 * free for free, pulled in zip(ends[0.0], ends[0.3], strict=True)) and ends[0.0]
    assert losses[0.3] == pytest.approx(losses[0.0], abs=0.3)  # the regulariser itself is 0.3 * 100 for each


def test_a_finished_run_is_not_trained_again(tmp_path, uninterrupted):
    again = train(uninterrupted[0], watched(stop_at=0))
    assert again.metrics == uninterrupted[1].metrics and again.seconds == uninterrupted[1].seconds


def test_each_phase_sets_its_switches(tmp_path):
    task = watched()
    train(tmp_path, task)
    expected = [(False, False, True)] * 2 + [(True, True, True)] * 2 + [(True, False, True), (True, False, False)]
    assert task.seen == list(itertools.chain.from_iterable([e] * STEPS for e in expected))
    assert [row["phase"] for row in log(tmp_path)] == ["float", "float", "qat", "qat", "freeze_observers", "freeze_bn"]


def test_float_training_is_plain_torch_training(tmp_path):
    recipe = replace(RECIPE, schedule=Schedule(2, 2), weight_decay=1e-3)
    fitted = train(tmp_path, recipe=recipe)
    model, stream = tiny_model(), Stream(pictures(50), 12, seed=0)
    matrices, vectors = ([p for p in model.parameters() if (p.dim() > 1) == more] for more in (True, False))
    groups = [{"params": matrices, "weight_decay": 1e-3}, {"params": vectors}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    for step in range(2 * STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * lr_factor((step + 0.5) / (2 * STEPS), 0.05)
        x, y = stream.batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model.train()(x), y).backward()
        optimizer.step()
    assert same(fitted.model.state_dict(), model.state_dict())


def test_parameters_and_momentum_survive_the_attach(tmp_path):
    model = tiny_model()
    parameters = list(map(id, model.parameters()))
    fitted = train(tmp_path, recipe=replace(RECIPE, schedule=Schedule(3, 2)), model=model)
    assert list(map(id, fitted.model.parameters())) == parameters
    state = Run(tmp_path).load_checkpoint()["optimizer"]["optimizer"]["state"]
    assert len(state) == len(parameters) and all("momentum_buffer" in s for s in state.values())


def test_float_metrics_are_those_of_the_end_of_the_float_phase(tmp_path, uninterrupted):
    path, whole = uninterrupted
    rows = log(path)
    assert whole.float_metrics["val"] == {"top1": rows[1]["val_top1"], "loss": rows[1]["val_loss"]}
    # test data is only reported
    assert "test_top1" in rows[1] and "test_top1" in rows[5] and "test_top1" not in rows[3]
    assert train(tmp_path, recipe=replace(RECIPE, schedule=Schedule(1, 0))).float_metrics is None


def test_batch_norm_and_biases_are_not_decayed():
    optimizer = make_optimizer(tiny_model(), replace(RECIPE, weight_decay=0.5))
    decay = {tuple(p.shape): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {(8, 3, 3, 3): 0.5, (8, 1, 3, 3): 0.5, (3, 8): 0.5, (8,): 0.0, (3,): 0.0}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(tmp_path, name):
    train(tmp_path, recipe=replace(RECIPE, optimizer=name, lr=OPTIMIZERS[name].lr * 2))
    rows = log(tmp_path)
    assert rows[-1]["loss"] < rows[0]["loss"]


@given(a=st.floats(0, 1), b=st.floats(0, 1), warmup=st.floats(0, 0.5))
def test_the_learning_rate_rises_then_falls(a, b, warmup):
    low, high = min(a, b), max(a, b)
    first, second = lr_factor(low, warmup), lr_factor(high, warmup)
    assert 0 <= first <= 1 and 0 <= second <= 1
    assert (second >= first) if high < warmup else low < warmup or (second <= first)


def test_the_learning_rate_has_known_values():
    assert [lr_factor(p, 0.1) for p in (0, 0.05, 0.1)] == [0, 0.5, 1]
    assert lr_factor(0.55, 0.1) == pytest.approx(0.5) and lr_factor(1, 0.1) == 0 and lr_factor(0, 0) == 1


@pytest.mark.parametrize(
    "nan_at, phase, kept", [(0, "float", None), (6, "float", 4), (14, "qat", 12), (21, "freeze_bn", 20)]
)
def test_a_loss_that_is_not_finite_is_named_and_the_checkpoint_kept(tmp_path, nan_at, phase, kept):
    with pytest.raises(UserError, match=f"the loss became nan at step {nan_at} of phase {phase}; .*lower --lr"):
        train(tmp_path, watched(nan_at=nan_at))
    run = Run(tmp_path)
    assert (run.load_checkpoint()["step"] if run.has("checkpoint.pt") else None) == kept


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    class Spoils(Classification):
        def evaluate(self, model, data):
            metrics = super().evaluate(model, data)
            with torch.no_grad():
                next(model.parameters()).fill_(math.inf)
            return metrics

    with pytest.raises(UserError, match="weights or ranges stopped being finite at step 4 of phase float"):
        train(tmp_path, Spoils(3))
    assert not Run(tmp_path).has("checkpoint.pt")


@pytest.mark.parametrize("float_epochs", [0, 1])
@pytest.mark.parametrize("lr", [1e30, 1e38])
def test_an_absurd_learning_rate_ends_in_words(tmp_path, float_epochs, lr):
    with pytest.raises(UserError, match="lower --lr"):
        train(tmp_path, recipe=replace(RECIPE, schedule=Schedule(3, float_epochs), lr=lr))


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    train(tmp_path, recipe=replace(RECIPE, schedule=Schedule(1, 1)))
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(UserError, match="made by another model, optimizer or program"):
        train(tmp_path, model=other)
    Run(tmp_path).save_checkpoint({"alphas": torch.zeros(3)})
    with pytest.raises(UserError, match="made by another model, optimizer or program"):
        train(tmp_path)


def test_a_full_disk_loses_nothing_that_was_saved(tmp_path, monkeypatch):
    with pytest.raises(Stopped):
        train(tmp_path, watched(stop_at=10))
    real = common.files.os.replace

    def full(source, target):
        if target.name == "checkpoint.pt":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(common.files.os, "replace", full)
    with pytest.raises(UserError, match="the disk is full"):
        train(tmp_path)
    monkeypatch.undo()
    assert Run(tmp_path).load_checkpoint()["step"] == 8
    assert [row["step"] for row in log(tmp_path)] == [4, 8, 12]  # a line that no checkpoint goes with
    train(tmp_path)
    assert [row["step"] for row in log(tmp_path)] == [4, 8, 12, 16, 20, 24]


def test_an_unknown_optimizer_is_named():
    with pytest.raises(UserError, match="optimizer: 'lion' is not one of sgd, adamw, adam, adam_gan, rmsprop"):
        make_optimizer(tiny_model(), replace(RECIPE, optimizer="lion"))
