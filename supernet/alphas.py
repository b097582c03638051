"""Architecture parameters: what the search learns beside the weights.

One vector per slot over its candidates, one per stage over its depths. p = softmax(alpha / temperature).
Depth has a separate distribution (sink probabilities, as in TF-NAS, arXiv:2008.05314), never a skip candidate inside a
slot's softmax.
"""

import torch
from torch import Tensor, nn

from nas.derive import Scores
from nas.space import Latencies, SearchSpace


class Alphas(nn.Module):
    """ops[stage][slot] over candidates, depths[stage] over min_depth .. number of slots; all start at 0 (uniform).

    In a tied space all slots with a choice hold the very same vector.
    """

    def __init__(self, space: SearchSpace):
        super().__init__()
        self.space = space
        rows = space.each_slot(lambda i, j: nn.Parameter(torch.zeros(len(space.stages[i].slots[j].candidates))))
        self.ops = nn.ModuleList(map(nn.ParameterList, rows))
        self.depths = nn.ParameterList(
            nn.Parameter(torch.zeros(len(stage.slots) - stage.min_depth + 1)) for stage in space.stages
        )

    def probabilities(self, temperature: float = 1.0) -> tuple[list[list[Tensor]], list[Tensor]]:
        """(op probabilities [stage][slot], depth probabilities [stage]); differentiable."""
        ops = [[torch.softmax(alpha / temperature, 0) for alpha in stage] for stage in self.ops]
        return ops, [torch.softmax(alpha / temperature, 0) for alpha in self.depths]

    def expected_latency(self, latency: Latencies, temperature: float = 1.0) -> Tensor:
        """E[latency] of the network that the probabilities draw, 0-dim, differentiable.

        A slot runs if its stage is deep enough:
            E = stem + head + sum_slots P(depth > slot) sum_c p_c ms_c

        Args:
            latency: Calibrated milliseconds of every candidate.
            temperature: Of the softmax.

        Returns:
            Milliseconds.
        """
        ops, depths = self.probabilities(temperature)
        total = depths[0].new_tensor(latency.stem_ms + latency.head_ms)
        for stage, op_rows, depth_row, ms_rows in zip(self.space.stages, ops, depths, latency.blocks, strict=True):
            for slot, (p, ms) in enumerate(zip(op_rows, ms_rows, strict=True)):
                runs = depth_row[max(0, slot + 1 - stage.min_depth) :].sum()
                total = total + runs * (p * p.new_tensor(ms)).sum()
        return total

    def entropy(self, temperature: float = 1.0) -> Tensor:
        """Mean entropy of all distributions relative to uniform: 0-dim, differentiable, 0 where there is none."""
        ops, depths = self.probabilities(temperature)
        rows = [p for p in [*(p for stage in ops for p in stage), *depths] if len(p) > 1]
        if not rows:
            return depths[0].new_zeros(())
        return torch.stack(
            [-(p * p.clamp(min=1e-12).log()).sum() / torch.tensor(float(len(p))).log() for p in rows]
        ).mean()

    @torch.no_grad()
    def cheapest_share(self, latency: Latencies, temperature: float = 1.0) -> float:
        """Mean over all slots with a choice of the probability of their fastest candidate.

        At 1 the search has only saved time.
        """
        ops, _ = self.probabilities(temperature)
        rows = [
            (p, ms)
            for ps, mss in zip(ops, latency.blocks, strict=True)
            for p, ms in zip(ps, mss, strict=True)
            if len(p) > 1
        ]
        return sum(p[min(range(len(ms)), key=ms.__getitem__)].item() for p, ms in rows) / len(rows) if rows else 0.0

    @torch.no_grad()
    def log_scores(self) -> Scores:
        """log p relative to the best of its distribution: 0 for the most probable, negative for the others."""
        ops, depths = self.probabilities()

        def regret(p: Tensor) -> list[float]:
            return (p.log() - p.log().max()).tolist()

        rows = [[regret(p) for p in stage] for stage in ops]
        shared = max((row for stage in rows for row in stage), key=len) if self.space.tied else None
        if shared:
            rows = [[[0.0] * len(row) for row in stage] for stage in rows]
        return Scores(rows, [regret(p) for p in depths], shared)
