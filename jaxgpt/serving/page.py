"""The page at `/`, and the policy that lets a browser run the page's own script and nothing else."""

import base64
import hashlib
import re
from pathlib import Path

from jaxgpt.evaluation.token_html import STYLE as TOKENS

SCRIPTS = ("page.js", "page_tokens.js", "page_inside.js")


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


# One document, so that the page needs one request, and one key.
HTML = (
    _read("page.html")
    .replace("<style></style>", f"<style>\n{TOKENS}{_read('page.css')}</style>")
    .replace("<script></script>", "<script>\n" + "\n".join(map(_read, SCRIPTS)) + "</script>")
)


def _hash_of(element: str) -> str:
    """Return the Content-Security-Policy source that stands for the page's one inline script or style."""
    (content,) = re.findall(rf"<{element}>(.*?)</{element}>", HTML, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hash_of('script')}; style-src {_hash_of('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}
