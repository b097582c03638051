"""The latency constraint: an augmented Lagrangian that holds the expected latency at the target."""

from torch import Tensor

LOWEST_MU = -1.0  # bound on the reward for slower networks


class LatencyConstraint:
    """The alphas' penalty for missing the target, from either side, and its dual variable (first order).

        penalty = mu x + rho/2 x^2,   x = E/T - 1,   then   mu <- max(LOWEST_MU, mu + mu_rate x)

    mu rises while the expected latency E is above the target T and falls, below 0 too, while it is under it. A penalty
    on the excess alone ended a fifth under the target: once pressed down, nothing brought slower candidates back within
    a short search.

    Args:
        target_ms: T, milliseconds.
        slowest_ms: Latency of the slowest network of the space. A target that it meets steers nothing.
        rho: Weight of the squared miss.
        mu_rate: Step size of the dual variable.
    """

    def __init__(self, target_ms: float, slowest_ms: float, rho: float, mu_rate: float):
        self.target_ms, self.rho, self.mu_rate = target_ms, rho, mu_rate
        self.steers = target_ms < slowest_ms
        self.mu = 0.0

    def penalty(self, expected_ms: Tensor) -> Tensor:
        """What is added to the alphas' loss; 0-dim, differentiable."""
        excess = expected_ms / self.target_ms - 1.0
        return self.steers * (self.mu * excess + 0.5 * self.rho * excess.square())

    def update(self, expected_ms: Tensor) -> None:
        """One step of the dual variable."""
        excess = expected_ms.detach() / self.target_ms - 1.0
        self.mu = max(LOWEST_MU, self.mu + self.steers * self.mu_rate * excess.item())

    def state_dict(self) -> dict[str, float]:
        return {"mu": self.mu}

    def load_state_dict(self, state: dict) -> None:
        self.mu = state["mu"]
