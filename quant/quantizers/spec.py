"""How a user writes a quantizer: `method[:bits][,option=value]..`, as in "dorefa:3" or "pact:4,alpha_grad=lsq"."""

import inspect
import math
from dataclasses import dataclass, field

from quant.errors import QuantError

FLOAT = "float"  # written in place of a spec: no quantizer
# set by the place of a quantizer, not by its user
_GIVEN = ("self", "bits", "limit", "axis", "floor", "ceiling", "signed", "seed")


@dataclass(frozen=True)
class Spec:
    """A method, its width, and its options (keyword arguments of the quantizer's class)."""

    method: str
    bits: int = 8
    options: dict = field(default_factory=dict)

    def __str__(self) -> str:
        return ",".join([f"{self.method}:{self.bits}", *(f"{k}={v}" for k, v in self.options.items())])


def parse_spec(text: str) -> Spec:
    """Read a spec; 8 bits where it names none. QuantError where it is none. Its use checks method and options.

    Files of an older version may say `levels=signed`, which is what every method does, or `levels=unsigned`, which is
    `unsigned=True` of int8 activations.

    >>> parse_spec("gdrq:3,k=2.5,group_size=4")
    Spec(method='gdrq', bits=3, options={'k': 2.5, 'group_size': 4})
    """
    if not isinstance(text, str) or not text:
        raise QuantError(f"{text!r} is no quantizer: write method:bits, as in 'int8:8' or 'pact:4,alpha_grad=lsq'")
    head, *options = (part.strip() for part in text.split(","))
    method, _, bits = head.partition(":")
    if bits and not (bits.isascii() and bits.isdecimal()):
        raise QuantError(f"{text!r}: {bits!r} is no number of bits")
    pairs = [option.partition("=") for option in options]
    bad = next((name for name, sign, value in pairs if not (name and sign and value)), None)
    if bad is not None:
        raise QuantError(f"{text!r}: write options as name=value, after commas")
    values = {name: _value(value) for name, _, value in pairs}
    return Spec(method, int(bits or 8), _without_levels(text, method, int(bits or 8), values))


def _without_levels(text: str, method: str, bits: int, options: dict) -> dict:
    """The options, an older version's `levels` among them replaced by what says the same now."""
    if "levels" not in options or method not in ("int8", "gdrq", "qil", "pact"):
        return options
    rest = {name: value for name, value in options.items() if name != "levels"}
    if options["levels"] == "seed":
        wider = Spec(method, bits + 1, rest)
        more = f"{str(wider)!r} has the same levels on either side of zero" if bits < 8 else "8 bits are the most"
        raise QuantError(f"{text!r}: the option levels=seed is gone; {more}")
    if options["levels"] == "unsigned":
        if method != "int8":
            raise QuantError(f"{text!r}: only int8 has the option levels=unsigned; leave it out")
        return rest | {"unsigned": True}
    return rest if options["levels"] == "signed" else options


def make(table: dict[str, type], kind: str, spec: Spec, **given):
    """A quantizer by a spec.

    Args:
        table: method -> class.
        kind: what the classes quantize, for messages.
        spec: its options are checked against the arguments of the class.
        given: arguments that the place of the quantizer sets.

    Raises:
        QuantError: the table lacks the method, or the method the option, the value or the width.
    """
    if spec.method not in table:
        raise QuantError(f"{str(spec)!r}: {spec.method!r} does not quantize {kind}; choose from {', '.join(table)}")
    quantizer = table[spec.method]
    known = {name: p for name, p in inspect.signature(quantizer.__init__).parameters.items() if name not in _GIVEN}
    for name, value in spec.options.items():
        if name not in known:
            raise QuantError(
                f"{str(spec)!r}: {spec.method} has no option {name!r}; it has {', '.join(known) or 'none'}"
            )
        if not _fits(value, known[name].annotation):
            kind = getattr(known[name].annotation, "__name__", known[name].annotation)
            raise QuantError(f"{str(spec)!r}: {name} is {value!r}, must be of type {kind} and finite")
    try:
        return quantizer(spec.bits, **given, **spec.options)
    except (TypeError, QuantError) as error:
        raise QuantError(f"{str(spec)!r}: {error}") from error


def _fits(value, annotation) -> bool:
    """Whether an option's value is of its annotated type, and finite; whole numbers may stand for float."""
    if isinstance(value, bool):
        return annotation is bool
    number = float(value) if isinstance(value, int) and isinstance(0.0, annotation) else value
    return isinstance(number, annotation) and not (isinstance(number, float) and not math.isfinite(number))


def _value(text: str):
    """An int, a float, True, False or None where `text` reads as one, else the text."""
    words = {"true": True, "false": False, "none": None}
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            pass
    return words.get(text.lower(), text)
