"""A network after the supernet: it recalibrates its statistics, trains for a few steps and is evaluated, alone."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, fx, nn

import quant
from frostnet import FrostNet
from nas.space import Choice
from quant.statistics import recalibrate, weight_decay_groups
from supernet.loop import Batch
from supernet.model import Supernet
from supernet.plan import Plan

PEAK, WARM_UP = 0.5, 0.1  # of the search's learning rate, and of the steps


@torch.no_grad()
def inherited(
    supernet: Supernet, choice: Choice, config: quant.QuantConfig, batches: Iterable[Tensor]
) -> fx.GraphModule:
    """The attached network of a choice with the supernet's weights; `batches` of images measure its statistics anew.

    It shares nothing with the supernet. Batch norms start over; the ranges go on from the path's own, quickly.
    """
    batches = list(batches)
    network = FrostNet(supernet.space.architecture(choice)).to(batches[0].device)
    graph = quant.attach(network, batches[0][:1], config).to(batches[0].device)
    graph.load_state_dict(supernet.path_state(choice))
    recalibrate(graph, batches)
    return graph.eval()


def tune(graph: nn.Module, train: Batch, steps: int, plan: Plan, loss: Callable, seed: int = 0) -> bool:
    """Train an attached network in place for `steps` steps as the search trained its weights.

    In the supernet weights serve many networks; a few steps alone tell better which of them are good. The learning rate
    rises to PEAK of the search's and falls straight to 0.

    Returns:
        Whether all parameters are finite afterwards.
    """
    torch.manual_seed(seed)  # of dropout
    optimizer = torch.optim.SGD(
        weight_decay_groups(graph, plan.weight_decay), lr=plan.lr, momentum=plan.momentum, nesterov=True
    )
    device = next(graph.parameters()).device
    graph.train()
    for step in range(steps):
        images, targets = (t.to(device) for t in train(step))
        for group in optimizer.param_groups:
            group["lr"] = PEAK * plan.lr * min((step + 1) / max(1.0, WARM_UP * steps), 1.0 - step / steps)
        optimizer.zero_grad()
        loss(graph(images), targets).backward()
        nn.utils.clip_grad_norm_(graph.parameters(), plan.clip_norm)
        optimizer.step()
    return all(bool(p.isfinite().all()) for p in graph.parameters())


def top1(graph: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Accuracy in [0, 1] over all batches; leaves the graph in evaluation mode."""
    return accuracy(graph.eval(), batches)


@torch.no_grad()
def accuracy(logits: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Accuracy in [0, 1] over all batches of a function from images to logits."""
    right = total = 0
    for images, targets in batches:
        right += (logits(images).argmax(1) == targets).sum().item()
        total += len(targets)
    return right / total
