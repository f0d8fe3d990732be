"""The forecast as one HTML page: readable on a phone, nothing loaded from elsewhere, every text escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from orchestrator.graph.forecast.plots import damage_plot, exponent_plot, pareto_plot
from orchestrator.graph.forecast.result import Forecast, Numbers
from orchestrator.graph.forecast.shadow import Damage
from orchestrator.graph.parity import EXACT_DB

_WORST_ROWS: Final = 40
_LONG_WORD: Final = 28
_STYLE: Final = """
:root{color-scheme:light dark;--line:#8886;--ok:#1a7f37;--warn:#9a6700;--no:#cf222e}
body{font:15px/1.45 system-ui,sans-serif;margin:0 auto;padding:12px;max-width:960px}
h1{font-size:1.3em;overflow-wrap:anywhere}h2{font-size:1.1em;margin-top:1.6em}
svg{width:100%;height:auto;font-size:11px}svg text{fill:currentColor}
@media(max-width:600px){svg{font-size:20px}th,td{padding:3px 5px}}
.axis{fill:none;stroke:var(--line)}.held{fill:#4a90d933}.bar{fill:#4a90d9}.local{fill:#8a8a8a}.cumulative{fill:#4a90d9}
.broken{fill:var(--no)}.good{fill:var(--ok)}.asked{stroke:var(--no);stroke-dasharray:5 4}
.front{fill:none;stroke:#4a90d9}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:3px 8px;border-bottom:1px solid var(--line);vertical-align:top}
td{overflow-wrap:break-word}.fig{white-space:nowrap}.name{overflow-wrap:anywhere}
@media(max-width:600px){.cards tr{display:block;padding:6px 0;border-bottom:1px solid var(--line)}.cards th{display:none}
.cards td{display:grid;grid-template-columns:7.5em 1fr;gap:8px;border:0;padding:1px 0}.cards td:empty{display:none}
.cards td::before{content:attr(data-label);opacity:.7}}
.verdict{display:inline-block;padding:2px 12px;border-radius:4px;color:#fff;font-weight:600}
.ok{background:var(--ok)}.warn{background:var(--warn)}.no{background:var(--no)}
.stamp{border:2px solid var(--warn);padding:1px 8px;border-radius:4px}
"""


def page(forecast: Forecast) -> str:
    """Return the page."""
    soc = forecast.policy.soc or "no SoC in particular"
    title = f"{forecast.model} on {soc}, {forecast.policy.name}"
    samples = f"{forecast.samples} {'synthetic' if forecast.synthetic else 'real'} samples"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p><span class="verdict {forecast.verdict}">{forecast.verdict}</span> '
        f'<span class="stamp">{escape(forecast.status)}</span> {escape(samples)}, emulated on a CPU</p>',
        _list(forecast.reasons),
        _section("Before and after", _before_after(forecast)),
        _section(
            "Damage per node", damage_plot(forecast.nodes, forecast.thresholds.min_sqnr_db) + _first_bad(forecast)
        ),
        _section("Accuracy against cost", pareto_plot(forecast.keep.points, forecast.thresholds.min_sqnr_db)),
        _section("Exponents", exponent_plot(forecast.exponents, low=forecast.policy.low)),
        _section("Kept in fp32", _kept(forecast)),
        _section("Cannot be kept", _cannot(forecast)),
        _section("Beyond the format", _trouble(forecast)),
        _section("Worst tensors", _worst(forecast)),
        _section("Assumptions and limits", _list((*forecast.policy.assumptions, *forecast.notes))),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _section(title: str, inner: str) -> str:
    return f"<h2>{escape(title)}</h2>{inner}" if inner else ""


def _list(lines: Iterable[str]) -> str:
    rows = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{rows}</ul>" if rows else ""


def _table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, cards: bool = True) -> str:
    """Return a table; on a phone each row of `cards` becomes a block of lines, so that nothing is cut off."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in headings)
    lines = ["".join(map(_cell, headings, row)) for row in rows]
    if not lines:
        return ""
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    style = ' class="cards"' if cards else ""
    return f'<div class="scroll"><table{style}><tr>{head}</tr>{body}</table></div>'


def _cell(heading: str, value: object) -> str:
    """Return a cell: figures stay in one line, long names may break anywhere, words only between them."""
    text = str(value)
    longest = max(map(len, text.split()), default=0)
    figure = isinstance(value, int | float) or (text.lstrip("-")[:1].isdigit() and len(text) < _LONG_WORD)
    style = ' class="fig"' if figure else ' class="name"' if longest > _LONG_WORD else ""
    return f'<td{style} data-label="{escape(heading)}">{escape(text)}</td>'


def _before_after(forecast: Forecast) -> str:
    asked = forecast.thresholds
    rows: list[Sequence[object]] = [
        ("SQNR, worst sample", _db(forecast.before), _db(forecast.after), f"{asked.min_sqnr_db:g} dB"),
        (
            "cosine",
            f"{forecast.before.cosine:.6f}",
            f"{forecast.after.cosine:.6f}",
            "" if asked.min_cosine is None else f"{asked.min_cosine:g}",
        ),
    ]
    if forecast.after.top1 is not None:
        rows.append(("top-1 agreement", _share(forecast.before.top1), _share(forecast.after.top1), ""))
    for name, value in forecast.after.task.items():
        wanted = asked.metric_drop.get(name)
        limit = f"fp32 {forecast.reference_task.get(name, math.nan):g}" + (
            "" if wanted is None else f", drop {wanted:g}"
        )
        before = forecast.before.task.get(name)
        rows.append((name, "" if before is None else f"{before:.6g}", f"{value:.6g}", limit))
    cost = forecast.after.cost
    rows += [
        ("nodes in fp32", forecast.before.cost.nodes, cost.nodes, ""),
        ("operations in fp32", _share(forecast.before.cost.flops_share), _share(cost.flops_share), ""),
        ("casts", "", cost.casts, ""),
        ("bytes moved", "", _bytes(cost.bytes_added), ""),
    ]
    least = [
        f"{name}: {'none' if m is None else ', '.join(f'{k} {v:g}' for k, v in m.items())}"
        for name, m in forecast.minimum.items()
    ]
    return (
        _table(("", "as it is", "with the list", "asked"), rows, cards=False)
        + "<p>Minimum that would pass:</p>"
        + _list(least)
    )


def _bytes(value: int) -> str:
    size, unit = (abs(value) / 1e6, "MB") if abs(value) >= 1e6 else (abs(value) / 1e3, "kB")
    return f"{size:,.1f} {unit} {'fewer' if value < 0 else 'more'}" if value else "as many"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _db(numbers: Numbers) -> str:
    if abs(numbers.sqnr_db) >= EXACT_DB:
        return "identical" if numbers.sqnr_db > 0 else "broken"
    return f"{numbers.sqnr_db:.1f} dB"


def _first_bad(forecast: Forecast) -> str:
    found = [
        f"first bad tensor, {kind}: {name}"
        for kind, name in (("local", forecast.first_bad_local), ("cumulative", forecast.first_bad_cumulative))
        if name
    ]
    return "<p>Grey: the node alone. Blue: the twin so far. Red: not finite or saturated.</p>" + _list(found)


def _kept(forecast: Forecast) -> str:
    rows = [(k.node, k.op_type, k.level, "; ".join(k.reasons)) for k in (*forecast.keep.must, *forecast.keep.should)]
    return _table(("node", "operator", "level", "why"), rows) or "<p>Nothing needs to be kept.</p>"


def _cannot(forecast: Forecast) -> str:
    rows = [(one.tensor, ", ".join(one.stuck), one.text) for one in forecast.keep.cannot]
    ways = [(", ".join(one.tensors), one.status, one.text) for one in forecast.keep.proposals]
    return _table(("tensor", "no fp32 kernel for", "why"), rows) + _table(("tensors", "status", "scaling"), ways)


def _trouble(forecast: Forecast) -> str:
    hidden = set(forecast.overflow) - set(forecast.fused_overflow)
    rows = [
        (
            name,
            "overflow" + (" (inside what compilers fuse)" if name in hidden else ""),
            f"{forecast.ranges[name].absmax:.6g}",
        )
        for name in forecast.overflow
    ]
    rows += [(name, "flushed zeros reach a division", ", ".join(users)) for name, users in forecast.underflow.items()]
    rows += [(one.node, f"sum of {one.terms} terms", f"{one.largest_sum:.6g}") for one in forecast.reductions]
    return _table(("tensor or node", "what", "reaches"), rows)


def _worst(forecast: Forecast) -> str:
    def key(damage: Damage | None) -> float:
        return math.inf if damage is None else damage.sqnr_db

    views = sorted(forecast.nodes, key=lambda view: (key(view.local), key(view.cumulative)))[:_WORST_ROWS]
    rows = [
        (
            view.node, view.op_type, view.source, f"{view.range.absmax:.4g}", f"{view.range.flushed_share:.2%}",
            "" if view.local is None else f"{view.local.sqnr_db:.1f}",
            "" if view.cumulative is None else f"{view.cumulative.sqnr_db:.1f}",
        )
        for view in views
    ]  # fmt: skip
    return _table(("node", "operator", "source", "absmax", "flushed", "local dB", "cumulative dB"), rows)
