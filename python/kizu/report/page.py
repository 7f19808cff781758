"""The page around the sections, its style, and how texts and numbers are written on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from html import escape

import numpy as np

from kizu.metrics import Interval


def assemble(*, title: str, created: datetime, summary: str, sections: Iterable[str]) -> str:
    """The page; ``summary`` and ``sections`` are HTML."""
    return _PAGE.format(
        title=escape(title),
        style=_STYLE,
        when=escape(created.strftime("%Y-%m-%d %H:%M %Z").strip()),
        summary=summary,
        body="\n".join(sections),
    )


def section(title: str, body: str) -> str:
    """A section of the page with its heading; ``body`` is HTML."""
    name = title.lower().replace(" ", "-")
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(title)}</h2>{body}</section>'


def absent(text: str) -> str:
    """What stands where there is nothing to show."""
    return f'<p class="absent">{escape(text)}</p>'


def caption(text: str) -> str:
    """A remark in small letters."""
    return f'<p class="note">{escape(text)}</p>'


def definitions(info: Mapping[str, object]) -> str:
    """Names and their values as a list; nothing if there are none."""
    rows = []
    for key, value in info.items():
        name = str(key).replace("_", " ").strip()
        rows.append(f"<div><dt>{escape(name[:1].upper() + name[1:])}</dt><dd>{_value(value)}</dd></div>")
    return f'<dl class="panel">{"".join(rows)}</dl>' if rows else ""


def _value(value: object) -> str:
    if value is None:
        return "not recorded"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        return f"{float(value):.6g}"
    if isinstance(value, Mapping):
        return "<br>".join(f"{escape(str(key))} {_value(each)}" for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(each) for each in value)
    return escape(str(value))


def plural(count: int, noun: str) -> str:
    """The count with its noun, in the plural unless it is one."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def ratio(value: float | None) -> str:
    """A number in [0, 1] with three decimals, or a dash."""
    return "–" if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A share in [0, 1] in per cent, or a dash."""
    return "–" if value is None else f"{100 * value:.1f} %"


def confidence(interval: Interval, show: Callable[[float], str]) -> str:
    """A confidence interval, its ends written by ``show``."""
    return f"95 % interval {show(interval.low)} to {show(interval.high)}"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title} · kizu</title>
<style>{style}</style>
</head>
<body>
<header>
<p class="mark"><svg viewBox="0 0 24 24" aria-hidden="true">
<rect x="1.5" y="1.5" width="21" height="21" rx="5"/><path d="M6 17.5 10.2 12.4 12.6 13.8 18 6.5"/></svg>
<span>kizu</span><time>{when}</time></p>
<h1>{title}</h1>
<p class="summary">{summary}</p>
</header>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root {
  color-scheme: light dark;
  --bg: #f5f6f8; --panel: #fff; --ink: #17202b; --muted: #586473; --line: #e2e7ec;
  --good: #0072b2; --anomalous: #c05200; --shadow: 0 1px 3px rgb(16 24 40 / .07);
}
@media (prefers-color-scheme: dark) {
  :root {
    --bg: #0e1318; --panel: #161d25; --ink: #e9eef4; --muted: #9dabba; --line: #28323d;
    --good: #56b4e9; --anomalous: #ff9a52; --shadow: none;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  -webkit-text-size-adjust: 100%;
}
header, main { max-width: 1140px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 28px; }
main { padding-bottom: 56px; }
.mark { display: flex; align-items: center; gap: 9px; margin: 0 0 22px; font-weight: 600; }
.mark svg {
  width: 22px; height: 22px; fill: none; stroke: currentColor; stroke-width: 1.6;
  stroke-linecap: round; stroke-linejoin: round;
}
.mark path { stroke: var(--anomalous); stroke-width: 2; }
.mark time { margin-left: auto; font-weight: 400; font-size: 13px; color: var(--muted); }
h1 {
  font-size: clamp(24px, 4vw, 34px); line-height: 1.15; letter-spacing: -.02em; margin: 0;
  overflow-wrap: anywhere;
}
.summary { font-size: 17px; color: var(--muted); margin: 8px 0 0; max-width: 70ch; }
.summary strong { color: var(--ink); }
section { margin-top: 36px; min-width: 0; }
section > h2 { font-size: 20px; letter-spacing: -.01em; margin: 0 0 12px; }
h3 { font-size: 15px; margin: 22px 0 2px; }
.note { color: var(--muted); font-size: 13px; margin: 6px 0 0; max-width: 110ch; }
.absent {
  background: var(--panel); border: 1px dashed var(--line); border-radius: 12px; padding: 22px;
  color: var(--muted); margin: 0;
}

.cards { display: grid; grid-template-columns: repeat(3, 1fr); gap: 14px; }
.card, .panel, .drawn {
  background: var(--panel); border: 1px solid var(--line); border-radius: 12px; box-shadow: var(--shadow);
}
.card { padding: 16px 18px 14px; min-width: 0; }
.card h2 { font-size: 13px; font-weight: 600; color: var(--muted); margin: 0; }
.card .value {
  font-size: 40px; line-height: 1.15; font-weight: 650; letter-spacing: -.03em; margin: 4px 0 0;
  font-variant-numeric: tabular-nums;
}
.card .value small { font-size: 14px; font-weight: 500; letter-spacing: 0; color: var(--muted); }
.card .value span { white-space: nowrap; margin-right: .2em; }
.card .value .good { color: var(--good); }
.card .value .anomalous { color: var(--anomalous); }
.card.good { border-left: 4px solid var(--good); }
.card.anomalous { border-left: 4px solid var(--anomalous); }

.columns {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 18px;
  align-items: start;
}
@media (min-width: 1000px) { .columns.three { grid-template-columns: repeat(3, 1fr); } }
figure { margin: 0; min-width: 0; }
.drawn { padding: 10px; overflow: hidden; }
.drawn > .note { padding: 0 6px 4px; }
.drawn > .absent { border: 0; }
.plot { display: block; width: 100%; height: auto; max-height: 440px; background: #fff; border-radius: 6px; }
.plot * { stroke-linejoin: round; stroke-linecap: butt; }

.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 14px; }
th, td { padding: 7px 14px; text-align: left; border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { font-size: 12px; font-weight: 600; color: var(--muted); }
tbody th { font-weight: 500; overflow-wrap: anywhere; min-width: 7em; }
td small { color: var(--muted); margin-left: 4px; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 9px; }
.dot.good { background: var(--good); }
.dot.anomalous { background: var(--anomalous); border-radius: 2px; }
.rug { width: 52%; min-width: 150px; }
.rug svg { display: block; width: 100%; height: 28px; overflow: visible; }
.rug .good { color: var(--good); }
.rug .anomalous { color: var(--anomalous); }
.rug path { fill: none; stroke: currentColor; vector-effect: non-scaling-stroke; }
.rug .base { stroke: var(--line); }
.rug .middle { stroke-width: 9px; stroke-opacity: .28; }
.rug .marks { stroke-width: 1px; stroke-opacity: .5; }
.rug .median { stroke-width: 3px; }
.rug .threshold { stroke: var(--ink); stroke-width: 1.2px; stroke-dasharray: 3 2; }
.ends { display: flex; justify-content: space-between; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; padding: 10px 14px; color: var(--muted); border-top: 1px solid var(--line); }

.gallery {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(118px, 1fr)); gap: 10px; margin-top: 10px;
}
.shot { background: var(--panel); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.shot.wrong { border-color: var(--anomalous); box-shadow: 0 0 0 1px var(--anomalous); }
.thumb, .nothing { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #10151b; }
.thumb.tiny { image-rendering: pixelated; }
.nothing {
  display: grid; place-items: center; background: var(--bg); color: var(--muted); font-size: 12px;
}
figcaption { padding: 6px 8px 8px; font-size: 12px; line-height: 1.35; }
.line { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline; gap: 4px; }
.line b { font-size: 14px; font-variant-numeric: tabular-nums; }
.badge { font-size: 11px; color: var(--muted); white-space: nowrap; }
.badge.wrong { color: var(--anomalous); font-weight: 650; }
.name {
  color: var(--muted); margin-top: 2px; overflow: hidden; overflow-wrap: anywhere;
  display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; line-clamp: 3;
}

.latency .total > * { font-weight: 650; }
.bar { display: block; height: 4px; margin-top: 4px; border-radius: 2px; background: var(--line); }
.bar i { display: block; height: 100%; background: var(--good); border-radius: 2px; }
dl { margin: 0; padding: 4px 0; font-size: 14px; }
.note + dl, .absent + dl { margin-top: 12px; }
dl > div {
  display: grid; grid-template-columns: minmax(8em, 32%) 1fr; gap: 12px; padding: 7px 16px;
  border-bottom: 1px solid var(--line);
}
dl > div:last-child { border-bottom: 0; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }

@media (max-width: 760px) {
  header, main { padding-left: 14px; padding-right: 14px; }
  .cards { grid-template-columns: 1fr 1fr; gap: 10px; }
  .card { padding: 12px; }
  .card .value { font-size: 28px; }
  .card .value small { font-size: 12px; }
  .wide { display: none; }
  th, td { padding: 6px 8px; }
  .rug { width: 40%; min-width: 110px; }
  td small { display: block; margin: 0; }
  .gallery { grid-template-columns: repeat(auto-fill, minmax(100px, 1fr)); }
  .drawn { padding: 6px; }
}
@media print { body { background: #fff; } .card, .shot, .drawn { break-inside: avoid; } }
"""
