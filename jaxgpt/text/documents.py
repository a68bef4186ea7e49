"""The stream of documents: dividing it into training and validation, and cutting it for the tokenizer.

Cuts fall where whitespace follows a character that is none. GPT-2's pattern has a border between two pieces at every
such place, whatever stands around it, so the parts encode to the same ids as the whole.
"""

import re
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from jaxgpt.errors import DataError
from jaxgpt.text.corpus import Block, Text
from jaxgpt.text.download import Progress
from jaxgpt.text.manifest import Source
from jaxgpt.text.tokenizer import WHITESPACE

_BORDER = re.compile(f"(?<=[^{WHITESPACE}])[{WHITESPACE}]")
_NEAR = 1 << 16  # characters after the wanted place among which a single document is cut at a border
_TICK = 1 << 20  # characters between two reports of progress


class Meter:
    """Counts characters and reports them to `progress` from time to time."""

    def __init__(self, what: str, total: int | None, progress: Progress | None) -> None:
        self.what, self.total, self.progress = what, total, progress
        self.done = self._shown = 0

    def count(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """Yield the blocks, counting them."""
        for block in blocks:
            self.add([block])
            yield block

    def add(self, blocks: Iterable[Block]) -> None:
        """Count the characters of these blocks."""
        self.done += sum(len(block.text) for block in blocks)
        if self.progress and (self.done - self._shown >= _TICK or self.done == self.total):
            self._shown = self.done
            self.progress(self.what, self.done, self.total)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the texts hold and how they are divided; `cut` is the character at which a single document is."""

    texts: tuple[Text, ...]
    sources: tuple[Source, ...]
    stamps: tuple[tuple[int, int], ...]
    documents: int
    characters: int
    validation: Collection[int]
    cut: int | None

    def split_blocks(self, split: str) -> Iterator[Block]:
        """Yield the documents, or the span of the single one, that belong to `train` or `val`."""
        blocks = (block for text in self.texts for block in text.blocks())
        if self.cut is not None:
            return take_span(blocks, *((0, self.cut) if split == "train" else (self.cut, None)))
        return take_documents(blocks, self.validation, inside=split == "val")

    def split_documents(self, split: str) -> int:
        """Return how many documents the split has, wholly or in part."""
        if self.cut is not None:
            return 1
        return len(self.validation) if split == "val" else self.documents - len(self.validation)

    def check_unchanged(self) -> None:
        """Raise DataError if a file is not as it was when it was scanned."""
        if changed := [
            text.name for text, was in zip(self.texts, self.stamps, strict=True) if text.stamp() != was
        ]:
            why = "the text changed while it was read"
            raise DataError(
                "unsteady input", path=", ".join(changed), why=why, fix="delete the folder and start again"
            )


def scan(texts: Sequence[Text], val_fraction: float, progress: Progress | None = None) -> Plan:
    """Read the texts once, check them, and decide on the split; DataError if there is too little to split."""
    stamps = tuple(text.stamp() for text in texts)
    sizes, sources = array("q"), []
    meter = Meter("reading", None, progress)
    for text in texts:
        before, held = len(sizes), 0
        for block in meter.count(text.blocks()):
            held += len(block.text)
            if block.ends:
                sizes.append(held)
                held = 0
        digest, count = text.digest()
        sources.append(Source(name=text.name, sha256=digest, bytes=count, documents=len(sizes) - before))
    single = len(sizes) == 1 and val_fraction > 0
    return Plan(
        texts=tuple(texts),
        sources=tuple(sources),
        stamps=stamps,
        documents=len(sizes),
        characters=meter.done,
        validation=set() if single else choose_validation(sizes, val_fraction),
        cut=_find_cut(texts[0], sizes[0], val_fraction) if single else None,
    )


def _find_cut(text: Text, characters: int, val_fraction: float) -> int:
    """Return where to cut a single document: at the first border near the wanted place, or just there."""
    if characters < 2:
        raise DataError("one character", path=text.name, why="it cannot be split", fix="set --val-fraction 0")
    target = min(max(round(characters * (1 - val_fraction)), 1), characters - 1)
    near = "".join(block.text for block in take_span(text.blocks(), target - 1, target + _NEAR))
    border = find_border(near, 1)
    return target if border is None else target - 1 + border


def find_border(text: str, start: int) -> int | None:
    """Return the first index from `start` on at which the text may be cut, None if there is none."""
    found = _BORDER.search(text, start)
    return found.start() if found else None


def choose_validation(sizes: Sequence[int], fraction: float) -> set[int]:
    """Return the indices of the documents for validation: about `fraction` of the sum of `sizes`, spread evenly.

    Going through the documents, one is taken whenever at least half of it is still wanting. Of two or more documents,
    at least one is taken and one left, unless `fraction` is 0.
    """
    if not fraction:
        return set()
    chosen, taken, seen = set(), 0, 0
    for index, size in enumerate(sizes):
        seen += size
        if taken + size / 2 <= fraction * seen:
            chosen.add(index)
            taken += size
    smallest = min(range(len(sizes)), key=sizes.__getitem__)
    if not chosen:
        return {smallest}
    return chosen - {smallest} if len(chosen) == len(sizes) else chosen


def take_documents(blocks: Iterable[Block], chosen: Collection[int], *, inside: bool) -> Iterator[Block]:
    """Yield the blocks of the documents whose index is in `chosen`, or of those whose index is not."""
    index = 0
    for block in blocks:
        if (index in chosen) == inside:
            yield block
        index += block.ends


def take_span(blocks: Iterable[Block], start: int, stop: int | None) -> Iterator[Block]:
    """Yield characters start to stop - 1 of a single document; it ends only where the document does."""
    at = 0
    for text, ends in blocks:
        first, last = max(start - at, 0), len(text) if stop is None else min(stop - at, len(text))
        if first < last or (ends and stop is None):
            yield Block(text[first:last], ends and stop is None)
        at += len(text)


def cut_blocks(blocks: Iterable[Block], size: int) -> Iterator[Block]:
    """Yield the same documents in blocks of at least `size` characters each, cut at the first border from there on.

    Where the cuts are does not depend on the blocks given. Text without a border stays together, however long.
    """
    rest, searched = "", size
    for text, ends in blocks:
        rest += text
        while (border := find_border(rest, searched)) is not None:
            yield Block(rest[:border], False)
            rest, searched = rest[border:], size
        searched = max(size, len(rest))
        if ends:
            yield Block(rest, True)
            rest, searched = "", size
    if rest:
        yield Block(rest, False)


def group_blocks(blocks: Iterable[Block], size: int) -> Iterator[list[Block]]:
    """Yield the blocks in lists of at least `size` characters together, the last list with what is left."""
    group: list[Block] = []
    held = 0
    for block in blocks:
        group.append(block)
        held += len(block.text)
        if held >= size:
            yield group
            group, held = [], 0
    if group:
        yield group
