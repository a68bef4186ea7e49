"""LAMBADA (D. Paperno et al. 2016): the last word of a passage, which only the whole passage tells.

The documents are OpenAI's, in which the text is natural: 5,153 passages.
"""

from collections.abc import Sequence
from typing import Any

from jaxgpt.evaluation.tasks.scorer import Continued, Scorer
from jaxgpt.evaluation.tasks.sources import LAMBADA, json_lines
from jaxgpt.evaluation.tasks.task import Measured, Protocol, Published, Task, accuracy, perplexity
from jaxgpt.text.tokenizer import Tokenizer

# NLTK's English stop words without those that have an apostrophe.
STOP_WORDS = (
    "i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her "
    "hers herself it its itself they them their theirs themselves what which who whom this that these "
    "those am is are was were be been being have has had having do does did doing a an the and but if "
    "or because as until while of at by for with about against between into through during before after "
    "above below to from up down in out on off over under again further then once here there when where "
    "why how all any both each few more most other some such no nor not only own same so than too very "
    "s t can will just don should now d ll m o re ve y ain aren couldn didn doesn hadn hasn haven isn "
    "ma mightn mustn needn shan shouldn wasn weren won wouldn "
)

_PAPER = "Radford et al. 2019, table 3"


def read(content: bytes) -> list[str]:
    """The passages of `lambada_test.jsonl`, or of a file of its form."""

    def passage(row: Any) -> str:
        text = row["text"]
        if not isinstance(text, str) or len(text.rsplit(" ", 1)) != 2:
            raise ValueError("its text has no two words")
        return text

    return json_lines(content, passage, LAMBADA.file)


def detokenized(text: str) -> str:
    """A passage with plain double quotes, after a line break, as OpenAI's preparation has it."""
    return (
        "\n"
        + text.replace("\N{LEFT DOUBLE QUOTATION MARK}", '"')
        .replace("\N{RIGHT DOUBLE QUOTATION MARK}", '"')
        .strip()
    )


def barred_ids(tokenizer: Tokenizer) -> list[int]:
    """The stop words that are one token with the space before them; of GPT-2's, 149."""
    ids = (tokenizer.encode(f" {word}") for word in STOP_WORDS.split())
    return sorted(each[0] for each in ids if len(each) == 1)


def _word(scorer: Scorer, texts: Sequence[str], *, barred: Sequence[int] = ()) -> list[Measured]:
    """The last word after all words before it; every token of it must be the greedy one."""
    pairs = []
    for text in texts:
        before, word = text.rsplit(" ", 1)
        pairs.append(scorer.pair(before, f" {word}"))
    return _figures(scorer.continuations(pairs, barred=barred), "last words", "word")


def _harness(scorer: Scorer, texts: Sequence[str]) -> list[Measured]:
    return _word(scorer, texts[: scorer.limit])


def _paper(scorer: Scorer, texts: Sequence[str]) -> list[Measured]:
    natural = [detokenized(text) for text in texts[: scorer.limit]]
    return _word(scorer, natural, barred=barred_ids(scorer.tokenizer))


def _last_token(scorer: Scorer, texts: Sequence[str]) -> list[Measured]:
    ids = [scorer.tokenizer.encode(text) for text in texts[: scorer.limit]]
    return _figures(scorer.continuations([(each[:-1], each[-1:]) for each in ids]), "last tokens", "token")


def _figures(found: Sequence[Continued], what: str, unit: str) -> list[Measured]:
    return [
        accuracy("accuracy", [each.greedy for each in found], f"share of {what} that greedy decoding writes"),
        perplexity("perplexity", [each.logprob for each in found], f"of the {unit}"),
    ]


_BOTH = ("accuracy", "perplexity")
TASK = Task(
    "lambada",
    LAMBADA,
    read,
    {
        "harness": Protocol(
            "the last word, all its tokens greedy, as lm-evaluation-harness's lambada_openai; "
            "\u00b1 is the standard error over passages",
            _harness,
            _BOTH,
            {
                "accuracy": Published(
                    {"124M": 0.3256, "1558M": 0.5121}, "lm-evaluation-harness issue 2159, GPT-Neo's README"
                ),
                "perplexity": Published(
                    {"124M": 40.06, "1558M": 10.634}, "lm-evaluation-harness issue 2159, GPT-Neo's README"
                ),
            },
        ),
        "paper": Protocol(
            "the last word of the de-tokenized text, the single-token stop words of NLTK (149 of GPT-2's "
            "tokens) barred as its first token; \u00b1 is the standard error over passages",
            _paper,
            _BOTH,
            {
                "accuracy": Published(
                    {"124M": 0.4599, "355M": 0.5548, "774M": 0.6012, "1558M": 0.6324},
                    f"{_PAPER}; no public reproduction of it is known",
                ),
                "perplexity": Published(
                    {"124M": 35.13, "355M": 15.60, "774M": 10.87, "1558M": 8.63},
                    f"{_PAPER}; no public protocol gives it",
                ),
            },
        ),
        "last-token": Protocol(
            "the last token of the text; \u00b1 is the standard error over passages",
            _last_token,
            _BOTH,
            {
                "accuracy": Published(
                    {"124M": 0.4689}, "openai/gpt-2 issue 131; transformers issue 13761 has 0.4667"
                )
            },
        ),
    },
)
