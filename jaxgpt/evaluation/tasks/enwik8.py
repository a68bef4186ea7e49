"""enwik8 and text8 (M. Mahoney): the last five of a hundred million bytes of Wikipedia, as they are."""

import math

from jaxgpt.errors import DataError
from jaxgpt.evaluation.figures import bytes_of
from jaxgpt.evaluation.tasks.scorer import Scorer
from jaxgpt.evaluation.tasks.sources import ENWIK8, TEXT8, Source, text_of
from jaxgpt.evaluation.tasks.task import Measured, Protocol, Published, Task

TEST_BYTES = 5_000_000  # of 100,000,000: 90 % are for training, 5 % each for validation and test
STRIDE = 512


def read(content: bytes, file: str = ENWIK8.file) -> str:
    """The test split of a file, from its first whole character on.

    Raises DataError for a file that is not longer than its test split.
    """
    if len(content) <= TEST_BYTES:
        raise DataError(
            "a task's file",
            path=file,
            why=f"it has {len(content):,} bytes, and its last {TEST_BYTES:,} are the test split",
            fix="fetch it again",
        )
    test = content[-TEST_BYTES:]
    begin = next(place for place, byte in enumerate(test) if byte & 0xC0 != 0x80)
    return text_of(test[begin:], file)


def _paper(scorer: Scorer, text: str) -> list[Measured]:
    """Bits for each byte of the text, whatever its tokens."""
    ids = [scorer.beginning, *scorer.tokenizer.encode(text)]
    losses, tokens = scorer.stream(ids)
    loss, error = losses.per(losses.tokens_W)
    scale = losses.tokens / bytes_of(tokens, scorer.tokenizer) / math.log(2)
    return [Measured("bits_per_byte", loss * scale, error * scale, "of the text")]


def _task(name: str, source: Source, published: tuple[float, float, float, float], others: str) -> Task:
    values = dict(zip(("124M", "355M", "774M", "1558M"), published, strict=True))
    protocol = Protocol(
        "the last 5,000,000 bytes as they are in {windows}; \u00b1 is the standard error over windows",
        _paper,
        ("bits_per_byte",),
        {"bits_per_byte": Published(values, f"Radford et al. 2019, table 3; {others}")},
        stride=STRIDE,
    )
    return Task(name, source, lambda content: read(content, source.file), {"paper": protocol})


WIKI = _task(
    "enwik8",
    ENWIK8,
    (1.16, 1.01, 0.97, 0.93),
    "1.016 (1558M) in windows of 1024 whose every position counts (skeptric.com/perplexity)",
)
LETTERS = _task("text8", TEXT8, (1.17, 1.06, 1.02, 0.98), "no public reproduction is known")
