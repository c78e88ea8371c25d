"""The style of the page. Light or dark as the browser is set; no script, nothing fetched.

`.tabs` shows one of several panels: the one whose radio button, at the same place among the buttons, is chosen.
"""

from __future__ import annotations

_LIGHT = "#1f6fb5 #c8501e #16805a #8b46ab #9c7000 #0b7f8f #b0336e #5a6a1c"
_DARK = "#6cb4ff #ff9a6c #5fd39f #d29bee #e2bd4f #58d0dd #ff8fbe #b9cc66"


def _colours(values: str) -> str:
    return " ".join(f"--c{i}: {value};" for i, value in enumerate(values.split()))


_LINES = "\n".join(f".c{i} {{ stroke: var(--c{i}); }}" for i in range(8))
_TABS = ",\n".join(
    f".tabs > input:nth-of-type({i}):checked ~ .panel:nth-of-type({i})" for i in range(1, 5)
)  # fmt: skip

STYLE = f"""
:root {{ color-scheme: light dark; --ink: #1c2430; --paper: #ffffff; --soft: #5c6773; --line: #d5dbe1;
  --grid: #e6eaee; --cold: #1667c0; --warm: #d9601a; --size: #16805a; {_colours(_LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e5e9ee; --paper: #14181d; --soft: #9aa7b4; --line: #333c46;
  --grid: #262d35; --cold: #4aa3ff; --warm: #ff8a4c; --size: #4fd0a0; {_colours(_DARK)} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 80rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.4rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.1rem; margin: 2rem 0 .4rem; }}
h3 {{ font-size: 1rem; margin: 1.2rem 0 .3rem; overflow-wrap: anywhere; }}
p {{ max-width: 48rem; margin: .3rem 0 .7rem; }} .soft {{ color: var(--soft); }}
.wide {{ overflow: auto; width: fit-content; max-width: 100%; border: 1px solid var(--line); border-radius: 6px;
  max-height: 34rem; }}
table {{ border-collapse: collapse; font: 13px/1.35 ui-monospace, Consolas, monospace; }}
td, th {{ border: 1px solid var(--line); padding: .2rem .45rem; text-align: left; vertical-align: top;
  white-space: pre; }}
thead th {{ position: sticky; top: 0; background: var(--paper); z-index: 1; }}
td.long {{ white-space: pre-wrap; overflow-wrap: anywhere; min-width: 12rem; max-width: 40rem; }}
td.number {{ text-align: right; }} tr.best td, tr.best th {{ font-weight: 700; }}
table:has(tr.best) tbody tr:not(.best) th {{ font-weight: 400; }}
details {{ margin: .6rem 0; }} summary {{ cursor: pointer; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: .5rem 1.5rem; }}
figure {{ margin: .5rem 0; }} figcaption {{ font-weight: 600; margin-bottom: .3rem; }}
figcaption .soft {{ font-weight: 400; }}
.plot {{ position: relative; margin-left: 3.6rem; height: 13rem; border: 1px solid var(--line); }}
.first .plot {{ height: 22rem; }}
.plot > svg {{ position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }}
.plot > span {{ position: absolute; right: 100%; transform: translateY(50%); padding-right: .4rem; }}
.across {{ position: relative; height: 1.3rem; margin-left: 3.6rem; }}
.across > span {{ position: absolute; transform: translateX(-50%); }}
.across > .edge {{ transform: none; }}
.plot > span, .across, .axis, .ends {{ font: 12px/1.3 ui-monospace, Consolas, monospace; white-space: nowrap; }}
.axis {{ text-align: center; margin-left: 3.6rem; }}
path {{ fill: none; vector-effect: non-scaling-stroke; stroke-width: 1.8; stroke-linejoin: round; }}
.grid {{ stroke: var(--grid); stroke-width: 1; }} .thin {{ stroke-width: 1; opacity: .6; }}
.d1 {{ stroke-dasharray: 7 4; }} .d2 {{ stroke-dasharray: 2 3; }}
.dot {{ stroke-width: 6; stroke-linecap: round; stroke-dasharray: none; }}
.grey {{ stroke: var(--soft); opacity: .5; }}
{_LINES}
.cold {{ fill: var(--cold); }} .warm {{ fill: var(--warm); }} .size {{ fill: var(--size); }}
.key {{ display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; font-size: .85rem; max-width: none;
  overflow-wrap: anywhere; }}
.key svg {{ width: 26px; height: 8px; margin-right: .4rem; vertical-align: middle; }}
.boxes svg, .swatch {{ width: 14px; height: 14px; border: 1px solid var(--line); }}
.tabs > input {{ position: absolute; opacity: 0; pointer-events: none; }}
.tabs > label {{ display: inline-block; padding: .15rem .6rem; margin: 0 .3rem .4rem 0; border: 1px solid var(--line);
  border-radius: 6px; cursor: pointer; font-size: .9rem; }}
.tabs > input:checked + label {{ background: var(--ink); color: var(--paper); }}
.tabs > input:focus-visible + label {{ outline: 2px solid var(--c0); outline-offset: 2px; }}
.tabs > .panel {{ display: none; }}
{_TABS} {{ display: block; }}
.heat {{ display: grid; grid-template-columns: auto minmax(0, 1fr); }}
.heat > svg {{ width: 100%; height: calc(var(--rows) * 1.05rem);
  border: 1px solid var(--line); shape-rendering: crispEdges; }}
.names {{ padding-right: .5rem; }}
.names span {{ display: block; height: 1.05rem; font: 12px/1.05rem ui-monospace, Consolas, monospace;
  text-align: right; }}
.ends {{ grid-column: 2; display: flex; justify-content: space-between; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; font: 14px/1.45 ui-monospace, Consolas, monospace;
  margin: .2rem 0 1rem; padding: .5rem .7rem; border-left: 3px solid var(--line); max-width: 60rem; }}
@media (max-width: 30rem) {{ .first .plot {{ height: 15rem; }} body {{ padding: .7rem; }} }}
"""
