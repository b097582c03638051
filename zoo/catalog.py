"""Networks by name: what the catalogs of the four folders have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, final

from common.errors import UserError
from nas.arch import RULES


@final
@dataclass(frozen=True)
class Catalog:
    """The networks of one kind: "NAME" for those that stand alone, "HEAD:BACKBONE" for heads on a backbone.

    A row is whatever the folder's `build` needs to make the network.
    """

    kind: str  # for messages: "detector"
    heads: Mapping[str, Any]
    alone: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        return (*(f"{head}:<backbone>" for head in self.heads), *self.alone)

    def knows(self, name: str) -> bool:
        """Whether `name` has one of the forms; whether the backbone exists is for `zoo.backbones` to say."""
        head, _, backbone = name.partition(":")
        return name in self.alone or (head in self.heads and backbone != "")

    def find(self, name: str) -> tuple[Any, str]:
        """The row of a name, and the name of its backbone, "" where it stands alone. Raises UserError."""
        if not self.knows(name):
            raise UserError(f"arch: {name!r} is no {self.kind}; the forms are {', '.join(self.names)}")
        head, _, backbone = name.partition(":")
        return {**self.alone, **self.heads}[head], backbone


def near(name: str, known: Sequence[str]) -> str:
    """For messages: up to five known names that look like `name`, the first ones where none does."""
    return ", ".join(get_close_matches(name, known, 5, 0.5) or known[:5])


def check(**values: Any) -> None:
    """Raise UserError for the first value that an architecture's field of that name could not hold."""
    for field, value in values.items():
        RULES[field](field, value)
