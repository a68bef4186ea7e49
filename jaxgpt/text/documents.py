"""The stream of documents is divided into training and validation, and cut into pieces for the tokenizer.

A cut is between a character and a whitespace that follows it. GPT-2's pattern always ends a piece there, so
the parts encode to the same ids as the whole.
"""

import re
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from jaxgpt.display import Progress
from jaxgpt.errors import DataError, JaxgptError
from jaxgpt.text.corpus import Text
from jaxgpt.text.manifest import Source
from jaxgpt.text.text_files import Block
from jaxgpt.text.tokenizer import WHITESPACE

_BORDER = re.compile(f"(?<=[^{WHITESPACE}])[{WHITESPACE}]")
_NEAR = 1 << 16  # a single document is cut at a border within this many characters after the wanted place
_TICK = 1 << 20  # characters between two reports of progress


class Meter:
    """Counts characters and reports them to `progress` from time to time."""

    def __init__(self, what: str, total: int | None, progress: Progress | None) -> None:
        """Count up to `total` characters if that is known; `what` names the work in the reports."""
        self.what, self.total, self.progress = what, total, progress
        self.done = self._shown = 0

    def count(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """Yield the blocks and count them."""
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
    """What the texts hold and how they are divided.

    Several documents are divided whole, and `validation` holds the indices of those for validation. A single
    document is cut at the character `cut`, which is otherwise None.
    """

    texts: tuple[Text, ...]
    sources: tuple[Source, ...]
    stamps: tuple[tuple[int, int], ...]
    documents: int
    characters: int
    validation: Collection[int]
    cut: int | None

    def split_blocks(self, split: str) -> Iterator[Block]:
        """Yield the documents of the split `train` or `val`, or its part of a single document."""
        blocks = (block for text in self.texts for block in text.blocks())
        if self.cut is not None:
            return take_span(blocks, *((0, self.cut) if split == "train" else (self.cut, None)))
        return take_documents(blocks, self.validation, inside=split == "val")

    def split_documents(self, split: str) -> int:
        """Return how many documents the split has, whole or in part."""
        if self.cut is not None:
            return 1
        return len(self.validation) if split == "val" else self.documents - len(self.validation)

    def check_unchanged(self) -> None:
        """Raise DataError if a file has changed since it was scanned."""
        if changed := [
            text.name for text, was in zip(self.texts, self.stamps, strict=True) if text.stamp() != was
        ]:
            why = "the text changed while it was read"
            raise DataError(
                "the input changed",
                path=", ".join(changed),
                why=why,
                fix="delete the folder that was being prepared and start again",
            )


def scan(
    texts: Sequence[Text],
    val_fraction: float,
    progress: Progress | None = None,
    *,
    tell: Callable[[str], None] = lambda _: None,
    skip_unreadable: bool = False,
) -> Plan:
    """Read the texts once, check them, and decide how to divide them.

    `tell` hears what was passed over, and that the validation split became far larger or smaller than asked
    for. With `skip_unreadable`, texts that are damaged, empty or no text are passed over too. Otherwise
    raises DataError that names all of them, or the error of the only one; and where a text is too short to
    divide.
    """
    stamps, kept, sources = [], [], []
    sizes = array("q")
    problems: list[JaxgptError] = []
    meter = Meter("reading", None, progress)
    for text in texts:
        passed_over: Counter[str] = Counter()
        try:
            stamp, held = text.stamp(), _sizes(meter.count(text.blocks(passed_over)))
            digest, count = text.digest()
        except JaxgptError as error:
            problems.append(error)
            continue
        if passed_over:
            tell(f"{text.name}: left out {', '.join(counted(n, kind) for kind, n in passed_over.items())}")
        stamps.append(stamp)
        kept.append(text)
        sizes.extend(held)
        sources.append(Source(name=text.name, sha256=digest, bytes=count, documents=len(held)))
    _report_problems(problems, len(texts), tell, skip_unreadable=skip_unreadable)
    single = len(sizes) == 1 and val_fraction > 0
    validation = set() if single else choose_validation(sizes, val_fraction)
    if validation:
        _report_share(sizes, validation, val_fraction, tell)
    return Plan(
        texts=tuple(kept),
        sources=tuple(sources),
        stamps=tuple(stamps),
        documents=len(sizes),
        characters=sum(sizes),
        validation=validation,
        cut=_find_cut(kept[0], sizes[0], val_fraction) if single else None,
    )


def _sizes(blocks: Iterable[Block]) -> "array[int]":
    """Return the number of characters of each document."""
    sizes, held = array("q"), 0
    for block in blocks:
        held += len(block.text)
        if block.ends:
            sizes.append(held)
            held = 0
    return sizes


def counted(number: int, kind: str) -> str:
    """Return a number of things in words: `1 blank line`, `3 blank lines`."""
    return f"{number:,} {kind}" + "s" * (number != 1)


def _report_problems(
    problems: Sequence[JaxgptError], texts: int, tell: Callable[[str], None], *, skip_unreadable: bool
) -> None:
    """Tell of the texts that are passed over. Raises the error that names them where none may be."""
    if skip_unreadable and len(problems) < texts:
        for problem in problems:
            tell(f"left out: {problem}")
    elif texts == 1 and problems:
        raise problems[0]
    elif problems:
        kind = DataError if any(isinstance(problem, DataError) for problem in problems) else type(problems[0])
        fix = "mend or remove them"
        if not skip_unreadable:
            fix += ", or leave them out with `jaxgpt prepare --skip-unreadable`"
        raise kind(
            f"cannot use {len(problems)} of {texts} texts", why=" | ".join(map(str, problems)), fix=fix
        )


def _report_share(
    sizes: Sequence[int], validation: Collection[int], asked: float, tell: Callable[[str], None]
) -> None:
    """Tell where whole documents make the share of the validation split far from the one asked for."""
    share = sum(sizes[index] for index in validation) / sum(sizes)
    if not asked / 1.5 <= share <= asked * 1.5:
        tell(
            f"the validation split has {share:.0%} of the text instead of {asked:.0%}, because the "
            f"{len(sizes):,} documents are divided whole; join them in one file to divide it exactly"
        )


def _find_cut(text: Text, characters: int, val_fraction: float) -> int:
    """Return where to cut a single document: at the first border after the wanted place, or just there."""
    if characters < 2:
        raise DataError(
            "cannot divide the text",
            path=text.name,
            why="it has only one character",
            fix="give more text, or leave no part of it for validation (a val-fraction of 0)",
        )
    target = min(max(round(characters * (1 - val_fraction)), 1), characters - 1)
    near = "".join(block.text for block in take_span(text.blocks(), target - 1, target + _NEAR))
    border = find_border(near, 1)
    return target if border is None else target - 1 + border


def find_border(text: str, start: int) -> int | None:
    """Return the first index from `start` on at which the text may be cut, or None if there is none."""
    found = _BORDER.search(text, start)
    return found.start() if found else None


def choose_validation(sizes: Sequence[int], fraction: float) -> set[int]:
    """Return the indices of the documents for validation: about `fraction` of all text, spread evenly.

    Going through the documents in order, one is taken when those taken so far fall short of `fraction` of
    those seen so far by at least half its size. Of two or more documents, at least one is taken and one is
    left, unless `fraction` is 0.
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
    """Yield characters `start` to `stop` - 1 of a single document; only a span to its end ends it."""
    at = 0
    for text, ends in blocks:
        first, last = max(start - at, 0), len(text) if stop is None else min(stop - at, len(text))
        if first < last or (ends and stop is None):
            yield Block(text[first:last], ends and stop is None)
        at += len(text)


def cut_blocks(blocks: Iterable[Block], size: int) -> Iterator[Block]:
    """Yield the same documents in blocks that end at the first border after `size` characters.

    The cuts do not depend on how the text was divided into blocks before. Text without a border stays
    together, however long it is.
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
    """Yield the blocks in lists that hold at least `size` characters each; the last list holds the rest."""
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
