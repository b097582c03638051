"""Markdown tables, and pages in which a program replaces only what stands between its markers."""

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.errors import UserError
from common.files import read_bytes, write_bytes

MISSING = "-"
_RULES = {"left": ":---", "center": ":---:", "right": "---:"}


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        header: Its title.
        value: The key of a row, or a function of it. Several numbers (one per seed) are shown as mean ± SD (n).
        format: Format spec of a number (".1f").
        scale: Factor of a number as it is shown: 100 for percent.
        unit: Text behind a number (" %").
        align: Alignment.
        best: Which number of the column is bold.
    """

    header: str
    value: str | Callable[[Mapping], Any]
    format: str = ""
    scale: float = 1.0
    unit: str = ""
    align: Literal["left", "center", "right"] = "right"
    best: Literal["max", "min"] | None = None

    def of(self, row: Mapping) -> Any:
        return self.value(row) if callable(self.value) else row.get(self.value)

    def text(self, value: Any) -> str:
        """A value as a cell shows it."""
        if _is_series(value):
            return mean_sd(value, self.format, self.scale, self.unit)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return f"{_scaled(value, self.scale):{self.format}}{self.unit}"
        return MISSING if value is None else escape(str(value))


def table(rows: Sequence[Mapping], columns: Sequence[Column]) -> str:
    """A Markdown table. Values that are None or missing are shown as "-"."""
    texts = [_column(rows, column) for column in columns]
    lines = [[escape(c.header) for c in columns], [_RULES[c.align] for c in columns], *zip(*texts)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mean_sd(values: Sequence[float | None], format: str = ".1f", scale: float = 1.0, unit: str = "") -> str:
    """The mean, the standard deviation (from two values on) and the number of values: "53.4 ± 2.1 (2)"."""
    known = [_scaled(value, scale) for value in values if value is not None]
    if not known:
        return MISSING
    spread = f" ± {statistics.stdev(known):{format}}" if len(known) > 1 else ""
    return f"{statistics.mean(known):{format}}{spread}{unit} ({len(known)})"


def escape(text: str) -> str:
    """`text` so that it stays inside one cell of a table."""
    return re.sub(r"(?<!\\)\|", r"\\|", text).replace("\n", " ")


def splice(page: str, name: str, content: str) -> str:
    """`page` with new content between `<!-- name -->` and `<!-- end of name -->`; the rest stays as it is.

    Raises:
        UserError: If one of the markers is missing, or there are several of it.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    for marker in (begin, end):
        if page.count(marker) != 1:
            raise UserError(f"{marker}: found {page.count(marker)} times, must stand in the page once; put it back")
    before, rest = page.split(begin)
    if end not in rest:
        raise UserError(f"{end}: stands before {begin}; exchange them")
    return f"{before}{begin}\n{content.strip()}\n{end}{rest.split(end)[1]}"


def write_page(path: str | Path, template: str, sections: Mapping[str, str]) -> None:
    """Replace the sections of a page and keep what was written by hand. A page that is not there starts as `template`.

    Raises:
        UserError: If a marker of a section is missing; the page stays as it is.
    """
    page = read_bytes(path).decode() if Path(path).exists() else template
    for name, content in sections.items():
        try:
            page = splice(page, name, content)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    write_bytes(path, page.encode())


def _column(rows: Sequence[Mapping], column: Column) -> list[str]:
    values = [column.of(row) for row in rows]
    ranked = [_rank(value) for value in values]
    known = [number for number in ranked if number is not None]
    best = {"max": max, "min": min}[column.best](known) if column.best and known else None
    texts = [column.text(value) for value in values]
    return [f"**{t}**" if best is not None and number == best else t for t, number in zip(texts, ranked)]


def _rank(value: Any) -> float | None:
    """The number by which values of a column are compared."""
    if _is_series(value):
        known = [v for v in value if v is not None]
        return statistics.mean(known) if known else None
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _is_series(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _scaled(value: float, scale: float) -> float:
    return value if scale == 1 else value * scale  # an int stays one
