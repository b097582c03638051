"""The page of benchmarks/dense_networks.py: tables, and sentences that the figures decide."""

import math
import statistics
from collections.abc import Mapping

from benchmarks.latency_tables import ORT, TORCH_ENGINES, best, fastest_is_float, slower, table, times, where
from latency_lut.bench.contenders import FLOATS, FROZEN, SESSION
from latency_lut.bench.results import median_ms
from quant.integer.parity import MAX_LAYER_STEPS

INT8 = (*TORCH_ENGINES, ORT)
NAMES = (FROZEN, SESSION, *INT8)
AFTER = "after"  # the row of what comes behind the network
# Parameters and MACs in millions of what StatAssist's authors (arXiv:2006.09679) measured, counted on their code: 21
# classes with the background, 300 px for detection, 512 px for segmentation
ANCESTORS = {
    "ssdlite:mobilenet_v2": (2.277 + 2.334, 998 + 688),
    "tdsod": (0.824 + 0.866, 1066 + 252),
    "lraspp:mobilenet_v2": (1.702, 7180),
    "espnet": (0.604, 3830),
    "espnetv2_x0_5": (0.233, 486),
    "espnetv2_x2_0": (3.429, 6080),
}

Networks = Mapping[str, dict]


# ---- what the figures say ----------------------------------------------------------------------------------


def timed_rows(found: dict) -> list[dict]:
    """The rows of the network's own forms."""
    return [row for row in found["latency"] if row["name"] != AFTER]


def milliseconds(found: dict) -> dict[str, float]:
    return times({"rows": found["latency"]})


def int8_over_float(found: dict, statistic=None) -> float:
    """The fastest INT8 form as a share of the fastest float form; NaN where either is missing."""
    ms = times({"rows": timed_rows(found)}, *([statistic] if statistic else []))
    return best(ms, INT8) / best(ms, FLOATS)


def worst_steps(found: dict, engine: str) -> float:
    """The largest difference of one layer of any part on an engine, in steps; NaN where it was not compared."""
    return max(
        (row["layer_steps"] for row in found["parity"].get(engine, {}).get("parts", {}).values()), default=math.nan
    )


def failures(found: dict) -> dict[str, str]:
    """What did not work, with the reason."""
    rows = {f"parity {engine}": row for engine, row in found["parity"].items()}
    rows |= {f"ONNX {part}".strip(): row for part, row in found["onnx"].items()}
    rows |= {f"latency {row['name']}": row for row in found["latency"]}
    return {what: row["reason"] for what, row in rows.items() if row.get("reason")}


def summarized(networks: Networks, asked: int) -> dict:
    steps = [worst_steps(found, engine) for found in networks.values() for engine in INT8]
    worst = max((s for s in steps if not math.isnan(s)), default=None)
    ratios = {
        name: round(ratio, 3) for name, found in networks.items() if not math.isnan(ratio := int8_over_float(found))
    }
    return {
        "networks": len(networks),
        "planned": asked,
        "parity_worst_steps": worst,
        "parity_bar": MAX_LAYER_STEPS,
        "parity_holds": worst is not None and worst <= MAX_LAYER_STEPS and not any(map(math.isnan, steps)),
        "onnx_exported": sum(
            not any("reason" in part for part in found["onnx"].values()) for found in networks.values()
        ),
        "int8_over_float": ratios,
        "fastest_is_float": [name for name, found in networks.items() if fastest_is_float(timed_rows(found))],
        "slower_than_own_float": {
            n: {e: round(x, 2) for e, x in s.items()} for n, f in networks.items() if (s := slower(timed_rows(f)))
        },
        "failures": {name: failed for name, found in networks.items() if (failed := failures(found))},
    }


def one_line(name: str, found: dict) -> str:
    steps, ms = [worst_steps(found, engine) for engine in INT8], milliseconds(found)
    words = [f"parity {max((s for s in steps if not math.isnan(s)), default=math.nan):g} step(s)"]
    words += [f"{form} {ms[form]:.1f} ms" for form in (*NAMES, AFTER) if form in ms]
    words += [f"{len(failures(found))} FAILED"] if failures(found) else []
    return f"{name}: {', '.join(words)}"


# ---- the page ----------------------------------------------------------------------------------------------


def page(results: dict, asked: int) -> str:
    networks = results["networks"]
    sections = [
        head(results["about"], networks, asked),
        cost_section(networks),
        parity_section(networks, results["about"]["pictures"]),
    ]
    sections += [float_section(networks), onnx_section(networks), latency_section(networks), losing_section(networks)]
    sections += [after_section(networks), failed_section(networks)]
    return "\n\n".join(section for section in sections if section) + "\n"


def head(about: dict, networks: Networks, asked: int) -> str:
    machine, seen = about["machine"], [found["seen"] for found in networks.values()]
    load, steal = (
        max((s[field] for s in seen if s[field] is not None), default=math.nan) for field in ("load", "steal")
    )
    unfinished = f"**{len(networks)} of {asked} networks so far.** " if len(networks) < asked else ""
    vnni = "with VNNI" if any("vnni" in flag for flag in machine["flags"]) else "without VNNI"
    return f"""# Detectors and segmenters as integer networks

{unfinished}Written by `PYTHONPATH=. python benchmarks/dense_networks.py`; the numbers are in the JSON beside this page.

Machine: {machine["cpu"]} ({vnni}), {machine["cores"]} cores; torch {machine["torch"]}, onnxruntime {machine["onnxruntime"]}. Detection:
{about["sizes"]["detection"]} px, {about["classes"]["detection"]} classes. Segmentation: {about["sizes"]["segmentation"]} px,
{about["classes"]["segmentation"]} classes. Networks are untrained: random weights, biases of zero, batch-norm statistics and ranges from
pictures of `scenes`. Highest load {load:.1f}, highest steal {steal:.1%}."""


def cost_section(networks: Networks) -> str:
    lines = []
    for name, found in networks.items():
        cells = [_joined(found["parts"], lambda part: f"{part['params'] / 1e6:.3f}"), _joined(found["parts"], _macs)]
        params, macs = ANCESTORS.get(name, (None, None))
        lines.append([name, found["task"], *cells, f"{params:.3f}" if params else "-", f"{macs:.0f}" if macs else "-"])
    note = "*Theirs*: the networks that StatAssist's authors measured, on pictures of 300 px (detection) and 512 px (segmentation)."
    columns = ["network", "task", "params M", "MACs M", "theirs: params M", "MACs M"]
    return "\n\n".join(["## Parameters and multiply-accumulates", table(columns, lines), note])


def _macs(part: dict) -> str:
    return (
        f"{part['macs'] / 1e6:.0f}" if part["inputs"] == 1 else f"{part['inputs']} regions x {part['macs'] / 1e6:.1f}"
    )


def _joined(rows: Mapping[str, dict], cell) -> str:
    """The cells of all parts."""
    return " + ".join("-" if "reason" in row else cell(row) for row in rows.values())


def parity_section(networks: Networks, pictures: int) -> str:
    summary, lines = summarized(networks, 0), []
    for name, found in networks.items():
        layers = [
            sum(part["layers"] for part in row["parts"].values()) for row in found["parity"].values() if "parts" in row
        ]
        lines.append(
            [
                name,
                str(max(layers, default="-")),
                *(_parity_cell(found["parity"].get(engine)) for engine in INT8),
                _worst(found),
            ]
        )
    worst = summary["parity_worst_steps"]
    verdict = (
        f"**The worst layer of all is off by {worst:g} step(s); {MAX_LAYER_STEPS} are allowed.**"
        if worst is not None
        else ""
    )
    note = (
        "A *step* is one of the tensor's own 8-bit grid. Every operation gets equal integer inputs, in fake-quant arithmetic, in the "
        f"integer reference and on the engine, on {pictures} picture(s). Each cell: worst layer / network's outputs end to end, in steps. "
        "End to end, single steps add up, and networks that learned nothing amplify them."
    )
    return "\n\n".join(["## Parity", verdict, note, table(["network", "layers", *INT8, "worst layer"], lines)])


def _parity_cell(row: dict | None) -> str:
    if not row or "reason" in row:
        return "-"
    return " + ".join(f"{part['layer_steps']:g} / {part['output_steps']:.0f}" for part in row["parts"].values())


def _worst(found: dict) -> str:
    """The layer that is furthest off on any engine."""
    rows = [
        (part["layer_steps"], part["worst_layer"], engine)
        for engine, row in found["parity"].items()
        if "parts" in row
        for part in row["parts"].values()
    ]
    steps, layer, engine = max(rows, key=lambda row: row[0], default=(0, "-", ""))
    return f"{layer} ({engine})" if steps else "-"


def float_section(networks: Networks) -> str:
    """What engines compute in float inside the networks."""
    lines = []
    for name, found in networks.items():
        floats = {engine: tuple(row["float_ops"]) for engine, row in found["parity"].items() if "float_ops" in row}
        for ops in dict.fromkeys(floats.values()):
            if ops:
                lines.append([name, ", ".join(engine for engine, own in floats.items() if own == ops), ", ".join(ops)])
    with_floats = {line[0] for line in lines}
    none = [
        name
        for name, found in networks.items()
        if name not in with_floats and any("float_ops" in r for r in found["parity"].values())
    ]
    text = [f"All in integers on every engine: {', '.join(none)}."] if none else []
    if lines:
        text += ["These operations are computed on real values, between a dequantize and a quantize:"]
        text += [table(["network", "engines", "operations"], lines)]
    resizes = {
        name: max((row.get("resizes", 0) for row in found["parity"].values()), default=0)
        for name, found in networks.items()
    }
    if any(resizes.values()):
        text += [
            "Bilinear resizing is none of these: it takes codes and gives codes on the same grid. But no engine here has an integer kernel "
            f"for it; the averages of codes are computed in float and rounded ({_listed(resizes)})."
        ]
    return "\n\n".join(["## What stays float inside the network", *text]) if text else ""


def onnx_section(networks: Networks) -> str:
    lines = []
    for name, found in networks.items():
        for part, row in found["onnx"].items():
            if "reason" not in row:
                cells = [
                    f"{row['bytes'] / 1e6:.2f}",
                    str(row["integer_layers"]),
                    f"{row['layer_steps']:g} / {row['output_steps']:.0f}",
                ]
                lines.append([f"{name} {part}".strip(), *cells, ", ".join(row["float_ops"]) or "-"])
    note = (
        "Each file was checked by onnx, run in onnxruntime and compared with the integer reference: worst layer / outputs, in steps. "
        "Convolutions and linear layers that would not run as integers would have stopped the export. What comes behind the network "
        "(decoding and suppression, or the resize to the picture and the argmax) is not in the file."
    )
    return (
        "\n\n".join(["## ONNX", table(["file", "MB", "integer layers", "steps", "stays float"], lines), note])
        if lines
        else ""
    )


def latency_section(networks: Networks) -> str:
    measured = {name: found for name, found in networks.items() if timed_rows(found)}
    if not measured:
        return ""
    lines = []
    for name, found in measured.items():
        ms = times({"rows": timed_rows(found)})
        quickest = best(ms, INT8)
        cells = [f"{ms[form]:.1f}" if form in ms else "-" for form in NAMES]
        cells = [f"**{cell}**" if ms.get(form) == quickest else cell for form, cell in zip(NAMES, cells, strict=True)]
        ratios = [best(ms, TORCH_ENGINES) / ms.get(FROZEN, math.nan), ms.get(ORT, math.nan) / ms.get(SESSION, math.nan)]
        ratios += [int8_over_float(found), int8_over_float(found, median_ms)]
        lines.append([name, *cells, *("-" if math.isnan(ratio) else f"{ratio:.2f}" for ratio in ratios)])
    columns = [
        "network",
        "float torch",
        "float ort",
        *TORCH_ENGINES,
        "ort",
        "INT8 / float, torch",
        "ort",
        "fastest",
        "by medians",
    ]
    note = (
        "Milliseconds of the network alone, one picture, one thread, the thread's CPU time, the minimum over interleaved rounds. Frozen "
        "forms, real pictures in and real outputs out; a two-stage detector's box head runs on as many regions as the picture led to. "
        "Bold: the fastest INT8 form. The last columns are INT8 as a share of float: torch's fastest engine against torch, onnxruntime "
        "against itself, the fastest of each kind, and the same from the medians of the rounds."
    )
    return "\n\n".join(["## Latency in milliseconds", ratio_words(measured), table(columns, lines), note])


def ratio_words(measured: Networks) -> str:
    """One sentence on INT8 against float over all networks."""
    ratios = {name: ratio for name, found in measured.items() if not math.isnan(ratio := int8_over_float(found))}
    if not ratios:
        return "No network has both a float and an INT8 latency."
    low, high = (f(ratios, key=ratios.get) for f in (min, max))
    mean = statistics.geometric_mean(ratios.values())
    return (
        f"The fastest INT8 form takes {100 * mean:.0f} % of the time of the fastest float form (geometric mean of {len(ratios)} "
        f"network{'s' * (len(ratios) > 1)}), from {100 * ratios[low]:.0f} % ({low}) to {100 * ratios[high]:.0f} % ({high})."
    )


def losing_section(networks: Networks) -> str:
    """Where engines are slower than float on their own runtime, and what they spend their time on."""
    measured = {name: found for name, found in networks.items() if timed_rows(found)}
    if not measured:
        return ""
    lost = [name for name, found in measured.items() if fastest_is_float(timed_rows(found))]
    won = "On every network the fastest INT8 form beats every float form."
    text = [
        "## Where INT8 is slower than float",
        f"The fastest float form beats every INT8 form on: {', '.join(lost)}." if lost else won,
    ]
    lines = [
        [name, engine, f"{share:.2f}", where(found["profile"].get(engine, []))]
        for name, found in measured.items()
        for engine, share in slower(timed_rows(found)).items()
    ]
    if lines:
        text.append("Engines that are slower than float on the same runtime, and what they spend their time on:")
        text.append(table(["network", "engine", "x its float", "longest operations"], lines))
    if any(line[1] == "qnnpack" for line in lines):
        text.append("qnnpack is written for ARM and slow on x86 by design.")
    return "\n\n".join(text)


def after_section(networks: Networks) -> str:
    lines = []
    for name, found in networks.items():
        ms = milliseconds(found)
        if AFTER in ms:
            quickest = best(ms, INT8)
            share = ms[AFTER] / (ms[AFTER] + quickest)
            what = f"{found['found']} boxes" if found["task"] == "detection" else "a class for each pixel"
            lines.append(
                [name, what, f"{ms[AFTER]:.1f}", _ms(quickest), "-" if math.isnan(share) else f"{100 * share:.0f} %"]
            )
    if not lines:
        return ""
    note = (
        "In float, on outputs that are there already. Detection: decoding, scores, non-maximum suppression, and for two-stage detectors "
        "proposals and the pooling of regions. The scores of untrained networks are all alike, so that nearly every box passes the "
        "threshold and only the limits on their number hold: trained networks take less. Segmentation: the bilinear resize of the "
        "logits to the picture and the argmax, whose cost grows with pixels times classes."
    )
    columns = ["network", "gives", "ms", "fastest INT8 network, ms", "share of both"]
    return "\n\n".join(["## Behind the network", table(columns, lines), note])


def failed_section(networks: Networks) -> str:
    lines = [f"- {name}, {what}: {why}" for name, found in networks.items() for what, why in failures(found).items()]
    return "\n\n".join(["## What did not work", "\n".join(lines)]) if lines else ""


def _listed(counts: Mapping[str, int]) -> str:
    """ "a 2, b 1", without zeros."""
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count)


def _ms(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"
