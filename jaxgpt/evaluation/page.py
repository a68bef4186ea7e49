"""A report as one HTML page: no scripts, no other files, nothing from the network, light and dark."""

import base64
import re
from collections.abc import Iterable, Sequence

from jaxgpt.evaluation import token_html
from jaxgpt.evaluation.document import Heading, Paragraph, Part, Picture, Table, Tokens, Verbatim
from jaxgpt.evaluation.token_html import escaped, token_spans
from jaxgpt.text.shown import Shown

STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --faint: #666d75; --page: #fff; --line: #d9dde2;
  --code: #f3f4f6; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e6e9; --faint: #9aa1a9; --page: #16181b;
  --line: #353a40; --code: #212429; } }
body { margin: 2rem auto; padding: 0 1rem; max-width: 58rem; font: 16px/1.5 system-ui, sans-serif;
  background: var(--page); color: var(--text); }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5rem; } h3 { font-size: 1rem; color: var(--faint); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
td { overflow-wrap: break-word; } td code { overflow-wrap: anywhere; }
th { color: var(--faint); font-weight: 600; }
code, pre { font: 14px/1.5 ui-monospace, monospace; background: var(--code); border-radius: 4px; }
code { padding: .1rem .3rem; }
pre { padding: .8rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } img { max-width: 100%; border-radius: 6px; background: #fff; }
.unscored { color: var(--faint); }
""".strip()
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, parts: Sequence[Part]) -> str:
    """The page. Every text in it is escaped, so that none can become a tag."""
    body = "\n".join(map(_html, parts))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escaped(title)}</title>\n<style>\n{STYLE}\n{token_html.STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{escaped(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _html(part: Part) -> str:
    match part:
        case Heading(text):
            return f"<h2>{escaped(text)}</h2>"
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Table(head, lines):
            rows = [_row("td", line) for line in lines]
            return f'<div class="wide"><table>\n{_row("th", head)}\n' + "\n".join(rows) + "\n</table></div>"
        case Verbatim(text):
            return f"<pre>\n{escaped(text)}</pre>"
        case Picture(path, shows):
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            return f'<figure><img alt="{escaped(shows)}" src="data:image/png;base64,{data}"></figure>'
        case Tokens(texts):
            return "\n".join(_tokens(text, part) for text in texts)


def _row(cell: str, texts: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{cell}>{_inline(text)}</{cell}>" for text in texts) + "</tr>"


def _tokens(shown: Shown, among: Tokens) -> str:
    heading = f"<h3>{escaped(shown.title)}: {shown.loss:.4f}</h3>"
    return f'{heading}\n<pre class="tokens">\n{token_spans(shown, among)}</pre>'


def _inline(text: str) -> str:
    """A text in which code stands between backticks."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", escaped(text))
