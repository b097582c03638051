"""Selection: finalists are trained for a few steps, evaluated and measured.

The best of those that meet the target as measured is chosen.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor
from tqdm import tqdm

import quant
from common import distributed
from common.errors import UserError
from common.runs import Run
from nas.arch import Architecture
from nas.derive import Scores, best_under, latency_range
from nas.space import Choice, Latencies, SearchSpace
from quant.statistics import recalibrate
from supernet.finalists import Finalist, finalist, finalists, target_fronts
from supernet.loop import Batch, Search
from supernet.tune import inherited, top1, tune

RESCORED = "rescored.json"  # in a run's folder: repr(choice) -> [inherited, accuracy]
TRIES = 3  # derivations with a corrected target, where measured networks miss it
SLACK = 1.03  # of the target, for what is accepted in the last try


@dataclass
class Evaluator:
    """Accuracy and latency of single networks of a search.

    Ranks divide the networks; all get the results. Accuracies are stored in the run's folder, so that a resumed search
    does not compute them again. Rank 0 measures while the others wait.

    Attributes:
        search: The finished search.
        space: The networks at the input size at which they will run.
        run: The run's folder.
        recalibration: Batches of images for batch-norm statistics and ranges.
        train: Batches of the short training.
        held_out: () -> batches of held-out images, of nearly equal size.
        image_count: Images in all of these batches.
        tune_steps: Steps of the short training.
        measure: Architectures by name -> milliseconds by name.
    """

    search: Search
    space: SearchSpace
    run: Run
    recalibration: list[Tensor]
    train: Batch
    held_out: Callable[[], Iterable[tuple[Tensor, Tensor]]]
    image_count: int
    tune_steps: int
    measure: Callable[[dict[str, Architecture]], dict[str, float]]
    known: dict[str, list[float]] = field(init=False)

    def __post_init__(self):
        self.known = distributed.from_main(lambda: self.run.read_json(RESCORED) if self.run.has(RESCORED) else {})

    def evaluate(self, networks: list[Finalist]) -> None:
        """Fill in `inherited`, `accuracy` and `measured_ms`."""
        unknown = list({repr(n.choice): n.choice for n in networks if repr(n.choice) not in self.known}.items())
        with tqdm(total=len(unknown), desc="re-scoring networks", unit="net") as bar:
            for start in range(0, len(unknown), distributed.world_size()):
                some = unknown[start : start + distributed.world_size()]
                found = distributed.each(lambda item: (item[0], self.accuracies(item[1])), some)
                self.known |= dict(found)
                if distributed.is_main():
                    self.run.write_json(RESCORED, self.known)
                bar.update(len(some))
        for network in networks:
            network.inherited, network.accuracy = self.known[repr(network.choice)]
        archs = {network.name: self.space.architecture(network.choice) for network in networks}
        measured = distributed.from_main(lambda: self.measure(archs))
        for network in networks:
            network.measured_ms = measured[network.name]

    def accuracies(self, choice: Choice) -> list[float]:
        """Top-1 under fake-quant with the supernet's weights, and after the short training: 0 where that diverges."""
        graph = inherited(self.search.supernet, choice, self.search.config, self.recalibration)
        before = top1(graph, self.held_out())
        if not self.tune_steps:
            return [before, before]
        try:
            fine = tune(graph, self.train, self.tune_steps, self.search.plan, self.search.loss, self.search.seed)
        except quant.QuantError:  # there is no grid for what is not finite
            fine = False
        if not fine:
            return [before, 0.0]
        recalibrate(graph, self.recalibration)
        return [before, top1(graph, self.held_out())]


# ---- one network for the target ----------------------------------------------------------------------------


def select(evaluator: Evaluator, scores: Scores, derived: int, baselines: int) -> list[Finalist]:
    """Derive and evaluate finalists until one meets the target as measured.

    Args:
        evaluator: Of the search.
        scores: Scores of all candidates and depths.
        derived: Derived networks per try.
        baselines: Random networks of equal latency per try.

    Returns:
        The finalists of the last try; the chosen one comes first.

    Raises:
        UserError: No network meets the target in TRIES tries, the last with SLACK.
    """
    search, space = evaluator.search, evaluator.space
    aim = target = search.constraint.target_ms
    for attempt in range(TRIES):
        fronts = target_fronts(space, scores, search.latency, aim)
        networks = finalists(space, fronts, scores, search.latency, aim, derived, baselines, search.seed)
        evaluator.evaluate(networks)
        candidates = [n for n in networks if n.kind == "derived"]
        met = [n for n in candidates if n.measured_ms <= target * (1.0 if attempt < TRIES - 1 else SLACK)]
        if met:
            best = most_accurate(met) if space.tied else slowest_of_the_best(met, evaluator.image_count)
            _report_excess(best, target)
            return [best, *(n for n in networks if n is not best)]
        slowdown = min(n.measured_ms / n.latency_ms for n in candidates)
        aim = max(target / slowdown, latency_range(space, search.latency)[0])
        print(f"no derived network met {target:.3f} ms as measured; deriving again for {aim:.3f} ms predicted")
    raise UserError(
        f"target_ms: {target:.4g}, but measured networks take {slowdown:.2f} times their prediction and miss it; is "
        "something else running? Give the same command again to go on, measure the table anew, or raise the target"
    )


def _report_excess(network: Finalist, target_ms: float) -> None:
    if network.measured_ms > target_ms:
        excess = 100 * (network.measured_ms / target_ms - 1)
        print(f"no network met {target_ms:.3f} ms as measured; {network.name} is {excess:.1f} % above it")


def most_accurate(networks: list[Finalist]) -> Finalist:
    return max(networks, key=lambda n: n.accuracy)


def slowest_of_the_best(networks: list[Finalist], image_count: int) -> Finalist:
    """The slowest of the networks whose accuracy is within one binomial standard error of the best.

    Short trainings favour small networks, and latency below the target costs nothing.
    """
    best = most_accurate(networks).accuracy
    error = math.sqrt(best * (1.0 - best) / image_count)
    return max((n for n in networks if n.accuracy >= best - error), key=lambda n: n.measured_ms)


# ---- many targets ------------------------------------------------------------------------------------------


def pareto_networks(evaluator: Evaluator, scores: Scores, count: int) -> list[Finalist]:
    """The best networks for `count` targets, evaluated; fewer where one network is the best for several of them.

    The targets are predicted latencies from the fastest to the slowest network of the space, evenly spread over their
    logarithms.
    """
    space, latency = evaluator.space, evaluator.search.latency
    low, high = latency_range(space, latency)
    shares = [i / (count - 1) for i in range(count)] if count > 1 else [1.0] * count
    targets = [low * (high / low) ** share * (1 + 1e-9) for share in shares]
    choices = dict.fromkeys(best_for(space, scores, latency, target) for target in targets)
    networks = [finalist("pareto", i, choice, space, scores, latency) for i, choice in enumerate(choices, 1)]
    if networks:
        evaluator.evaluate(networks)
    return networks


def best_for(space: SearchSpace, scores: Scores, latency: Latencies, target_ms: float) -> Choice:
    """The best network under a target: by the scores in a tied space, else by the front that uses the target."""
    fronts = target_fronts(space, scores, latency, target_ms)
    feasible = [best_under(front, target_ms)[0] for front in fronts if front[0].latency_ms <= target_ms]
    return (max(feasible, key=lambda point: point.score) if space.tied else feasible[-1]).choice
