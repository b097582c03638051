"""Which of the networks worth a closer look is the best, by its own accuracy and its measured latency."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor
from tqdm import tqdm

import quant
from common.errors import UserError
from common.runs import Run
from nas.arch import Architecture
from nas.derive import best_under, latency_range
from nas.space import Choice, SearchSpace
from supernet.finalists import Finalist, finalists, fronts_for, path_latency, path_score
from supernet.loop import Batch, Search
from supernet.score import Scores
from supernet.tune import inherited, recalibrate, top1, tune

KNOWN = "rescored.json"
TRIES = 3  # derivations with a corrected target, where measured networks miss it
SLACK = 1.03  # of the target, for what is accepted in the last try


@dataclass
class Judge:
    """Finds accuracy and latency of single networks, each with statistics and a short training of its own.

    What it finds of accuracies it writes down in the run's folder, so that a stopped search does not find it again.

    space           the networks at the size at which they will run
    recalibration   batches of images for statistics
    train           batches for the short training, of `tune_steps`
    judged          gives the batches of held-out pictures, nearly equal in size
    measure         names and architectures -> milliseconds by name
    """

    search: Search
    space: SearchSpace
    run: Run
    recalibration: list[Tensor]
    train: Batch
    judged: Callable[[], Iterable[tuple[Tensor, Tensor]]]
    pictures: int  # in all of them
    tune_steps: int
    measure: Callable[[dict[str, Architecture]], dict[str, float]]
    known: dict[str, list[float]] = field(init=False)

    def __post_init__(self):
        self.known = self.run.read_json(KNOWN) if self.run.has(KNOWN) else {}

    def __call__(self, networks: list[Finalist]) -> None:
        """Fill in `inherited`, `accuracy` and `measured_ms`."""
        for network in tqdm(networks, desc="re-scoring networks", unit="net"):
            key = repr(network.choice)
            if key not in self.known:
                self.known[key] = self.top1(network)
                self.run.write_json(KNOWN, self.known)
            network.inherited, network.accuracy = self.known[key]
        measured = self.measure({network.name: self.space.architecture(network.choice) for network in networks})
        for network in networks:
            network.measured_ms = measured[network.name]

    def top1(self, network: Finalist) -> list[float]:
        """Accuracy under fake-quant with the supernet's weights, before and after a few steps of its own;

        0 where these diverge.
        """
        graph = inherited(self.search.supernet, network.choice, self.search.config, self.recalibration)
        before = top1(graph, self.judged())
        if not self.tune_steps:
            return [before, before]
        try:
            fine = tune(graph, self.train, self.tune_steps, self.search.plan, self.search.loss, self.search.seed)
        except quant.QuantError:  # there is no grid for what is not finite
            fine = False
        if not fine:
            return [before, 0.0]
        recalibrate(graph, self.recalibration)
        return [before, top1(graph, self.judged())]


def choose(judge: Judge, scores: Scores, derived: int, controls: int) -> list[Finalist]:
    """Judge finalists until one meets the target as measured; the chosen one comes first. Raises UserError where none
    does.

    derived, controls: how many networks of the front, and how many random ones beside them.
    """
    search = judge.search
    aim = target = search.target_ms
    for attempt in range(TRIES):
        fronts = fronts_for(judge.space, scores, search.latency, aim)
        networks = finalists(judge.space, fronts, scores, search.latency, aim, derived, controls, search.seed)
        judge(networks)
        found = [n for n in networks if n.kind == "derived"]
        met = [n for n in found if n.measured_ms <= target * (1.0 if attempt < TRIES - 1 else SLACK)]
        if met:
            best = max(met, key=lambda n: n.accuracy) if judge.space.tied else slowest_of_the_best(met, judge.pictures)
            if best.measured_ms > target:
                print(
                    f"no network met {target:.3f} ms as measured; {best.name} is "
                    f"{100 * (best.measured_ms / target - 1):.1f} % above it"
                )
            return [best, *(n for n in networks if n is not best)]
        slowdown = min(n.measured_ms / n.latency_ms for n in found)
        aim = max(target / slowdown, latency_range(judge.space, search.latency)[0])
        print(f"no derived network met {target:.3f} ms as measured; deriving again for {aim:.3f} ms predicted")
    raise UserError(
        f"target_ms: {target:.4g}, but measured networks take {slowdown:.2f} times their prediction and miss it; is "
        "something else "
        "running? Give the same command again to go on, measure the table anew, or raise the target"
    )


def slowest_of_the_best(networks: list[Finalist], pictures: int) -> Finalist:
    """The slowest of those whose accuracy on `pictures` is within one standard error of the best's.

    Inherited weights flatter small networks, and what the target leaves costs nothing.
    """
    best = max(n.accuracy for n in networks)
    error = math.sqrt(best * (1.0 - best) / pictures)
    return max((n for n in networks if n.accuracy >= best - error), key=lambda n: n.measured_ms)


def along_the_front(judge: Judge, scores: Scores, count: int) -> list[Finalist]:
    """The best networks for `count` predicted latencies, from the fastest to the slowest of the space, evenly spread
    over their logarithms; judged. Fewer where one network is the best for several of them."""
    latency = judge.search.latency
    low, high = latency_range(judge.space, latency)
    shares = [i / (count - 1) for i in range(count)] if count > 1 else [1.0] * count
    targets = [low * (high / low) ** share * (1 + 1e-9) for share in shares]
    choices = dict.fromkeys(best_for(judge.space, scores, latency, target) for target in targets)
    networks = [
        Finalist(
            f"pareto_{i}", "pareto", choice, path_latency(choice, latency), path_score(choice, scores, judge.space)
        )
        for i, choice in enumerate(choices, 1)
    ]
    if networks:
        judge(networks)
    return networks


def best_for(space: SearchSpace, scores: Scores, latency, target_ms: float) -> Choice:
    """The network that the last of the fronts for a target names."""
    fronts = fronts_for(space, scores, latency, target_ms)
    feasible = [best_under(front, target_ms)[0] for front in fronts if front[0].latency_ms <= target_ms]
    return (max(feasible, key=lambda point: point.score) if space.tied else feasible[-1]).choice
