"""The commands that fix a table: they measure what is missing, or measure its sections again. Errors print them."""

import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from latency_lut.sections import Section


def build_command(
    meta: Mapping,
    path: str | Path,
    space: str = "frostnet",
    width: float = 1.0,
    input_size: Iterable[int] | None = None,
    num_classes: Iterable[int] | None = None,
) -> str:
    """The command line that measures (what is missing of) a space into a table.

    Args:
        meta: "engine", "threads" and "batch" (default: 1) to measure with.
        path: the table.
        input_size: pixels, one or several (default: those of the program).
        num_classes: class counts of the heads, one or several (default: those of the program).
    """
    words = ["python", "-m", "latency_lut", "--engine", meta["engine"], "--output", str(path)]
    optional = (
        ("--threads", meta["threads"], 1),
        ("--batch", meta.get("batch", 1), 1),
        ("--space", space, "frostnet"),
        ("--width", f"{width:g}", "1"),
    )
    for flag, value, default in optional:
        words += [flag, str(value)] if value != default else []
    for flag, values in (("--input-size", input_size), ("--num-classes", num_classes)):
        words += [flag, *map(str, values)] if values is not None else []
    return shlex.join(words)


def heads(section: Section, keys: Iterable[str]) -> dict[str, int]:
    """Class counts of those of `keys` that are heads of a section's space, by key."""
    own = next((network.parts[-1] for network in section.networks.values()), "")
    before, after = own.rpartition("-")[0] + "-", "@" + own.rpartition("@")[2]
    alike = {
        key: key.removeprefix(before).removesuffix(after)
        for key in keys
        if key.startswith(before) and key.endswith(after)
    }
    return {key: int(count) for key, count in alike.items() if count.isdecimal()}


@dataclass(frozen=True)
class Advice:
    """The commands that fix one table, as texts; several are joined by "&&".

    Attributes:
        meta: engine, threads and batch to measure with.
        path: the table that the commands write.
        sections: what to measure.
        keys: of the table's entries, which tell the class counts of further heads.
    """

    meta: Mapping
    path: Path
    sections: Collection[Section]
    keys: Collection[str]

    def measure(self, space: str, width: float, input_size: int, num_classes: int) -> str:
        """Measures what is missing of a space at one input size."""
        return build_command(self.meta, self.path, space, width, (input_size,), (num_classes,))

    def again(self) -> str:
        """Measures all sections: one command for each space, width and choice of class counts."""
        groups: dict[tuple, list[int]] = {}
        for section in self.sections:
            counts = dict.fromkeys((section.num_classes, *sorted(heads(section, self.keys).values())))
            groups.setdefault((section.space, section.width, tuple(counts)), []).append(section.input_size)
        commands = [
            build_command(self.meta, self.path, space, width, sizes, counts)
            for (space, width, counts), sizes in groups.items()
        ]
        return " && ".join(commands or [build_command(self.meta, self.path)])

    def anew(self) -> str:
        """Measures all sections into a new file beside the table."""
        return replace(self, path=self.path.with_stem(f"{self.path.stem}_new")).again()

    def add_sizes(self, sizes: Iterable[int]) -> str:
        """Adds input sizes to every space and width, with their class count where they share one."""
        groups: dict[tuple, list[Section]] = {}
        for section in self.sections:
            groups.setdefault((section.space, section.width), []).append(section)
        if not groups:
            return build_command(self.meta, self.path, input_size=sizes)
        commands = []
        for (space, width), group in groups.items():
            counts = {section.num_classes for section in group}
            missing = [size for size in sizes if size not in {section.input_size for section in group}]
            if missing:
                shared = counts if len(counts) == 1 else None
                commands.append(build_command(self.meta, self.path, space, width, missing, shared))
        return " && ".join(commands)

    def fix(self, field: str, here: Mapping) -> str:
        """What to do about a `field` of machine.FINGERPRINT in which the table differs from `here`."""
        if field in ("engine", "threads", "batch"):
            more = f"_batch{here['batch']}" if here["batch"] > 1 else ""
            other = self.path.with_name(f"{here['engine']}_{here['threads']}{more}.json")
            return f"measure a table for it: {replace(self, meta=here, path=other).again()}"
        again = f"measure it anew: {self.anew()}"
        if field == "weight_qmax":
            again += (
                "; a search would quantize otherwise than the table's machine, so search where "
                "the engine has the same range"
            )
        return again + ("; or pass --allow-other-cpu to use that CPU's figures" if field in ("cpu", "flags") else "")
