"""The language of architectures: frozen dataclasses of explicit, resolved numbers, and their JSON.

A network is built from an `Architecture` (`nas.blocks`, `frostnet.FrostNet`) and never parsed back into one.
The frost bottleneck is the one of StatAssist & GradBoost (arXiv:2006.09679): a 1x1 "squeeze" of the input is
concatenated with the input before the expansion, hidden = expand_ratio * (in_channels + squeeze_channels).
"""

import re
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from common.checks import check_choice, check_format, check_int, check_list, check_number, check_object, failure
from common.errors import UserError
from common.files import read_json, write_json
from nas.ops import OPS

FORMAT, VERSION = "architecture", 1
ACTIVATIONS = ("relu", "hard_swish")
MAX_BLOCKS = 512
SHIPPED = Path(__file__).parent / "archs"  # architectures that come with the program


def round8(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and never more than 10 % below `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def stem_stride(input_size: int) -> int:
    """Stride of the stem: small pictures, up to 64 px, keep their resolution in the first convolution."""
    return 1 if input_size <= 64 else 2


# ---- rules: the check of each field, by field name ---------------------------------------------------------


def _check_name(path: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", value):
        raise failure(path, value, "1 to 100 letters, digits, '_', '.' or '-', not starting with '.' or '-'")
    return value


RULES = {
    "name": _check_name,
    "input_size": partial(check_int, low=8, high=4096),
    "op": partial(check_choice, choices=tuple(OPS)),
    "kernel_size": partial(check_choice, choices=(1, 3, 5, 7)),
    "stride": partial(check_choice, choices=(1, 2)),
    "activation": partial(check_choice, choices=ACTIVATIONS),
    "in_channels": partial(check_int, low=1, high=8192),
    "out_channels": partial(check_int, low=1, high=8192),
    "channels": partial(check_int, low=1, high=8192),
    "expand_ratio": partial(check_int, low=1, high=16),
    "squeeze_factor": partial(check_int, low=0, high=16),
    "num_classes": partial(check_int, low=1, high=100_000),
    "dropout": partial(check_number, low=0, below=1),
    "provenance": check_object,
}  # called with the field's path and value


def _check_fields(spec: Any) -> None:
    for f in fields(spec):
        if f.name in RULES:
            RULES[f.name](f.name, getattr(spec, f.name))


# ---- the specs ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StemSpec:
    """The first convolution, with batch norm and activation."""

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    activation: str

    def __post_init__(self):
        _check_fields(self)


@dataclass(frozen=True)
class BlockSpec:
    """One bottleneck: expand, depthwise, project, and what `op` puts inside.

    mb     nothing
    frost  squeeze and concat: before the expansion, the input joined with 1/squeeze_factor as many channels computed
           from it
    add    squeeze and add: before the expansion, the input plus what a 1x1 bottleneck of 1/squeeze_factor of its
           channels makes of it
    se     squeeze and excite after the depthwise convolution (arXiv:1709.01507), through 1/squeeze_factor of the hidden
           channels
    """

    op: str
    kernel_size: int
    in_channels: int
    out_channels: int
    stride: int
    expand_ratio: int
    squeeze_factor: int  # 0 where there is no squeeze (mb)
    activation: str

    def __post_init__(self):
        _check_fields(self)
        squeezes = OPS[self.op].squeezes
        if not squeezes and self.squeeze_factor != 0:
            raise failure("squeeze_factor", self.squeeze_factor, f"0 in a {self.op!r} block, which has no squeeze")
        if squeezes and self.squeeze_factor < 2:
            raise failure("squeeze_factor", self.squeeze_factor, f"2 or more in a {self.op!r} block")

    @property
    def squeeze_channels(self) -> int:
        """Channels of the squeeze; 0 in a block without one."""
        squeezes = OPS[self.op].squeezes
        if not squeezes:
            return 0
        return round8((self.expand_ratio if squeezes == "hidden" else 1) * self.in_channels // self.squeeze_factor)

    @property
    def hidden_channels(self) -> int:
        """Channels of the depthwise convolution."""
        beside = self.squeeze_channels if OPS[self.op].concatenates else 0
        return self.expand_ratio * (self.in_channels + beside)

    @property
    def residual(self) -> bool:
        """Whether the block adds its input to its output."""
        return self.stride == 1 and self.in_channels == self.out_channels


def resolve(spec: BlockSpec) -> BlockSpec:
    """The block that is really built: a block without room for a squeeze of its input is a plain inverted residual.

    That is so where `in_channels // squeeze_factor < 8`, or where there is no expansion for the squeeze to feed.
    """
    if OPS[spec.op].squeezes != "input":
        return spec
    fits = spec.in_channels // spec.squeeze_factor >= 8 and spec.expand_ratio > 1
    return spec if fits else replace(spec, op="mb", squeeze_factor=0)


@dataclass(frozen=True)
class HeadSpec:
    """1x1 convolution to `channels`, global average pooling, dropout, 1x1 classifier with bias."""

    in_channels: int
    channels: int
    num_classes: int
    dropout: float
    activation: str

    def __post_init__(self):
        _check_fields(self)


@dataclass(frozen=True)
class Architecture:
    """A whole network, as numbers. Construction checks them, so every `Architecture` can be built.

    `provenance` says where it came from (free JSON); it plays no part in equality.
    """

    name: str
    input_size: int  # pixels, height and width
    stem: StemSpec
    blocks: tuple[BlockSpec, ...]
    head: HeadSpec
    provenance: dict = field(default_factory=dict, compare=False)

    def __post_init__(self):
        _check_fields(self)
        if not 1 <= len(self.blocks) <= MAX_BLOCKS:
            raise UserError(f"blocks: {len(self.blocks)} of them, must be 1 to {MAX_BLOCKS}")
        channels, source = self.stem.out_channels, "stem.out_channels"
        for i, block in enumerate(self.blocks):
            _check_chain(f"blocks[{i}]", block.in_channels, source, channels)
            _check_resolved(f"blocks[{i}]", block)
            channels, source = block.out_channels, f"blocks[{i}].out_channels"
        _check_chain("head", self.head.in_channels, source, channels)

    def for_input(self, size: int) -> "Architecture":
        """The same blocks for pictures of `size` pixels; only the stem's stride depends on it."""
        RULES["input_size"]("input_size", size)
        return replace(self, input_size=size, stem=replace(self.stem, stride=stem_stride(size)))

    def with_classes(self, num_classes: int) -> "Architecture":
        return replace(self, head=replace(self.head, num_classes=num_classes))

    def with_name(self, name: str) -> "Architecture":
        return replace(self, name=name)

    def sizes(self) -> tuple[int, ...]:
        """Spatial input size, in pixels, of each block and, last, of the head."""
        size = _after(self.input_size, self.stem.stride)
        sizes = [size]
        for block in self.blocks:
            sizes.append(_after(sizes[-1], block.stride))
        return tuple(sizes)

    def components(self) -> dict[str, tuple[StemSpec | BlockSpec | HeadSpec, int]]:
        """In order, by name ("stem", "blocks.0", .., "head"): (spec, spatial input size in pixels)."""
        blocks = {f"blocks.{i}": block for i, block in enumerate(self.blocks)}
        specs = {"stem": self.stem, **blocks, "head": self.head}
        return dict(zip(specs, zip(specs.values(), (self.input_size, *self.sizes()), strict=True)))

    def to_json(self) -> dict:
        return {"format": FORMAT, "version": VERSION, **asdict(self), "blocks": [asdict(b) for b in self.blocks]}

    @classmethod
    def from_json(cls, data: Any) -> "Architecture":
        """The architecture in `data`. Raises UserError naming the field, its value and what it must be."""
        check_format(data, FORMAT, VERSION, [f.name for f in fields(cls)])
        check_list("blocks", data["blocks"], 1, MAX_BLOCKS)
        return cls(
            name=data["name"],
            input_size=data["input_size"],
            stem=_spec(StemSpec, data["stem"], "stem"),
            blocks=tuple(_spec(BlockSpec, b, f"blocks[{i}]") for i, b in enumerate(data["blocks"])),
            head=_spec(HeadSpec, data["head"], "head"),
            provenance=data["provenance"],
        )

    def save(self, path: str | Path) -> None:
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "Architecture":
        """The architecture in a JSON file. Raises UserError naming the file and the field."""
        data = read_json(path)
        try:
            return cls.from_json(data)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def find_file(name: str, runs: str | Path = "runs") -> Path | None:
    """The file that `name` means: a JSON file, a run's folder, runs/NAME/arch.json or a shipped file; else None."""
    path = Path(name)
    places = (path if path.suffix == ".json" else path / "arch.json", Path(runs) / name / "arch.json")
    return next((file for file in (*places, SHIPPED / f"{name}.json") if file.is_file()), None)


def signature(spec: StemSpec | BlockSpec | HeadSpec, size: int) -> str:
    """What a part's latency depends on, as one word; `size` is its spatial input size in pixels.

    >>> signature(BlockSpec("frost", 5, 40, 40, 1, 6, 4, "relu"), 28)
    'frost_k5_e6_r4_relu_40-40_s1@28'
    """
    s = spec
    if isinstance(s, StemSpec):
        return f"stem_k{s.kernel_size}_{s.activation}_{s.in_channels}-{s.out_channels}_s{s.stride}@{size}"
    if isinstance(s, HeadSpec):
        return f"head_{s.activation}_{s.in_channels}-{s.channels}-{s.num_classes}@{size}"
    kind = f"{s.op}_k{s.kernel_size}_e{s.expand_ratio}_r{s.squeeze_factor}_{s.activation}"
    return f"{kind}_{s.in_channels}-{s.out_channels}_s{s.stride}@{size}"


def block_label(spec: BlockSpec) -> str:
    """What tells a candidate from the others of its slot.

    >>> block_label(BlockSpec("se", 3, 40, 40, 1, 6, 4, "hard_swish"))
    'se k3 e6 r4 hard_swish'
    """
    squeeze = f" r{spec.squeeze_factor}" if spec.squeeze_factor else ""
    activation = f" {spec.activation}" if spec.activation != "relu" else ""
    return f"{spec.op} k{spec.kernel_size} e{spec.expand_ratio}{squeeze}{activation}"


# ---- checks ------------------------------------------------------------------------------------------------


def _after(size: int, stride: int) -> int:
    return -(-size // stride)  # "same" padding: the size is divided and rounded up


def _check_chain(path: str, in_channels: int, source: str, channels: int) -> None:
    if in_channels != channels:
        raise failure(f"{path}.in_channels", in_channels, f"{channels}, the {source} before it")


def _check_resolved(path: str, block: BlockSpec) -> None:
    if resolve(block) != block:
        raise UserError(
            f"{path}.op: {block.op!r}, but squeeze_factor {block.squeeze_factor} with in_channels {block.in_channels} "
            f"and expand_ratio {block.expand_ratio} leaves no squeeze; write op 'mb' with squeeze_factor 0"
        )


def _spec(cls: type, data: Any, path: str):
    """`cls(**data)` with errors that say where in the file."""
    check_object(path, data, [f.name for f in fields(cls)])
    try:
        return cls(**data)
    except UserError as error:
        raise UserError(f"{path}.{error}") from error
