"""report.html of a run: one self-contained page from the files in its folder, which `nas.report.data` reads.

A section is left out where the run has nothing for it. Pictures are also written to figures/*.png.
"""

from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import read_bytes, write_bytes
from common.runs import CONTACT, LOG, Run
from nas.arch import Architecture
from nas.cost import cost
from nas.report.architecture import architecture_figure
from nas.report.charts import alphas, architecture
from nas.report.curves import curve_panels, curves_figure
from nas.report.data import read_alphas, read_architecture, read_front, read_health, read_object
from nas.report.front import front_figure, front_panels, prediction_errors, prediction_figure
from nas.report.html import image, label, notice, page, plots, table, tiles
from nas.report.style import inline_svg, is_number, panels, save

FILES = ("config.json", "arch.json", "network.json", "metrics.json", "front.json", LOG)
LATENCY = ("latency (ms)", "price of latency (mu)")  # kinds of curves that stand in a section of their own
HEALTH = ("entropy of the alphas", "share of the cheapest candidates", "temperature")
PROGRAMS = {"search": "Architecture search", "retrain": "Training"}


def write_report(path: str | Path) -> Path:
    """Draw the run's figures, write its report.html and return that path. Raises UserError."""
    if not any((Path(path) / name).is_file() for name in FILES):
        raise UserError(f"{path}: no run in this folder; it holds none of {', '.join(FILES)}")
    run = Run(path)
    config, metrics, network = (read_object(run, f"{name}.json") for name in ("config", "metrics", "network"))
    (arch, parts, latency), front, moved = read_architecture(run), read_front(run), read_alphas(run)
    health, warnings = read_health(run, metrics)
    rows = run.read_log()
    curves = curve_panels(rows)
    # the architecture is a backbone, the network more than it
    around = network.get("task", "classification") != "classification"
    sections = {
        "Network": _network(network, metrics) if network and (around or not arch) else [],
        "Backbone" if around else "Architecture": _architecture(arch, parts, around) if arch else [],
        "Latency": _curves(curves, LATENCY),
        "Alphas over time": alphas(moved) if moved else [],
        "Health": _health(health) + _curves(curves, HEALTH),
        "Pareto front": _front(front) if front else [],
        "Predicted against measured": _prediction(front),
        "Pictures": _pictures(run),
        "Metrics": _metrics(metrics),
        "Curves": _curves(curves, [kind for kind in curves if kind not in (*LATENCY, *HEALTH)]),
        "Configuration": _configuration(config),
    }
    facts = (_arch_facts(arch, latency) if arch and not around else {}) | _results(metrics)
    name = run.path.resolve().name
    html = page(name, [*_title(name, config), tiles(facts), notice(warnings)], sections)
    _save_pictures(run, arch, parts, rows, front)
    write_bytes(run.path / "report.html", html.encode(errors="replace"))
    return run.path / "report.html"


def _save_pictures(run: Run, arch: Architecture | None, parts: dict | None, rows: list[dict], front: dict) -> None:
    """The figures as files, for other documents."""
    figures = {
        "architecture": architecture_figure(arch, parts) if arch else None,
        "curves": curves_figure(rows),
        "front": front_figure(front) if front else None,
        "prediction": prediction_figure(front),
    }
    for name, figure in figures.items():
        if figure:
            save(figure, run.figure(f"{name}.png"))


# ---- header ------------------------------------------------------------------------------------------------


def _title(name: str, config: dict) -> list[str]:
    kind = PROGRAMS.get(str(config.get("program")), "Run")
    command = [f"<pre>{escape(str(config['command']))}</pre>"] if "command" in config else []
    return [f'<div class="kind">{kind}</div><h1>{escape(name)}</h1>', *command]


def _arch_facts(arch: Architecture, latency: dict) -> dict[str, Any]:
    total = cost(arch)
    facts = {f"{key.removesuffix('_ms')} latency": _with_unit(value) for key, value in latency.items()}
    facts |= {"parameters": f"{total.params / 1e6:.2f} M", "MACs": f"{total.macs / 1e6:.1f} M"}
    return facts | {"input": f"{arch.input_size} px", "blocks": len(arch.blocks)}


def _results(metrics: dict) -> dict[str, Any]:
    """Accuracy and latency of the last of the networks that a retraining compares, the one that is shipped."""
    rows = metrics.get("networks")
    last = rows[-1] if isinstance(rows, list) and rows and isinstance(rows[-1], dict) else {}
    facts = {
        f"{label(k)}, {last.get('network')}": v
        for k, v in last.items()
        if k != "network" and not k.startswith("latency")
    }
    return facts | ({f"latency, {last.get('network')}": _with_unit(last["latency_ms"])} if "latency_ms" in last else {})


def _with_unit(ms: Any) -> Any:
    return f"{ms:.4g} ms" if is_number(ms) else ms


# ---- sections: lists of HTML, empty where the run has no such data -----------------------------------------


def _architecture(arch: Architecture, parts: dict[str, float] | None, backbone: bool) -> list[str]:
    rows = cost(arch).rows
    if backbone:
        words = (
            "Every block as long as its multiply-accumulates in a picture of "
            f"{arch.input_size} px, before it is dilated."
        )
        return [f"<p>{words}</p>", *architecture(rows[:-1], [row.macs / 1e6 for row in rows[:-1]], "M")]
    if parts:
        return [
            f"<p>Every block as long as it takes, {sum(parts.values()):.3f} ms in all.</p>",
            *architecture(rows, list(parts.values()), "ms"),
        ]
    return [
        "<p>Every block as long as its multiply-accumulates.</p>",
        *architecture(rows, [row.macs / 1e6 for row in rows], "M"),
    ]


def _network(network: dict, metrics: dict) -> list[str]:
    """A network that is known by its name."""
    facts = {"network": network.get("name"), "parameters": metrics.get("params"), "MACs": metrics.get("macs")}
    return [tiles(facts | {"input (px)": network.get("input_size")})]


def _health(health: dict) -> list[str]:
    facts = {label(key): value for key, value in health.items() if not isinstance(value, (dict, list))}
    mixed, derived = health.get("mixed_top1"), health.get("derived_top1")
    if is_number(mixed) and is_number(derived):
        facts["gap"] = float(mixed - derived)
    return [tiles(facts)] if facts else []


def _front(data: dict) -> list[str]:
    drawn = [
        inline_svg(panels([draw], 1, (4.8, 3.5)), f"front{i}", title)
        for i, (title, draw) in enumerate(front_panels(data).items())
    ]
    networks = data.get("networks", [])
    return [plots(drawn, wide=True), *([table("Networks tried", networks, data.get("chosen"))] if networks else [])]


def _prediction(data: dict) -> list[str]:
    figure, errors = prediction_figure(data), prediction_errors(data)
    if figure is None:
        return []
    facts = {
        "networks": len(errors),
        "mean error": f"{np.abs(errors).mean():.1%}",
        "bias": f"{errors.mean():+.1%}",
        "within 5 %": f"{(np.abs(errors) <= 0.05).mean():.0%}",
    }
    drawn = inline_svg(figure, "prediction", "predicted over measured latency")
    return [f'<div class="beside"><figure>{drawn}</figure>{tiles(facts)}</div>']


def _pictures(run: Run) -> list[str]:
    """What the networks of a style transfer make, drawn when the run ended."""
    path = run.figure(CONTACT)
    return [image(read_bytes(path), "what the networks make of some pictures")] if path.is_file() else []


def _metrics(metrics: dict) -> list[str]:
    numbers = {key: value for key, value in metrics.items() if not isinstance(value, (dict, list))}
    tables = [table("", numbers)] if numbers else []
    tables += [table(key, value) for key, value in metrics.items() if key not in numbers]
    return ['<div class="tables">', *tables, "</div>"] if tables else []


def _curves(curves: dict, kinds: tuple[str, ...] | list[str]) -> list[str]:
    shown = [kind for kind in kinds if kind in curves]
    ids = {kind: f"curve{i}" for i, kind in enumerate(curves)}
    return [plots(inline_svg(panels([curves[kind]], 1), ids[kind], kind) for kind in shown)] if shown else []


def _configuration(config: dict) -> list[str]:
    settings = {key: value for key, value in config.items() if key not in ("command", "program")}
    return [table("", settings)] if settings else []
