"""The HTML of a report: one file without a script, its pictures in it."""

from __future__ import annotations

import base64
import math

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from fairchem_crack.evaluation.drawing import look
from fairchem_crack.evaluation.report.collect import Findings
from fairchem_crack.evaluation.report.sections import Section, columns, tables, tiles

STYLE = """
:root { color-scheme: light; --line: #dde2e8; --soft: #5b6570; --ink: #1c2329; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1380px; padding: 1.2rem clamp(.8rem, 3vw, 2.2rem) 3rem; color: var(--ink);
  background: #fff; font: 16px/1.5 -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; margin: .4rem 0 .2rem; }
h2 { font-size: 1.3rem; margin: 2.2rem 0 .4rem; padding-top: .5rem; border-top: 1px solid var(--line); }
p { margin: .3rem 0 .8rem; max-width: 75ch; }
.soft, figcaption, .note { color: var(--soft); font-size: .9rem; }
nav { margin: .6rem 0 -.9rem; font-size: .92rem; }
nav a { display: inline-block; margin-right: .8rem; color: #1d4e89; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .7rem; margin: 1rem 0; }
.tile { border: 1px solid var(--line); border-radius: 8px; padding: .6rem .9rem; }
.tile strong { display: block; font-size: 1.7rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span, .tile small { color: var(--soft); font-size: .85rem; line-height: 1.3; display: block; }
.tile small { font-size: .78rem; }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 560px), 1fr)); gap: 1.3rem 2rem; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; font-size: .92rem; }
th, td { padding: .2rem .35rem; text-align: right; vertical-align: top; }
td { white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; white-space: nowrap; }
thead th { border-bottom: 2px solid var(--ink); font-size: .85rem; vertical-align: bottom; font-weight: 500; }
thead th:first-child { font-size: 1rem; font-weight: 650; }
tbody th { font-weight: 400; }
tbody th small { color: var(--soft); font-weight: 400; margin-left: .35em; }
tbody tr.gap > * { border-top: 1px solid var(--line); }
tbody tr.student > *, tbody tr.gap > * { font-weight: 600; }
.mean { background: #f4f6f8; }
.mark { display: inline-block; width: .65em; height: .65em; border-radius: 2px; margin-right: .45em; }
.facts { display: grid; grid-template-columns: minmax(5.5rem, max-content) 1fr;
  gap: .25rem 1.1rem; font-size: .92rem; margin: 0; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 1.4rem 1.6rem; }
.grid.three { grid-template-columns: repeat(auto-fit, minmax(min(100%, 310px), 1fr)); }
.grid.four { grid-template-columns: repeat(auto-fit, minmax(min(100%, 265px), 1fr)); gap: 1rem 1.2rem; }
details { margin-top: 1.2rem; }
summary { cursor: pointer; color: #1d4e89; padding: .35rem 0; }
details .grid { margin-top: .8rem; }
figure { margin: 0; max-width: 520px; }
figure img { width: 100%; height: auto; display: block; }
figcaption { margin-top: .3rem; }
td small { display: block; font-size: .75em; font-weight: 400; color: var(--soft); line-height: 1.2; }
@media (max-width: 620px) {
  table { font-size: .75rem; } th, td { padding: .22rem .13rem; } thead th { font-size: .74rem; }
  .tables thead th:first-child { font-size: .85rem; } tbody th small { display: block; margin: 0 0 0 1.4em; }
  th:first-child, td small { white-space: normal; }
  td small { font-size: .68rem; }
}
@media print { section { break-inside: avoid-page; } nav { display: none; } }
@media print { details::details-content { content-visibility: visible; } }
"""

MACROS = """
{%- macro marked(role, architecture) -%}
{% if role in colors %}<span class="mark" style="background: {{ colors[role] }}"></span>{% endif %}{{ role }}
{%- if architecture %} <small>{{ architecture }}</small>{% endif %}
{%- endmacro %}
{%- macro mean(loop) %}{% if has_mean and loop.last %} class="mean"{% endif %}{% endmacro %}
{%- macro grid(pictures, per_row) -%}
<div class="grid{{ {3: " three", 4: " four"}.get(per_row, "") }}">
{% for picture in pictures %}<figure>
<img src="data:image/png;base64,{{ encoded(picture.png) }}" alt="{{ picture.alt }}" title="{{ picture.name }}.png">
<figcaption>{{ picture.caption }}</figcaption>
</figure>
{% endfor %}</div>
{%- endmacro %}
{%- macro shown(section) -%}
<section id="{{ section.anchor }}">
<h2>{{ section.title }}</h2>
<p>{{ section.text }}</p>
{% for headings, rows in section.tables %}<div class="scroll"><table>
<thead><tr>{% for heading in headings %}<th>{{ heading }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}<tr><th>{{ row[0] }}</th>{% for cell in row[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>
{% endfor %}{% if section.pictures %}{{ grid(section.pictures, section.per_row) }}
{% endif %}{% if section.folded %}<details>
<summary>{{ section.folded_title }} ({{ section.folded|length }})</summary>
{{ grid(section.folded, section.per_row) }}
</details>
{% endif %}</section>
{% endmacro -%}
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
{% for tile in tiles %}<div class="tile"><strong>{{ tile.value }}</strong><span>{{ tile.caption }}</span>
{%- if tile.interval %}<small>95 % interval {{ tile.interval }}</small>{% endif %}</div>
{% endfor %}</div>
<nav>{% for section in sections %}<a href="#{{ section.anchor }}">{{ section.title }}</a>
{% if loop.first %}<a href="#table">Errors</a>
{% endif %}{% endfor %}<a href="#facts">What was compared</a></nav>
{{ shown(sections[0]) }}<section id="table">
<h2>Errors</h2>
<div class="tables">
{% for heading, rows in tables.items() %}<div class="scroll"><table>
<thead><tr><th>{{ heading }}</th>
{%- for column in columns %}<th{{ mean(loop) }}>{{ broken(column) }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}<tr class="{{ row.heading if row.title else "gap" }}"><th>{{ marked(row.heading, row.title) }}</th>
{%- for cell in row.cells %}<td{{ mean(loop) }}>{{ cell.value }}
{%- if cell.interval %} <small>{{ cell.interval }}</small>{% endif %}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>
{% endfor %}<div class="scroll"><table>
<thead><tr><th>Size and speed</th><th>parameters</th><th>atoms per second</th></tr></thead>
<tbody>
{% for role, model in models.items() %}<tr class="{{ role }}"><th>{{ marked(role, model.title) }}</th>
{#- #}<td>{{ "{:,}".format(model.parameters) if model.parameters else "" }}</td>
{#- #}<td>{{ "{:,.0f}".format(model.speed) if model.speed else "" }}</td></tr>
{% endfor %}</tbody>
</table></div>
<p class="note">{{ note }}</p>
</div>
</section>
{% for section in sections[1:] %}{{ shown(section) }}{% endfor %}<section id="facts">
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
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(MACROS + TEMPLATE)
    is_distilled = findings.planes is not None and findings.planes.shared
    text = template.render(
        title=f"{student} {'distilled from' if is_distilled else 'against'} {teacher}",
        subtitle=f"Run {name}, {findings.facts['made']}",
        style=Markup(STYLE),
        tiles=tiles(findings),
        columns=columns(findings),
        has_mean=bool(findings.average),
        tables=tables(findings),
        note=_note(findings),
        models=findings.models,
        colors={role: color for role, (color, _) in look({role: role for role in findings.models}).items()},
        sections=sections,
        facts=findings.facts,
        broken=lambda text: escape(text).replace("_", Markup("_<wbr>")),
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
