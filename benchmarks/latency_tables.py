"""The published latency and size tables of FrostNet and its rivals, measured anew on this CPU: 224 px, batch 1, one
thread.

    PYTHONPATH=. python benchmarks/latency_tables.py                    # about 15 minutes on a quiet machine
    PYTHONPATH=. python benchmarks/latency_tables.py --minutes 10       # as far as that goes; the same command goes on
    PYTHONPATH=. python benchmarks/latency_tables.py --minutes 0        # measures nothing: the page anew from the JSON,
    of any machine

Writes docs/results/latency.{json,md,png} after each network. What benchmarks/inference_memory.py found goes into the
page too. The last line is JSON: the bars that are met, and where INT8 is slower than float.
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

import frostnet
import quant
from benchmarks.published import PAPER, README
from common.cli import guard, option, parse
from common.errors import UserError
from common.files import plain, read_json, write_bytes
from latency_lut.bench.contenders import EAGER, FLOATS, FROZEN, SESSION
from latency_lut.bench.measure import Job, measure
from latency_lut.bench.report import GREYS
from latency_lut.bench.results import Results, file_prefix, latency_ms, median_ms
from latency_lut.commands.bench import BenchConfig, jobs
from latency_lut.timing import BEST
from nas.report.style import INK, LINES
from nas.report.style import save as save_figure

TORCH_ENGINES = ("fbgemm", "qnnpack", "x86", "onednn")
ORT = "onnxruntime"
NAMES = (*FLOATS, *TORCH_ENGINES, ORT)
OWN_FLOAT = dict.fromkeys(TORCH_ENGINES, FROZEN) | {ORT: SESSION}  # the float network that the same runtime runs

SMALL_NETWORKS = (
    "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0",
    "mobilenet_v2", "mobilenet_v2_relu",
    "mobilenet_v3_large", "mobilenet_v3_large_relu", "mobilenet_v3_small", "mobilenet_v3_small_relu",
    "ghostnet_0_5", "ghostnet_1_0", "ghostnet_1_3",
    "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2",
)  # fmt: skip
LARGE_NETWORKS = ("vgg16_bn", "resnext101_32x8d")  # seconds a picture on the slowest engine: few rounds
NETWORKS = (*frostnet.PUBLISHED, *SMALL_NETWORKS, "resnet18", "resnet50", *LARGE_NETWORKS)
JUDGED = ("frostnet_small_1_0", "frostnet_base_1_0", "frostnet_large_1_0")
TOP = 3  # operations shown of a profile
CAUSES = """Known causes: qnnpack is written for ARM and slow on x86 by design. fbgemm computes depthwise convolutions whose channels are no
multiple of 8 about a hundred times more slowly than others, and x86 hands it those of more than 100 channels: ShuffleNets and GhostNets
have such; where this page was measured before `quant/executors/fbgemm_forms.py` came, which gives it other forms, the figures are the old
ones. Functions without an integer kernel cost a conversion each way."""


@dataclass(frozen=True)
class TablesConfig:
    networks: tuple[str, ...] = option(NETWORKS, "networks, in the order of measuring")
    rounds: int = option(12, "rounds; the latency is the best of them")
    large_rounds: int = option(4, f"rounds of {' and '.join(LARGE_NETWORKS)}")
    input_size: int = option(224, "pixels")
    minutes: float = option(math.inf, "begin no further network after so many minutes; 0: only write the page anew")
    output: str = option(
        "docs/results/latency", "beginning of the names of the files to write: .json, .md and .png are added"
    )
    restart: bool = option(False, "start over where the output file exists")

    def __post_init__(self):
        for field in ("rounds", "large_rounds"):
            if not BEST <= getattr(self, field) <= 1000:
                raise UserError(f"{field}: {getattr(self, field)}, must be {BEST} to 1000")
        file_prefix(self.output)

    def rounds_of(self, network: str) -> int:
        return self.large_rounds if network in LARGE_NETWORKS else self.rounds


def main(argv=None) -> dict:
    """Measure what is missing, write the page; returns what the last line says."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "--restart" in words:  # apart, so that resuming does not start over again
        guard(_start_over)(words)
    return _measure([word for word in words if word != "--restart"])


def _start_over(words: list[str]) -> None:
    config = _parsed(words)
    planned(config)  # a mistyped name must not cost the old results
    Results.new(config.output).save()


def planned(config: TablesConfig) -> list[Job]:
    return jobs(BenchConfig(config.networks, input_size=config.input_size))


def _parsed(words: list[str]) -> TablesConfig:
    return parse(TablesConfig, words, "latency_tables.py", __doc__)


@guard(errors=(quant.QuantError,))
def _measure(words: list[str]) -> dict:
    config = _parsed(words)
    started = time.monotonic()
    for name in NAMES[len(FLOATS) :]:
        if name not in quant.available():
            print(f"note: the engine {name} does not run here; its columns stay empty")
    results = Results.open(config.output, any_machine=config.minutes <= 0)
    todo = planned(config)
    for number, job in enumerate(todo, 1):
        rounds = config.rounds_of(job.arch)
        if results.find(job, rounds, NAMES, False) is None and time.monotonic() - started < 60 * config.minutes:
            results.put(measure(job, NAMES, rounds, worth_a_profile, f"{job.arch} ({number} of {len(todo)})"))
            write(results, config, len(todo))
            print(f"{(time.monotonic() - started) / 60:5.1f} min  {one_line(results.results[-1])}", flush=True)
    write(results, config, len(todo))
    summary = summarized(shown_of(results, config), len(todo))
    print(json.dumps(plain(summary)))
    return summary


# ---- what the figures say ----------------------------------------------------------------------------------


def times(result: dict, statistic: Callable[[dict], float | None] = latency_ms) -> dict[str, float]:
    """Milliseconds of the contenders that ran: the minimum over the rounds, or another statistic of a row."""
    return {row["name"]: ms for row in result["rows"] if (ms := statistic(row))}


def best(ms: dict[str, float], names: Iterable[str]) -> float:
    """The least of some contenders' milliseconds; NaN where none of them ran."""
    return min((ms[name] for name in names if name in ms), default=math.nan)


def ratio(ms: dict[str, float], names: Iterable[str], baseline: str) -> float:
    """The fastest of `names` as a share of a baseline."""
    return best(ms, names) / ms.get(baseline, math.nan)


def slower(rows: list[dict]) -> dict[str, float]:
    """INT8 engines that take longer than the float network on the same runtime -> how many times as long."""
    ms = times({"rows": rows})
    return {
        name: ms[name] / ms[own] for name, own in OWN_FLOAT.items() if name in ms and ms[name] > ms.get(own, math.inf)
    }


def fastest_is_float(rows: list[dict]) -> bool:
    ms = times({"rows": rows})
    return best(ms, FLOATS) < best(ms, OWN_FLOAT)


def worth_a_profile(rows: list[dict]) -> set[str]:
    """The engines that are slower than their own float; where float is fastest of all, the fastest of either kind too."""
    ms, found = times({"rows": rows}), set(slower(rows))
    if fastest_is_float(rows):
        found |= {min((name for name in names if name in ms), key=ms.get) for names in (FLOATS, OWN_FLOAT)}
    return found


def bars(results: list[dict]) -> list[dict]:
    """What FrostNets of width 1 should reach: {"network", "bar", "value", "minimum", "limit", "met"}.

    value: of latencies, from the medians of the rounds; it decides. minimum: the same from their minima; None for what
    has no rounds.
    """
    found = []
    for result in (r for r in results if r["arch"] in JUDGED):
        rows = {row["name"]: row for row in result["rows"] if not row["reason"]}
        medians, minima = times(result, median_ms), times(result)
        sizes = {name: row["file_bytes"] for name, row in rows.items()}
        values = [
            (bar, ratio(medians, names, own), round(ratio(minima, names, own), 3), limit)
            for bar, names, own, limit in (
                ("best torch engine / eager float", TORCH_ENGINES, EAGER, 0.40),
                ("best torch engine / frozen float", TORCH_ENGINES, FROZEN, 0.75),
                ("onnxruntime INT8 / float", (ORT,), SESSION, 0.90),
            )
        ] + [
            ("convolutions left float", max((row["float_convs"] for row in rows.values()), default=math.nan), None, 0),
            ("frozen INT8 file / float file", ratio(sizes, TORCH_ENGINES, EAGER), None, 0.28),
            ("int8.onnx / float file", ratio(sizes, (ORT,), EAGER), None, 0.28),
        ]
        for bar, value, minimum, limit in values:
            judged = {"value": round(value, 3), "minimum": minimum, "limit": limit, "met": value <= limit}
            found.append({"network": result["arch"], "bar": bar, **judged})
    return found


def summarized(results: list[dict], asked: int) -> dict:
    judged = bars(results)
    return {
        "networks": len(results),
        "planned": asked,
        "bars_met": sum(b["met"] for b in judged),
        "bars": len(judged),
        "missed": [b for b in judged if not b["met"]],
        "fastest_is_float": [r["arch"] for r in results if fastest_is_float(r["rows"])],
        "slower_than_own_float": {
            r["arch"]: {k: round(v, 2) for k, v in s.items()} for r in results if (s := slower(r["rows"]))
        },
    }


def one_line(result: dict) -> str:
    ms = times(result)
    return f"{result['arch']}: " + ", ".join(f"{name} {ms[name]:.2f}" for name in NAMES if name in ms) + " ms"


# ---- the page ----------------------------------------------------------------------------------------------


def write(results: Results, config: TablesConfig, asked: int) -> None:
    """The JSON, and page and picture of the networks that are asked for, in their order."""
    results.results.sort(
        key=lambda r: config.networks.index(r["arch"]) if r["arch"] in config.networks else len(config.networks)
    )
    shown = shown_of(results, config)
    if shown:
        save_figure(figure(shown), f"{results.prefix}.png")
        write_bytes(f"{results.prefix}.md", page(results, shown, config, asked).encode())
    results.save()


def shown_of(results: Results, config: TablesConfig) -> list[dict]:
    """The results of the networks that are asked for, one picture on one thread."""
    condition = (config.input_size, 1, 1)
    return [
        r
        for r in results.results
        if r["arch"] in config.networks and (r["input_size"], r["threads"], r["batch"]) == condition
    ]


def page(results: Results, shown: list[dict], config: TablesConfig, asked: int) -> str:
    parts = [head(results, shown, config, asked), latency_table(shown), slow_section(shown), size_table(shown)]
    parts += [ancestors_section(shown), bars_section(shown), memory_section(Path(f"{results.prefix}_memory.json"))]
    return "\n\n".join(part for part in parts if part) + "\n"


def head(results: Results, shown: list[dict], config: TablesConfig, asked: int) -> str:
    meta, seen = results.meta, [r["seen"] for r in shown]
    load = max((s["load"] for s in seen if s["load"] is not None), default=math.nan)
    steal = max((s["steal"] for s in seen if s["steal"] is not None), default=math.nan)
    unfinished = f"**{len(shown)} of {asked} networks so far.** " if len(shown) < asked else ""
    vnni = "with VNNI" if any("vnni" in flag for flag in meta["flags"]) else "without VNNI"
    machine = f"{meta['cpu']} ({vnni}), {meta['cores']} cores; torch {meta['torch']}, onnxruntime {meta['onnxruntime']}"
    name, least, most = results.prefix.name, min(r["rounds"] for r in shown), max(r["rounds"] for r in shown)
    rounds = f"{most} interleaved rounds" + f" ({least} for the largest networks)" * (least < most)
    return "\n\n".join(
        (
            "# Latency and size of whole networks, float and INT8",
            f"{unfinished}Written by `PYTHONPATH=. python benchmarks/latency_tables.py`; the numbers are in [{name}.json]({name}.json).",
            f"Machine: {machine}. {config.input_size} px, batch 1, one thread, the thread's CPU time; the minimum over {rounds} of each "
            f"round's median, and for the bars the median of the rounds. Highest load {load:.1f}, highest steal {steal:.1%}. Weights are "
            "random: they change no latency. INT8 networks are in the form that is shipped, pictures in and logits out as real numbers.",
            "Three float baselines. *eager* is torch's modules as trained, channels_last, batch norm unfolded: what papers often divide "
            "by, and not what anyone should deploy. *frozen* is the same with batch norm folded, traced and frozen. *float ort* is an "
            "onnxruntime session. A cut against *eager* alone flatters INT8.",
            f"![latencies]({name}.png)",
        )
    )


def latency_table(shown: list[dict]) -> str:
    columns = [
        "network",
        "params M",
        "MACs M",
        "eager",
        "frozen",
        "float ort",
        *TORCH_ENGINES,
        "ort",
        "float convs",
        "vs eager",
        "vs frozen",
        "vs float ort",
    ]
    lines = []
    for result in shown:
        ms = times(result)
        quickest = best(ms, OWN_FLOAT)
        convs = max((row["float_convs"] for row in result["rows"] if not row["reason"]), default=0)
        cuts = [cut(quickest, ms.get(name)) for name in FLOATS]
        cells = [f"{ms[name]:.2f}" if name in ms else "-" for name in NAMES]
        cells = [f"**{cell}**" if ms.get(name) == quickest else cell for cell, name in zip(cells, NAMES)]
        lines.append(
            [result["arch"], f"{result['params'] / 1e6:.2f}", f"{result['macs'] / 1e6:.0f}", *cells, str(convs), *cuts]
        )
    failed = [f"- {r['arch']}, {row['name']}: {row['reason']}" for r in shown for row in r["rows"] if row["reason"]]
    text = [
        "## Latency in milliseconds",
        table(columns, lines),
        "Bold: the fastest INT8 engine; the last columns are its cut against each baseline (a plus sign: it is slower). "
        "*float convs*: convolutions that an INT8 network still computes in float.",
    ]
    return "\n\n".join([*text, *(["Without a figure:", "\n".join(failed)] if failed else [])])


def slow_section(shown: list[dict]) -> str:
    lost = [r["arch"] for r in shown if fastest_is_float(r["rows"])]
    text = ["## Where INT8 is slower than float"]
    text.append(
        f"The fastest float form beats every INT8 engine on: {', '.join(lost)}."
        if lost
        else "On every network the fastest INT8 engine beats every float form."
    )
    lines = [
        [result["arch"], engine, f"{times_slower:.2f}", where(result["profile"].get(engine, []))]
        for engine in OWN_FLOAT
        for result in shown
        for name, times_slower in slower(result["rows"]).items()
        if name == engine
    ]
    if lines:
        text.append(
            "Engines that are slower than the float network on the same runtime (torch's engines against *frozen*), and what they spend "
            "their time on:"
        )
        text.append(table(["network", "engine", "x its float", "longest operations"], lines))
        text.append(CAUSES)
    return "\n\n".join(text)


def where(profile: list[dict]) -> str:
    return ", ".join(f"{row['op']} x{row['calls']} {100 * row['share']:.0f} %" for row in profile[:TOP]) or "-"


def size_table(shown: list[dict]) -> str:
    lines = []
    for result in shown:
        sizes = {row["name"]: row["file_bytes"] for row in result["rows"] if not row["reason"]}
        torch_file, onnx_file = best(sizes, TORCH_ENGINES), sizes.get(ORT, math.nan)
        shares = [percent(size / sizes.get(EAGER, math.nan)) for size in (torch_file, onnx_file)]
        lines.append(
            [
                result["arch"],
                *(megabytes(size) for size in (sizes.get(EAGER, math.nan), torch_file, onnx_file)),
                *shares,
            ]
        )
    columns = ["network", "float file", "INT8 frozen", "int8.onnx", "frozen / float", "onnx / float"]
    return "\n\n".join(
        ["## Files in megabytes", table(columns, lines), "The float file is the saved state dict; 1 MB is 10^6 bytes."]
    )


def ancestors_section(shown: list[dict]) -> str:
    first = [_beside_readme(r, *README[r["arch"]]) for r in shown if r["arch"] in README]
    second = [_beside_paper(r, *PAPER[r["arch"]]) for r in shown if r["arch"] in PAPER]
    if not first and not second:
        return ""
    text = [
        "## Beside the published numbers",
        "Their machines differ from this one and from each other: compare the cuts, not the milliseconds.",
    ]
    if first:
        columns = ["network", "float ms", "fbgemm ms", "cut", "qnnpack cut", "file"]
        columns += ["eager here", "fbgemm here", "cut", "qnnpack cut", "cut against frozen", "file"]
        text.append(
            "The README of the quantized classification zoo (AMD Ryzen Threadripper 1950X, 4 threads, PyTorch 1.6; float unfolded, so that "
            "its cut contains what folding gains; *file*: INT8 / float), and this machine, one thread:"
        )
        text.append(table(columns, first))
    if second:
        columns = [
            "network",
            "float ms",
            "INT8 ms",
            "cut",
            "eager here",
            "best torch here",
            "cut",
            "cut against frozen",
        ]
        cuts = [
            1 - PAPER[r["arch"]][1] / PAPER[r["arch"]][0]
            for r in shown
            if r["arch"] in PAPER and r["arch"] in frostnet.PUBLISHED
        ]
        mean = f" Its FrostNets' mean cut is {percent(statistics.mean(cuts))}." if cuts else ""
        text.append(
            f"The comparison of networks in FrostNet's paper (machine, threads and engine not stated), and this machine.{mean}"
        )
        text.append(table([*columns, "ort against float ort"], second))
    return "\n\n".join(text)


def _beside_readme(
    result: dict, float_mb: float, int8_mb: float, float_ms: float, fbgemm_ms: float, qnnpack_ms: float
) -> list[str]:
    ms, sizes = times(result), {row["name"]: row["file_bytes"] for row in result["rows"] if not row["reason"]}
    theirs = [
        f"{float_ms}",
        f"{fbgemm_ms}",
        cut(fbgemm_ms, float_ms),
        cut(qnnpack_ms, float_ms),
        percent(int8_mb / float_mb),
    ]
    fbgemm, eager = ms.get("fbgemm", math.nan), ms.get(EAGER, math.nan)
    ours = [
        f"{eager:.1f}",
        f"{fbgemm:.1f}",
        cut(fbgemm, eager),
        cut(ms.get("qnnpack"), eager),
        cut(fbgemm, ms.get(FROZEN)),
    ]
    return [result["arch"], *theirs, *ours, percent(ratio(sizes, TORCH_ENGINES, EAGER))]


def _beside_paper(result: dict, float_ms: float, int8_ms: float) -> list[str]:
    ms = times(result)
    quickest, eager = best(ms, TORCH_ENGINES), ms.get(EAGER, math.nan)
    ours = [
        f"{eager:.1f}",
        f"{quickest:.1f}",
        cut(quickest, eager),
        cut(quickest, ms.get(FROZEN)),
        cut(ms.get(ORT), ms.get(SESSION)),
    ]
    return [result["arch"], f"{float_ms}", f"{int8_ms}", cut(int8_ms, float_ms), *ours]


def bars_section(shown: list[dict]) -> str:
    lines = [
        [
            b["network"],
            b["bar"],
            _figure(b["value"]),
            _figure(b["minimum"]),
            f"{b['limit']:g}",
            "met" if b["met"] else "**missed**",
        ]
        for b in bars(shown)
    ]
    note = "Latencies are judged by the median of the interleaved rounds: *value* decides. *minimum*: the same from their minima."
    return (
        "\n\n".join(["## Bars", table(["network", "bar", "value", "minimum", "limit", ""], lines), note])
        if lines
        else ""
    )


def _figure(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:g}"


def memory_section(path: Path) -> str:
    """The table of benchmarks/inference_memory.py, where it has been run."""
    if not path.exists():
        return ""
    data = read_json(path)
    try:
        lines = [
            [r["network"], str(r["batch"]), r["form"], f"{r['peak_mib']:.1f}", f"{r['running_mib']:.1f}"]
            for r in data["rows"]
        ]
        repeats = data["repeats"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not what benchmarks/inference_memory.py writes ({error!r}); run it again") from error
    note = (
        "Resident memory in MiB above what the process held before it loaded the network, each in a process of its own, median of "
        f"{repeats}: *peak* from loading on, *running* after the second inference. Written by `benchmarks/inference_memory.py`."
    )
    return "\n\n".join(
        ["## Memory of an inference", table(["network", "batch", "form", "peak", "running"], lines), note]
    )


def table(columns: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *lines))


def cut(ms: float | None, baseline: float | None) -> str:
    """How much less than the baseline, in percent, with a minus sign; "-" where either is missing."""
    share = (ms or math.nan) / (baseline or math.nan) - 1
    return "-" if math.isnan(share) else f"{100 * share:+.0f} %"


def percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def megabytes(size: float) -> str:
    return "-" if math.isnan(size) else f"{size / 1e6:.2f}"


# ---- the picture -------------------------------------------------------------------------------------------


def figure(shown: list[dict]) -> Figure:
    """A line for each network, a mark for each contender, latency on a logarithmic axis."""
    chart = Figure(figsize=(9, 1.4 + 0.27 * len(shown)), layout="constrained")
    ax = chart.subplots()
    looks = [("|", "#cdd5dc"), ("|", "#77838f"), ("|", INK), *zip("v^<>o", (*LINES[:4], LINES[5]))]
    known = [times(result) for result in shown]
    for y, ms in enumerate(known):
        if ms:
            ax.plot([min(ms.values()), max(ms.values())], [y, y], color=GREYS[0], lw=0.8, zorder=1)
    for name, (marker, colour) in zip(NAMES, looks):
        label = {
            EAGER: "float eager",
            FROZEN: "float frozen",
            SESSION: "float onnxruntime",
            ORT: "INT8 onnxruntime",
        }.get(name, f"INT8 {name}")
        at = [(ms[name], y) for y, ms in enumerate(known) if name in ms]
        look = {"s": 120, "lw": 2} if marker == "|" else {"s": 26, "lw": 0}
        ax.scatter([ms for ms, _ in at], [y for _, y in at], marker=marker, color=colour, label=label, zorder=2, **look)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_yticks(range(len(shown)), [r["arch"] for r in shown], fontsize=8)
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.set_xlabel("ms a picture, one thread, logarithmic", fontsize=9, color=INK)
    ax.tick_params(labelsize=8, colors=INK)
    ax.grid(axis="x", which="both", color="#dde3e9", lw=0.5)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    chart.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return chart


if __name__ == "__main__":
    main()
