"""captions.audit.html: one self-contained page that says where to look. All text of captions is escaped."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from captioning.audit_config import AuditConfig
from captioning.audit_flags import FLAGS, degrading_words
from data.slots import SLOTS

if TYPE_CHECKING:
    import pandas as pd

_TOP_VALUES: Final = 8

_PAGE: Final = """\
{%- macro tally(values, between=" ") %}
{% for value, n in values %}
{{ value }}{{ between }}<span class="soft">{{ n }}</span>{{ " · " if not loop.last }}
{%- endfor %}
{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Caption audit</title>
<style>
body { margin: 0 auto; max-width: 1100px; padding: 24px; font: 15px/1.5 system-ui, "Liberation Sans", sans-serif;
       color: #1a2130; background: #f4f6f9; font-variant-numeric: tabular-nums; }
h1 { font-size: 26px; margin: 8px 0; } h2 { font-size: 19px; margin: 0 0 4px; }
h3 { font-size: 15px; margin: 18px 0 2px; }
section { background: #fff; border: 1px solid #e2e6ed; border-radius: 10px; padding: 18px 22px; margin: 16px 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; font-size: 12.5px; color: #566073; }
td:first-child { white-space: nowrap; } .path { white-space: normal !important; }
th, td { padding: 5px 10px 5px 0; border-bottom: 1px solid #e2e6ed; vertical-align: top; }
.num { text-align: right; white-space: nowrap; } .soft, p { color: #566073; margin: 2px 0; }
.low { color: #c02626; font-weight: 600; } .text { overflow-wrap: anywhere; unicode-bidi: isolate; }
.path { font-family: ui-monospace, monospace; font-size: 12px; overflow-wrap: anywhere; }
.tag { display: inline-block; background: #fdf3dc; color: #92580a; border-radius: 8px; padding: 0 7px;
       font-size: 12px; }
</style>
</head>
<body>
<h1>Caption audit</h1>
<p>{{ audit.images }} captions, {{ audit.identities }} identities; both genders are named in
{{ audit.mixed_gender_identities }} identities; {{ audit.duplicates_across_identities }} texts are said of more than
one. {{ tally(audit.by_status.items(), ": ") }}.</p>

<section id="slots">
<h2>Attributes</h2>
<p>Agreement: how often a caption gives the value that most captions of the same person give.</p>
<table>
<tr><th>attribute</th><th class="num">agreement</th><th class="num">named in</th><th class="num">entropy, bits</th>
<th>values</th></tr>
{% for slot in slots %}
<tr><td>{{ slot.name }}</td><td class="num{{ ' low' if slot.agreement < low }}">{{ slot.agreement | share }}</td>
<td class="num">{{ slot.coverage | share }}</td><td class="num">{{ "%.2f" | format(slot.entropy) }}</td>
<td class="text">{{ tally(slot.top) }}{% if slot.more %} <span class="soft">and {{ slot.more }} more</span>{% endif %}
</td></tr>
{% endfor %}
</table>
</section>

<section id="identities">
<h2>Identities that agree least</h2>
{% if not worst %}<p>No identity has two captions that answer the same attribute.</p>{% endif %}
{% for person in worst %}
<h3>Identity {{ person.pid }}
<span class="soft">{{ person.agreement | share }} agreement, {{ person.n_images }} images</span></h3>
<table>
{% for row in person.rows %}
<tr><td>{{ row.name }}</td><td class="num">{{ row.agreement | share }}</td>
<td class="text">{{ tally(row.tally) }}</td></tr>
{% endfor %}
</table>
{% endfor %}
</section>

<section id="flags">
<h2>Flagged captions</h2>
<table>
{% for flag in flags %}
<tr><td><a href="#flag-{{ flag.name }}">{{ flag.title }}</a></td><td class="num">{{ flag.count }}</td>
<td class="soft">{{ flag.meaning }}</td></tr>
{% endfor %}
</table>
{% for flag in flags if flag.examples %}
<h3 id="flag-{{ flag.name }}">{{ flag.title }}
<span class="soft">{{ flag.examples | length }} of {{ flag.count }}</span></h3>
<table>
{% for row in flag.examples %}
<tr><td class="path">{{ row.path }}</td><td class="num">{{ row.pid }}</td>
<td class="text">{{ row.text }}{% for note in row.notes %} <span class="tag">{{ note }}</span>{% endfor %}</td></tr>
{% endfor %}
</table>
{% endfor %}
</section>
</body>
</html>
"""


def audit_page(
    captions: pd.DataFrame, identities: pd.DataFrame, flags: pd.DataFrame, summary: dict[str, Any], config: AuditConfig
) -> str:
    """Return the page as HTML; the same rows give the same bytes."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True)
    environment.filters["share"] = lambda share: f"{100 * share:.0f} %"
    return environment.from_string(_PAGE).render(
        audit=summary,
        low=config.low_agreement,
        slots=[_slot(slot, summary["slots"][slot]) for slot in SLOTS],
        worst=_worst(identities, config.shown),
        flags=[_flag(flag, captions, flags, config.shown) for flag in FLAGS],
    )


def _slot(slot: str, figures: dict[str, Any]) -> dict[str, Any]:
    tally = _tally(figures["values"])
    return {**figures, "name": _title(slot), "top": tally[:_TOP_VALUES], "more": len(tally[_TOP_VALUES:])}


def _worst(identities: pd.DataFrame, count: int) -> list[dict[str, Any]]:
    """Describe the identities with the least mean agreement over the slots that two captions or more answer."""
    told = identities[identities["n_named"] >= 2]
    mean = told.groupby("pid")["agreement"].mean()
    # Stable, and groupby sorts by identity: equals stay in the order of their numbers.
    worst = mean[mean < 1].sort_values(kind="stable")[:count]
    return [_person(pid, agreement, told[told["pid"] == pid]) for pid, agreement in worst.to_dict().items()]


def _person(pid: Any, agreement: float, rows: pd.DataFrame) -> dict[str, Any]:
    split = rows[rows["agreement"] < 1].sort_values("agreement", kind="stable")
    return {
        "pid": int(pid),
        "agreement": agreement,
        "n_images": int(rows["n_images"].iloc[0]),
        "rows": [
            {"name": _title(row["slot"]), "agreement": row["agreement"], "tally": _tally(json.loads(row["values"]))}
            for row in split.to_dict("records")
        ],
    }


def _flag(flag: str, captions: pd.DataFrame, flags: pd.DataFrame, shown: int) -> dict[str, Any]:
    marked = flags[flags[flag]]
    columns = ["image_path", "pid", "raw_text", "error"]
    rows = captions.loc[marked.index[:shown], columns].fillna({"raw_text": "", "error": ""}).to_dict("records")
    slots = marked["dissent_slots"][:shown].tolist()
    return {
        "name": flag,
        "title": _title(flag),
        "meaning": FLAGS[flag],
        "count": len(marked),
        "examples": [
            {
                "path": row["image_path"],
                "pid": row["pid"],
                "text": row["raw_text"] or row["error"],
                "notes": _notes(flag, row["raw_text"], dissent),
            }
            for row, dissent in zip(rows, slots, strict=True)
        ],
    }


def _notes(flag: str, text: str, dissent: list[str]) -> list[str]:
    if flag == "dissent":
        return [_title(slot) for slot in dissent]
    return list(degrading_words(text)) if flag == "degrading" else []


def _tally(values: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))


def _title(name: str) -> str:
    return name.replace("_", " ")
