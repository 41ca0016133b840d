"""The HTML of a report: one file without a script, its pictures in it."""

from __future__ import annotations

import base64
import math

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fairchem_crack.report.collect import Findings
from fairchem_crack.report.drawing import COLORS
from fairchem_crack.report.sections import COLUMNS, Section, table, tiles

STYLE = """
:root { color-scheme: light; --line: #dde2e8; --soft: #5b6570; --ink: #1c2329; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 1.2rem clamp(.8rem, 3vw, 2.2rem) 3rem; color: var(--ink);
  background: #fff; font: 16px/1.5 -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; margin: .4rem 0 .2rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .4rem; padding-top: .5rem; border-top: 1px solid var(--line); }
p { margin: .3rem 0 .8rem; max-width: 75ch; }
.soft, figcaption, .note { color: var(--soft); font-size: .9rem; }
nav { margin: .6rem 0 1.2rem; font-size: .92rem; }
nav a { display: inline-block; margin-right: 1.1rem; color: #1d4e89; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .7rem; margin: 1rem 0; }
.tile { border: 1px solid var(--line); border-radius: 8px; padding: .6rem .9rem; }
.tile strong { display: block; font-size: 1.7rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; line-height: 1.3; display: block; }
.tables { display: flex; flex-wrap: wrap; gap: 1rem 4rem; align-items: flex-start; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .8rem; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 2px solid var(--ink); font-size: .9rem; }
tbody th { font-weight: 400; }
tbody tr.split th { font-weight: 650; padding-top: .9rem; }
tbody tr.gap > * { border-top: 1px solid var(--line); font-weight: 600; }
tbody tr.student > * { font-weight: 600; }
.mark { display: inline-block; width: .65em; height: .65em; border-radius: 2px; margin-right: .45em; }
.facts { display: grid; grid-template-columns: minmax(5.5rem, max-content) 1fr;
  gap: .25rem 1.1rem; font-size: .92rem; margin: 0; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 1.4rem 1.6rem; }
.grid.three { grid-template-columns: repeat(auto-fit, minmax(min(100%, 310px), 1fr)); }
figure { margin: 0; max-width: 600px; }
figure img { width: 100%; height: auto; display: block; }
figcaption { margin-top: .3rem; }
figcaption code { font-size: .8rem; color: #7a8590; white-space: nowrap; }
td small { display: block; font-size: .8em; font-weight: 400; color: var(--soft); line-height: 1.2; }
@media (max-width: 620px) {
  table { font-size: .78rem; } th, td { padding: .22rem .26rem; } thead th, tbody th { white-space: normal; }
}
@media print { section { break-inside: avoid-page; } nav { display: none; } }
"""

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<p class="soft">{{ subtitle }}</p>
</header>
<div class="tiles">
{% for value, what in tiles %}<div class="tile"><strong>{{ value }}</strong><span>{{ what }}</span></div>
{% endfor %}</div>
<nav><a href="#table">Table</a>
{% for section in sections %}<a href="#{{ section.anchor }}">{{ section.title }}</a>
{% endfor %}<a href="#facts">What was compared</a></nav>
<section id="table">
<h2>Errors</h2>
<div class="tables">
<div class="scroll"><table>
<thead><tr><th></th>{% for heading in headings %}<th>{{ heading }}</th>{% endfor %}</tr></thead>
<tbody>
{% for split, rows in table.items() %}<tr class="split"><th>{{ split }}</th>{% for _ in headings %}<td></td>{% endfor %}</tr>
{% for row in rows %}<tr class="{{ row.kind }}"><th>
{%- if row.kind in colors %}<span class="mark" style="background: {{ colors[row.kind] }}"></span>{% endif -%}
{{ row.heading }}</th>{% for cell in row.cells %}<td>{{ cell.value }}
{%- if cell.interval %} <small>{{ cell.interval }}</small>{% endif %}</td>{% endfor %}</tr>
{% endfor %}{% endfor %}</tbody>
</table></div>
<div class="scroll"><table>
<thead><tr><th></th><th>parameters</th><th>atoms per second</th></tr></thead>
<tbody>
{% for role, model in models.items() %}<tr><th><span class="mark" style="background: {{ colors[role] }}"></span>
{{- role }}, {{ model.title }}</th><td>{{ "{:,}".format(model.parameters) }}</td>
<td>{{ "{:,.0f}".format(model.speed) }}</td></tr>
{% endfor %}</tbody>
</table></div>
</div>
<p class="note">{{ note }}</p>
</section>
{% for section in sections %}<section id="{{ section.anchor }}">
<h2>{{ section.title }}</h2>
<p>{{ section.text }}</p>
{% if section.pictures %}<div class="grid{% if section.pictures|length not in (1, 2, 4) %} three{% endif %}">
{% for picture in section.pictures %}<figure>
<img src="data:image/png;base64,{{ encoded(picture.png) }}" alt="{{ picture.alt }}">
<figcaption>{{ picture.caption }} <code>{{ picture.name }}.png</code></figcaption>
</figure>
{% endfor %}</div>{% endif %}
</section>
{% endfor %}<section id="facts">
<h2>What was compared</h2>
<dl class="facts">
{% for what, value in facts.items() %}<dt>{{ what }}</dt><dd>{{ value }}</dd>
{% endfor %}</dl>
</section>
</body>
</html>
"""


def page(findings: Findings, sections: list[Section], *, name: str) -> str:
    """The whole page, in ASCII: other characters as references, whatever encoding a file is written in."""
    student, teacher = (findings.models[role].title for role in ("student", "teacher"))
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE)
    text = template.render(
        title=f"{student} {'distilled from' if findings.planes.shared else 'against'} {teacher}",
        subtitle=f"Run {name}, {findings.facts['made']}",
        style=Markup(STYLE),
        tiles=tiles(findings),
        headings=[heading for heading, _ in COLUMNS.values()],
        table=table(findings),
        note=_note(findings),
        models=findings.models,
        colors=COLORS,
        sections=sections,
        facts=findings.facts,
        encoded=lambda png: base64.b64encode(png).decode(),
    )
    return text.encode("ascii", "xmlcharrefreplace").decode()


def _note(findings: Findings) -> str:
    counts = sorted({len(split.systems) for split in findings.splits})
    systems = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    text = f"{systems} systems of each split. EFwT: energy within 0.02 eV and every force component within 0.03 eV/Å."
    if any(findings.gaps.values()):
        text += (
            " Gap closed = (undistilled − student) / (undistilled − teacher), in brackets its 95 % interval over the "  # noqa: RUF001
            "systems; that of other seeds of the training is not in it."
        )
        if any(math.isnan(gap.estimate) for gaps in findings.gaps.values() for gap in gaps.values()):
            text += " No gap: the teacher's error is not below the undistilled student's."
    else:
        text += " The gap closed needs an undistilled student: give one with --undistilled."
    return text
