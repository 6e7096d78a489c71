"""The parts of the page as HTML: escaped text, sections, tables, and the page around them."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# A caption and the PNG file that it belongs to.
Figure = tuple[str, str | os.PathLike]


def text(value: Any) -> str:
    """Any value as text that HTML shows as it is.

    Example:
      >>> text("<b> & 1")
      '&lt;b&gt; &amp; 1'
    """
    return html.escape(str(value))


def section(title: str, body: str) -> str:
    """A section of the page, or nothing where there is no body."""
    return f"<section><h2>{text(title)}</h2>\n{body}</section>" if body else ""


def hint(sentence: str) -> str:
    """What to look for in a picture, below it."""
    return f'<p class="hint">{text(sentence)}</p>'


def number(value: Any) -> float | None:
    """Returns a finite float, or None for what is missing, null or not a number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as one dict.

    Example:
      >>> flatten({"seed": 0, "mgr": {"weight": 0.5}})
      {'seed': 0, 'mgr.weight': 0.5}
    """
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def table(
    rows: Iterable[Sequence[Any]],
    head: Sequence[str] = (),
    marked: Iterable = (),
    kind: str = "plain",
) -> str:
    """Makes an HTML table; the first cell of a row names it, `marked` first cells stand out."""
    marked = set(marked)
    lines = []
    for name, *cells in rows:
        mark = ' class="marked"' if name in marked else ""
        values = "".join(f"<td>{text(cell)}</td>" for cell in cells)
        lines.append(f'<tr{mark}><th scope="row">{text(name)}</th>{values}</tr>')
    if not lines:
        return ""
    top = "<tr>" + "".join(f"<th>{text(cell)}</th>" for cell in head) + "</tr>" if head else ""
    return f'<table class="{kind}">{top}{"".join(lines)}</table>'


STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1b1f24; --quiet: #5f6873; --line: #e3e6ea;
  --raised: #f6f7f9; --accent: #0b66a3; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --text: #e4e7eb; --quiet: #99a2ad;
  --line: #2d333a; --raised: #1c2026; --accent: #6db7ea; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.5rem 4rem; background: var(--page);
  color: var(--text); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial,
  "Liberation Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; font-weight: 600; margin: 0 0 .75rem; line-height: 1.25; }
h2 { font-size: 1.1rem; font-weight: 600; margin: 2.75rem 0 1rem; padding-bottom: .35rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: .95rem; font-weight: 600; margin: 0 0 .5rem; }
.note { color: var(--quiet); max-width: 46rem; margin: .25rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.6rem, 1fr));
  gap: .6rem; margin: 1.25rem 0 0; }
.card { background: var(--raised); border-radius: 8px; padding: .5rem .8rem .65rem;
  display: flex; flex-direction: column; }
.card dt { color: var(--quiet); font-size: .82rem; }
.card dd { order: -1; margin: 0; font-size: 1.2rem; line-height: 2.3rem; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.card p { margin: 0; color: var(--quiet); font-size: .78rem; }
.card:first-child dd { color: var(--accent); font-size: 1.8rem; }
.card .short { white-space: nowrap; }
.card .long { font-size: 1rem; line-height: 1.3; padding: .5rem 0; }
.hint { color: var(--quiet); font-size: .85rem; line-height: 1.4; max-width: 46rem;
  margin: .5rem 0 0; }
figure { margin: 0; min-width: 0; }
figcaption { color: var(--quiet); font-size: .85rem; margin-top: .35rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
  gap: 1.75rem 1.5rem; align-items: start; }
.curves figcaption { margin: 0 0 .25rem; line-height: 1.4; }
.curves h3 { color: var(--text); margin: 0; }
.curves span { display: inline-block; margin-right: 1.1rem; overflow-wrap: anywhere; }
.curves i { display: inline-block; width: 1.1rem; height: .2rem; border-radius: 2px;
  margin-right: .4rem; vertical-align: .22rem; }
svg { width: 100%; height: auto; display: block; }
svg text { font-family: inherit !important; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr));
  gap: 1.75rem 1.5rem; align-items: start; }
img { max-width: 100%; height: auto; display: block; border-radius: 4px; }
.confusion, .calibration { display: flex; flex-wrap: wrap; gap: 1.5rem 2.5rem;
  align-items: flex-start; }
.confusion figure, .calibration figure { flex: 0 1 30rem; }
.confusion div, .calibration div { flex: 1 1 18rem; min-width: 0; }
.embeddings { max-width: 36rem; }
.legend { line-height: 1.6; }
.legend span { display: inline-block; margin-right: .9rem; max-width: 100%;
  overflow-wrap: anywhere; }
.legend i { font-style: normal; margin-right: .3rem; }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr));
  gap: 1.25rem 1rem; }
.mistakes img { width: 7rem; height: 7rem; object-fit: contain; object-position: left; }
.mistakes figcaption { line-height: 1.35; overflow-wrap: anywhere; }
.mistakes b { color: var(--text); font-weight: 600; }
.accuracies { width: 100%; max-width: 46rem; }
.accuracies th[scope] { min-width: 6rem; }
.accuracies td:nth-child(2) { width: 40%; min-width: 3rem; vertical-align: middle; }
.accuracies td:nth-child(n+3) { white-space: nowrap; }
.interval { display: block; position: relative; height: .7rem; background: var(--raised);
  border-radius: 4px; }
.interval i { position: absolute; top: .28rem; height: .14rem; background: var(--quiet); }
.interval b { position: absolute; top: .1rem; width: .5rem; height: .5rem; margin-left: -.25rem;
  border-radius: 50%; background: var(--accent); }
table { border-collapse: collapse; font-size: .87rem; }
th, td { text-align: left; font-weight: 400; padding: .2rem 1.75rem .2rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { color: var(--quiet); }
th:not([scope]), .stages th, .stages td:nth-child(-n+3) { white-space: nowrap; }
td { font-variant-numeric: tabular-nums; }
tr.marked th, tr.marked td { color: var(--accent); font-weight: 600; }
@media (max-width: 40rem) { body { padding: 1.5rem 1rem 3rem; }
  th, td { padding-right: .7rem; }
  .plain th[scope] { min-width: 9.5rem; }
  .accuracies :is(th, td):nth-child(4) { display: none; } /* the line shows it */ }
details { margin-top: 1rem; }
summary { cursor: pointer; color: var(--accent); margin-bottom: .5rem; }
pre { background: var(--raised); border-radius: 8px; padding: .8rem 1rem; margin: 0 0 1rem;
  overflow-x: auto; font: .85rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono",
  monospace; }
@media print { details > * { display: block; } section { break-inside: avoid; } }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
