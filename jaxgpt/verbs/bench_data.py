"""`jaxgpt bench data`: how fast text becomes tokens, and tokens become batches."""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from jaxgpt.config import GPTConfig
from jaxgpt.display import note
from jaxgpt.text.batches import TrainingBatches
from jaxgpt.text.corpus import open_texts
from jaxgpt.text.prepare import prepare
from jaxgpt.text.shards import open_split
from jaxgpt.text.tokenizer import gpt2_tokenizer

CHUNK = 1 << 20  # characters that tiktoken's threads get at a time


def data_figures(config: GPTConfig, text: str, *, batch: int, steps: int) -> dict[str, Any]:
    """Figures of preparing a text with GPT-2's tokenizer, and of reading `steps` batches of it.

    tiktoken alone, with as many threads, is timed on the same text in memory, in pieces of a million
    characters. Raises what `prepare` raises, and DataError for a text without a whole window.
    """
    threads = os.cpu_count() or 1
    note(f"preparing {text} with {threads} threads, then {steps} times {batch} x {config.context} tokens ...")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "data"
        start = time.perf_counter()
        prepare([text], out, tokenizer="gpt2", val_fraction=0.0, workers=threads)
        prepared = time.perf_counter() - start
        size, alone = _alone(text, threads, Path(folder))
        stream = open_split(out, "train")
        batches = TrainingBatches(
            stream, context=config.context, stride=config.context, sequences=batch, seed=0, vocab=config.vocab
        )
        times = []
        for step in range(steps):
            start = time.perf_counter()
            batches.rows(step, 0, batch)
            times.append(time.perf_counter() - start)
    return {
        "text": text,
        "bytes": size,
        "tokens": len(stream),
        "threads": threads,
        "prepare_seconds": prepared,
        "prepare_bytes_per_second": size / prepared,
        "tiktoken_seconds": alone,
        "share_of_tiktoken": alone / prepared,
        "batch": batch,
        "context": config.context,
        "batch_seconds": statistics.median(times),
        "batch_tokens_per_second": batch * config.context / statistics.median(times),
    }


def _alone(text: str, threads: int, folder: Path) -> tuple[int, float]:
    """The bytes of a text, and the seconds that tiktoken takes for it when it is in memory."""
    blocks = [block for opened in open_texts([text], spool=folder / "spool") for block in opened.blocks()]
    whole = "".join(block.text for block in blocks)
    pieces = [whole[first : first + CHUNK] for first in range(0, len(whole), CHUNK)]
    encoding = gpt2_tokenizer().encoding
    start = time.perf_counter()
    encoding.encode_ordinary_batch(pieces, num_threads=threads)
    return len(whole.encode()), time.perf_counter() - start
