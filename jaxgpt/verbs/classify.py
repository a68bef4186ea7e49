"""`jaxgpt classify`: the labels of texts, by a trained classifier."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxgpt.errors import ConfigError, unreadable


@dataclass(frozen=True, kw_only=True)
class ClassifyArgs:
    """Put each TEXT into one of the classes that MODEL was trained to tell apart.

    Each text gets a line: its label, the label's probability, and the text.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run directory of `jaxgpt finetune`, or a folder of Hugging Face's GPT2ForSequenceClassification."""
    texts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT...")] = ()
    """The texts. Without any, or for `-`, each line of standard input is a text."""
    file: Path | None = None
    """A file in which each line is a text."""
    json: bool = False
    """Write an object for each text, with the probabilities of all labels, instead of a line for people."""


def run(args: ClassifyArgs) -> None:
    """Classify the texts and write a line for each to stdout."""
    texts = _texts(args)
    from jaxgpt.finetuning.classifier import classify

    for text, found in zip(texts, classify(args.model, texts), strict=True):
        if args.json:
            row = {"text": text, "label": found.label, "probabilities": found.probabilities}
            print(json.dumps(row, ensure_ascii=False))
        else:
            print(f"{found.label}\t{found.probabilities[found.label]:.4f}\t{text}")


def _texts(args: ClassifyArgs) -> list[str]:
    """The texts that the command line names. Raises ConfigError where there are none."""
    given = list(args.texts)
    try:
        if args.file:
            given += [line for line in args.file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(args.file, OSError(str(error))) from error
    if "-" in given or not given:
        place = given.index("-") if "-" in given else 0
        given[place : place + 1] = [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not given:
        raise ConfigError(
            "no texts", why="nothing was given to classify", fix='write one: classify MODEL "TEXT"'
        )
    return given
