"""The frame of a self-contained HTML page: no outside resource, no script, readable in light and dark."""

from __future__ import annotations

import html

STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --faint: #59636e; --back: #ffffff; --panel: #f6f8fa;
  --line: #d1d9e0; --best: #0a7a4f; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --faint: #9198a1; --back: #0d1117; --panel: #161b22; --line: #3d444d; --best: #4cc38a; }
}
body { font: 15px/1.55 system-ui, sans-serif; color: var(--text); background: var(--back); }
body { max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
.faint { color: var(--faint); }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { background: var(--panel); font-weight: 600; vertical-align: bottom; white-space: normal; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
tr.first td { border-top: 2px solid var(--line); }
td.best { font-weight: 700; color: var(--best); }
figure { margin: 1.6rem 0; }
figure img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
figcaption { color: var(--faint); font-size: 13.5px; max-width: 60rem; }
code, pre { font: 13px/1.45 ui-monospace, monospace; background: var(--panel); border-radius: 6px; }
pre { padding: .7rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--faint); }
dl { display: grid; grid-template-columns: fit-content(45%) 1fr; gap: .15rem 1rem; overflow-wrap: anywhere; }
dt { color: var(--faint); }
dd { margin: 0; overflow-wrap: anywhere; }
"""


def page(title: str, body: list[str], style: str = "") -> str:
    """A whole page from its parts, which are HTML; `style` is added to the common one."""
    head = (
        f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{html.escape(title)}</title>"
    )
    head += f"<style>{STYLE}{style}</style>"
    return f"<!doctype html>\n<html lang='en'><head>{head}</head><body>\n" + "\n".join(body) + "\n</body></html>\n"


def facts(values: dict[str, object]) -> str:
    """Names and values as a list of two columns."""
    items = (f"<dt>{html.escape(str(name))}</dt><dd>{html.escape(_text(value))}</dd>" for name, value in values.items())
    return f"<dl>{''.join(items)}</dl>"


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
