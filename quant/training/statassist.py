"""StatAssist as a schedule of phases (arXiv:2006.09679): what is on in each epoch, as a pure function.

float            the float model, the optimizer fills its momentum, second moments and batch-norm statistics
qat              the same Parameters and optimizer state, now through fake-quantizers; GradBoost acts
freeze_observers ranges stand still
freeze_bn        batch-norm statistics stand still too: training sees the network that will ship
"""

from dataclasses import dataclass

from quant.errors import QuantError


@dataclass(frozen=True)
class Phase:
    """What is on during an epoch. `progress` is how much of quantized training has passed at its beginning, in [0, 1);
    `bits` is the width of a progressive schedule, None where there is none."""

    name: str
    fake_quant: bool
    observe: bool
    bn_frozen: bool
    progress: float
    bits: int | None = None


@dataclass(frozen=True)
class Schedule:
    """Lengths of the phases.

    epochs            all epochs together
    float_epochs      epochs before the quantizers are attached (StatAssist; 0 turns it off, `epochs` trains a float
                      model only)
    observer_freeze   fraction of the quantized epochs after which ranges stand still
    bn_freeze         fraction of the quantized epochs after which batch-norm statistics stand still
    bits              widths that follow one another in equal shares of the quantized epochs, such as (5, 4, 3, 2):
                      progressive fine-tuning (arXiv:1808.05779). The two fractions are then of the last width's epochs:
                      ranges move before
    """

    epochs: int
    float_epochs: int = 1
    observer_freeze: float = 0.6
    bn_freeze: float = 0.8
    bits: tuple[int, ...] = ()

    def __post_init__(self):
        if self.epochs < 1:
            raise QuantError(f"epochs: {self.epochs}, must be at least 1")
        if not 0 <= self.float_epochs <= self.epochs:
            raise QuantError(f"float_epochs: {self.float_epochs}, must lie between 0 and epochs ({self.epochs})")
        if not 0.0 < self.observer_freeze <= self.bn_freeze <= 1.0:
            raise QuantError(
                f"observer_freeze {self.observer_freeze} and bn_freeze {self.bn_freeze}: need 0 < observer_freeze <= "
                "bn_freeze <= 1"
            )
        if not all(isinstance(width, int) and 1 <= width <= 8 for width in self.bits):
            raise QuantError(f"bits: {self.bits}, each must be a whole number from 1 to 8")
        if 0 < self.quantized_epochs < len(self.bits):
            raise QuantError(
                f"bits: {len(self.bits)} widths need as many quantized epochs, there are {self.quantized_epochs}"
            )

    @property
    def quantized_epochs(self) -> int:
        return self.epochs - self.float_epochs


def phase_at(schedule: Schedule, epoch: int) -> Phase:
    """The phase of an epoch, counted from 0.

    The first quantized epoch of the last width always observes; the last of several is frozen, unless bn_freeze is 1,
    however short the schedule.

    >>> [phase_at(Schedule(epochs=6, float_epochs=1), e).name for e in range(6)]
    ['float', 'qat', 'qat', 'qat', 'freeze_observers', 'freeze_bn']
    >>> [phase_at(Schedule(epochs=6, float_epochs=1, bits=(4, 2)), e).bits for e in range(6)]
    [None, 4, 4, 4, 2, 2]
    """
    if epoch < schedule.float_epochs:
        return Phase("float", fake_quant=False, observe=False, bn_frozen=False, progress=0.0)
    quantized, widths, done = schedule.quantized_epochs, max(1, len(schedule.bits)), epoch - schedule.float_epochs
    bits = schedule.bits[done * widths // quantized] if schedule.bits else None
    begin = -(-(widths - 1) * quantized // widths)  # of the last width
    share = (done - begin) / (quantized - begin)  # of its epochs that have passed, negative before it
    observe = share < schedule.observer_freeze or done == begin
    last = done == quantized - 1 and quantized - begin > 1
    bn_frozen = share >= schedule.bn_freeze or (last and schedule.bn_freeze < 1.0)
    observe = observe and not bn_frozen
    name = "qat" if observe else "freeze_bn" if bn_frozen else "freeze_observers"
    return Phase(name, fake_quant=True, observe=observe, bn_frozen=bn_frozen, progress=done / quantized, bits=bits)
