"""WikiText-2 and WikiText-103 (S. Merity et al. 2016): whole articles. Both have the same test articles."""

import math
import re
from collections.abc import Sequence

import numpy as np

from jaxgpt.evaluation.tasks.scorer import Scorer
from jaxgpt.evaluation.tasks.sources import WIKITEXT, refuse, text_of
from jaxgpt.evaluation.tasks.task import Measured, Protocol, Published, Task

_PAPER = "Radford et al. 2019, table 3"
_PAPER_103 = {"124M": 37.50, "355M": 26.37, "774M": 22.05, "1558M": 17.48}
_PAPER_2 = {"124M": 29.41, "355M": 22.76, "774M": 19.93, "1558M": 18.34}
_TIGHTENED = (
    (r"\(\s*([^)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r'"\s*([^"]*?)\s*"', r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
)


def read(content: bytes) -> list[str]:
    """The lines of `wiki.test.raw`, without what ends them."""
    lines = text_of(content, WIKITEXT.file).split("\n")
    refuse([], [line for line in lines if line.strip()], WIKITEXT.file)
    return lines


def articles_of(lines: Sequence[str]) -> list[str]:
    """One text for each article, which begins with a heading such as ` = Title = ` of the first level."""
    articles: list[list[str]] = [[]]
    for line in lines:
        if re.fullmatch(r"= (?!=).*(?<!=) =", line.strip()):
            articles.append([])
        articles[-1].append(line)
    pages = ("\n".join(article) for article in articles)
    return [page for page in pages if page.strip()]


def detokenized(text: str) -> str:
    """An article with the spaces that an author would have written.

    The rules are those of lm-evaluation-harness (`preprocess_wikitext.py`), in its order, but for one that
    never matches.
    """
    text = text.replace("s '", "s'")
    for mark in "-,.":
        text = text.replace(f" @{mark}@ ", mark)
    for mark in ":;.!?,":
        text = text.replace(f" {mark} ", f"{mark} ")
    for pattern, tight in _TIGHTENED:
        text = re.sub(pattern, tight, text)
    for level in (4, 3, 2):
        text = text.replace(" ".join("=" * level), "=" * level)
    text = text.replace(" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}")
    text = text.replace(" \n", "\n").replace("\n ", "\n")
    return text.replace(" N ", " 1 ").replace(" 's", "'s")


def _by_article(scorer: Scorer, lines: Sequence[str]) -> list[Measured]:
    """Nats over de-tokenized articles, for each word and byte of the articles as they were."""
    pages = articles_of(lines)[: scorer.limit]
    losses = scorer.documents([detokenized(page) for page in pages], full_last=True)
    words, word_error = losses.per(np.array([len(re.split(r"\s+", page)) for page in pages]))
    bytes_, byte_error = losses.per(np.array([len(page.encode()) for page in pages]))
    bits = 1 / math.log(2)
    return [
        Measured(
            "word_perplexity", math.exp(words), math.exp(words) * word_error, "of a word of the original"
        ),
        Measured("bits_per_byte", bytes_ * bits, byte_error * bits, "of the original"),
    ]


def _by_token(scorer: Scorer, lines: Sequence[str]) -> list[Measured]:
    """All lines as they are, joined as transformers' perplexity script joins the rows of the data set."""
    rows = [f"{line}\n" if line.strip() else "" for line in lines[:-1]]
    ids = scorer.tokenizer.encode("\n\n".join(rows))
    losses, _ = scorer.stream(ids)
    loss, error = losses.per(losses.tokens_W)
    return [Measured("perplexity", math.exp(loss), math.exp(loss) * error, "of a token")]


_HARNESS = "public reproductions by this protocol: transformers issue 13761, GPT-Neo's README (1558M)"
BY_ARTICLE = Protocol(
    "each de-tokenized article alone in {windows}; \u00b1 is the standard error over articles",
    _by_article,
    ("word_perplexity", "bits_per_byte"),
    {"word_perplexity": Published({"124M": 37.37, "1558M": 17.48}, _HARNESS)},
)
PAPER_103 = BY_ARTICLE._replace(
    published={
        "word_perplexity": Published(
            _PAPER_103, f"{_PAPER}; public reproductions: 37.37 (124M), 17.48 (1558M)"
        )
    }
)
PAPER_2 = Protocol(
    "the raw text in {windows}, every token scored once; \u00b1 is the standard error over windows",
    _by_token,
    ("perplexity",),
    {
        "perplexity": Published(
            _PAPER_2,
            f"{_PAPER}; transformers' script, which leaves the first token of a window out, has 29.94 (124M)",
        )
    },
)
WIKITEXT_2 = Task("wikitext-2", WIKITEXT, read, {"harness": BY_ARTICLE, "paper": PAPER_2})
WIKITEXT_103 = Task("wikitext-103", WIKITEXT, read, {"harness": BY_ARTICLE, "paper": PAPER_103})
