"""Tokens in HTML, each coloured by how likely it was: in reports, in notebooks and on the server's page.

The colours of all three stand in tokens.css. There, `--share` is how likely a token was, from 0 to 100.
"""

import html
import math
from pathlib import Path

from jaxgpt.evaluation.document import Tokens
from jaxgpt.evaluation.markdown import CONTROL_PICTURES
from jaxgpt.text.shown import Shown

STYLE = Path(__file__).with_name("tokens.css").read_text(encoding="utf-8")


def token_spans(shown: Shown, among: Tokens) -> str:
    """The tokens of a text, for an element of the class `tokens`. The pointer over a token shows its loss."""
    spans = []
    for text, loss in shown.tokens:
        visible = escaped(text).replace("\n", "↵\n")
        if loss is None:
            spans.append(f'<span class="unscored">{visible}</span>')
        else:
            share = round(100 * (1 - among.heat(loss)))
            told = f"loss {loss:.4f}, probability {math.exp(-loss):.2%}"
            spans.append(f'<span class="token" style="--share: {share}" title="{told}">{visible}</span>')
    return "".join(spans)


def escaped(text: str) -> str:
    """A text without markup. Control characters and halves of surrogate pairs are shown as others."""
    sound = text.encode("utf-8", errors="backslashreplace").decode("utf-8")
    return html.escape(sound.translate(CONTROL_PICTURES))
