"""The tasks of style transfer: losses by hand, metrics of known models, discriminators that train along."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import quant
from common.runs import Run
from quant import QuantConfig, Schedule
from tasks import Recipe, fit, parts
from tasks.cyclegan import CycleGan
from tasks.folders import CHANNELS
from tasks.kinds import KINDS, Choices
from tasks.pix2pix import Pix2Pix
from tasks.rival import Rival
from tasks.samples import Samples, Stream, in_order
from tasks.translation import ALIKE, both, likeness
from tests.tasks.test_engine import same
from zoo.generators import Cycle

SIZE = 16


class Pairs:
    """A picture and its negative."""

    def __init__(self, count: int):
        draw = torch.Generator().manual_seed(0)
        self.pictures = torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=draw)

    def __len__(self) -> int:
        return len(self.pictures)

    def name(self, index: int) -> str:
        return str(index)

    def read(self, index: int):
        return self.pictures[index], 255 - self.pictures[index]


def unchanged(image, target):
    return image, target


def samples(count: int = 6) -> Samples:
    half = torch.full((3,), 0.5)
    return Samples(Pairs(count), torch.arange(count), SIZE, unchanged, unchanged, half, half)


class Scaled(nn.Module):
    """Pictures times one number that is learned."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        return x * self.factor


class Chance(nn.Module):
    """A discriminator that never decides: its logits are `logit` whatever it sees."""

    def __init__(self, logit: float):
        super().__init__()
        self.logit, self.seen = nn.Parameter(torch.tensor(logit)), []

    def forward(self, x):
        self.seen.append(x.detach())
        return self.logit + 0 * x[:, :1]


def cycle(a_to_b: float, b_to_a: float) -> Cycle:
    factors = iter((a_to_b, b_to_a))
    return Cycle(lambda: Scaled(next(factors)))


def batch(count: int = 2):
    return next(iter(in_order(samples(), count)))


def test_both_pictures_of_a_batch_lie_between_minus_one_and_one():
    a, b = both(batch(6))
    torch.testing.assert_close(a, -b, atol=1e-6, rtol=0)  # negatives of one another
    assert a.min() < -0.9 and a.max() > 0.9 and a.shape == b.shape == (6, 3, SIZE, SIZE)


def test_the_loss_of_pix2pix_by_hand():
    rival = Rival(("pair",), lambda: Chance(0.0), "vanilla")
    rival.optimizer.param_groups[0]["lr"] = 0.0
    loss, logs = Pix2Pix(rival).train_step(Scaled(0.5), batch())
    a, b = both(batch())
    l1 = (0.5 * a - b).abs().mean().item()
    assert loss.item() == pytest.approx(math.log(2) + 100 * l1, rel=1e-5)
    assert logs["l1"].item() == pytest.approx(l1 / 2, rel=1e-5)
    assert logs["discriminator_pair"].item() == pytest.approx(math.log(2), rel=1e-5)
    real, made, asked = rival.networks["pair"].seen
    assert (
        torch.equal(real, torch.cat([a, b], 1))
        and torch.equal(made, torch.cat([a, 0.5 * a], 1))
        and torch.equal(asked, made)
    )


def test_the_loss_of_cyclegan_by_hand():
    rival = Rival(("a", "b"), lambda: Chance(0.0), "least_squares")
    rival.optimizer.param_groups[0]["lr"] = 0.0
    loss, logs = CycleGan(rival).train_step(cycle(0.5, 0.8), batch())
    a, b = (x.abs().mean().item() for x in both(batch()))
    there_and_back, same_a, same_b = 0.6 * (a + b), 0.2 * a, 0.5 * b
    assert loss.item() == pytest.approx(2 + 10 * (there_and_back + 0.5 * (same_a + same_b)), rel=1e-5)
    assert logs["cycle"].item() == pytest.approx(there_and_back / 4, rel=1e-5) and logs[
        "discriminator_a"
    ].item() == pytest.approx(0.5)


def test_metrics_of_known_models():
    task, held_out = Pix2Pix(), samples()
    perfect, inverse = (task.evaluate(Scaled(f), held_out) for f in (-1.0, 1.0))
    assert perfect["l1"] < 1e-6 and perfect["ssim"] > 0.999 and perfect["psnr"] > 60 and perfect["distance"] < 1e-3
    a, _ = both(batch(6))
    assert inverse["l1"] == pytest.approx(a.abs().mean().item(), rel=1e-4)  # a - (-a) = 2 a, of a range of 2
    assert inverse["psnr"] == pytest.approx(
        (10 * (4 / (2 * a).square().mean((1, 2, 3))).log10()).mean().item(), rel=1e-3
    )
    assert tuple(perfect) == task.reported


def test_cyclegan_is_judged_by_both_collections_and_what_is_lost_on_the_way():
    held_out = samples(8)
    lossless, lossy = (CycleGan().evaluate(cycle(f, 1 / f if f == -1 else f), held_out) for f in (-1.0, 0.5))
    assert lossless["cycle_l1"] < 1e-6 and lossless["distance"] < 1e-2 and tuple(lossless) == CycleGan.reported
    a, _ = both(next(iter(in_order(held_out, 8))))
    # a quarter is left, of a range of 2
    assert lossy["cycle_l1"] == pytest.approx(0.75 * a.abs().mean().item() / 2, rel=1e-3)
    assert lossy["distance"] == pytest.approx((lossy["distance_a"] + lossy["distance_b"]) / 2, abs=1e-6)
    assert lossy["distance"] > 10 * lossless["distance"]


def test_likeness_is_the_psnr_of_the_difference():
    def off(step: float):
        return lambda batch: [batch[0] + step]

    assert likeness(off(0.0), off(0.0), samples()) == ALIKE
    assert likeness(off(0.0), off(2 / 255), samples()) == pytest.approx(20 * math.log10(255), abs=1e-2)


@pytest.mark.parametrize("kind", ["patch", "pixel:instance"])
@pytest.mark.parametrize("task", ["pix2pix", "cyclegan"])
def test_discriminators_are_trained_beside_the_generators_and_never_quantized(task, kind, tmp_path):
    """The defect that made all GAN results of the released code void: their optimizer held the generator's weights."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1), nn.Tanh()
    )
    model = net if task == "pix2pix" else Cycle(lambda: nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh()))
    made = KINDS[task].task("frost_generator", 32, CHANNELS, None, Choices(discriminator=kind))
    before = {name: value.clone() for name, value in made.rival.networks.state_dict().items()}
    big = replace(samples(4), fit=_doubled, augment=_doubled)
    stream = Stream(big, 2, seed=0)
    recipe = Recipe(
        Schedule(4, 1),
        optimizer="adam_gan",
        lr=2e-3,
        warmup=0.0,
        clip_norm=0.0,
        decay="second_half",
        quant=QuantConfig(),
    )
    run = Run(tmp_path)
    fit(model, made, stream, {"val": big}, recipe, run, torch.zeros(2, 3, 32, 32))
    weights = [name for name, value in made.rival.networks.named_parameters()]
    after = made.rival.networks.state_dict()
    assert weights and all(not torch.equal(before[name], after[name]) for name in weights)
    assert not any(hasattr(module, "weight_quant") for module in made.rival.networks.modules())
    losses = [row[f"discriminator_{name}"] for row in run.read_log() for name in made.rival.networks]
    assert len(set(losses)) == len(losses)  # they react


def _doubled(image, target):
    return tuple(x.repeat_interleave(2, 1).repeat_interleave(2, 2) for x in (image, target))


def test_gradboosts_optimizer_holds_the_generators_weights_alone(tmp_path, monkeypatch):
    """StatAssist and GradBoost are the generator's: its optimizer holds no weight of a discriminator."""
    made = KINDS["pix2pix"].task("frost_generator", 32, CHANNELS, None, Choices(discriminator="pixel"))
    theirs = {id(p) for p in made.rival.parameters()}
    seen = []
    step = quant.GradBoost.step

    def spy(self, *args, **kwargs):
        seen.append((self.active, {id(p) for group in self.param_groups for p in group["params"]} & theirs))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(quant.GradBoost, "step", spy)
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh())
    recipe = Recipe(Schedule(3, 1), optimizer="adam_gan", lr=1e-3, warmup=0.0)
    fit(
        model,
        made,
        Stream(samples(4), 2, seed=0),
        {"val": samples(4)},
        recipe,
        Run(tmp_path),
        torch.zeros(2, 3, SIZE, SIZE),
    )
    assert [active for active, _ in seen] == [False] * 2 + [True] * 4 and not any(shared for _, shared in seen)


@pytest.mark.parametrize("task", ["pix2pix", "cyclegan"])
def test_what_was_stopped_goes_on_bit_for_bit_with_both_optimizers_and_the_pools(task, tmp_path):
    class Stopped(Exception):
        pass

    def train(path, stop_at=None):
        torch.manual_seed(0)

        def generator() -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(3, 4, 3, padding=1, bias=False),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Dropout(0.3),
                nn.Conv2d(4, 3, 1),
                nn.Tanh(),
            )

        model = generator() if task == "pix2pix" else Cycle(generator)
        made = KINDS[task].task("frost_generator", 32, CHANNELS, None, Choices(discriminator="pixel"))
        for pool in made.rival.pools.values():
            pool.size = 3  # soon full
        recipe = Recipe(Schedule(4, 2), optimizer="adam_gan", lr=1e-3, warmup=0.0, clip_norm=0.0, checkpoint_seconds=0)
        learn, steps = made.rival.learn, iter(range(100))

        def stopping(*args):
            if next(steps) == stop_at:
                raise Stopped
            return learn(*args)

        made.rival.learn = stopping
        return fit(
            model,
            made,
            Stream(samples(6), 2, seed=0),
            {"val": samples(4)},
            recipe,
            Run(path),
            torch.zeros(2, 3, SIZE, SIZE),
        )

    whole = train(tmp_path / "whole")
    for stop_at in (4, 8):  # in the float phase and in the quantized one, in the middle of an epoch
        with pytest.raises(Stopped):
            train(tmp_path / f"cut{stop_at}", stop_at)
        resumed = train(tmp_path / f"cut{stop_at}")
        assert same(resumed.model.state_dict(), whole.model.state_dict()) and resumed.metrics == whole.metrics
        one, other = (Run(tmp_path / name).load_checkpoint()["rival"] for name in ("whole", f"cut{stop_at}"))
        assert same(one, other)


def test_passes_beside_the_own_collection_leave_statistics_and_ranges_alone():
    """Else generators in use, which see their own collection alone, would be normalised for a mixture of three."""
    torch.manual_seed(0)
    model = Cycle(lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.Tanh()))
    graph = parts.attach(model, torch.zeros(2, 3, SIZE, SIZE), QuantConfig()).train()
    a, b = both(batch(4))
    graph.a_to_b(a), graph.b_to_a(b)
    before = {name: value.clone() for name, value in graph.state_dict().items() if isinstance(value, torch.Tensor)}
    with quant.frozen_statistics(graph, dropout=True):
        (graph.a_to_b(3 * b).sum() + graph.b_to_a(3 * a).sum()).backward()
    after = graph.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if "num_batches" not in name)
    assert all(p.grad is not None for p in graph.parameters())
    graph.a_to_b(3 * b)
    assert any(not torch.equal(value, after[name]) for name, value in before.items() if "running" in name)


def test_looking_at_a_model_changes_nothing_of_its_training(tmp_path):
    """Batch norms that are frozen stay so, however often sheets are drawn."""

    class Looks:
        every, shown = 1, []

        def show(self, model, step, float_ends):
            assert not any(module.training for module in model.modules())
            self.shown.append((step, float_ends))

    def train(path, watcher):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Tanh()
        )
        made = KINDS["pix2pix"].task("frost_generator", 32, CHANNELS, None, Choices(discriminator="pixel"))
        recipe = Recipe(Schedule(6, 1), optimizer="adam_gan", lr=1e-2, warmup=0.0, clip_norm=0.0)
        stream = Stream(samples(6), 2, seed=0)
        return fit(
            model, made, stream, {"val": samples(4)}, recipe, Run(path), torch.zeros(2, 3, SIZE, SIZE), watcher
        ).model.state_dict()

    assert same(train(tmp_path / "seen", Looks()), train(tmp_path / "unseen", None))
    assert [step for step, _ in Looks.shown if step != 3] == [*range(1, 3), *range(4, 19)] and (3, True) in Looks.shown
