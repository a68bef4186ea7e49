"""`jaxgpt classify`: the labels of texts, by a trained classifier."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxgpt.errors import ConfigError, DataError, MissingError, unreadable
from jaxgpt.verbs.flags import AdapterFlags


@dataclass(frozen=True, kw_only=True)
class ClassifyArgs(AdapterFlags):
    """Put each TEXT into one of the classes that MODEL was trained to tell apart.

    Each text gets a line: its label, the label's probability, and the text.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run directory of `jaxgpt finetune`, or a folder of Hugging Face's GPT2ForSequenceClassification.
    RUN@best is a run's best checkpoint, RUN@500 that of step 500."""
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

    for text, found in zip(texts, classify(args.model, texts, adapter=args.adapter), strict=True):
        if args.json:
            row = {"text": text, "label": found.label, "probabilities": found.probabilities}
            print(json.dumps(row, ensure_ascii=False))
        else:
            print(f"{found.label}\t{found.probabilities[found.label]:.4f}\t{text}")


def _texts(args: ClassifyArgs) -> list[str]:
    """The texts that the command line names. Raises ConfigError where there are none."""
    given = list(args.texts)
    if args.file:
        given += _lines(args.file.read_bytes, str(args.file))
    if "-" in given or not given:
        place = given.index("-") if "-" in given else 0
        given[place : place + 1] = _lines(sys.stdin.buffer.read, "standard input")
    if not given:
        fix = 'write one: classify MODEL "TEXT"'
        raise ConfigError("no texts", why="nothing was given to classify", fix=fix)
    return given


def _lines(read: Callable[[], bytes], name: str) -> list[str]:
    """The lines of a file that are not blank. Raises DataError where it is not UTF-8."""
    try:
        text = read().decode("utf-8-sig")
    except FileNotFoundError as error:
        fix = "name a file in which each line is a text"
        raise MissingError("no texts", path=name, why="there is no such file", fix=fix) from error
    except OSError as error:
        raise unreadable(name, error) from error
    except UnicodeDecodeError as error:
        raise DataError(
            "not text", path=name, why=f"it is not UTF-8: {error}", fix="save it as UTF-8"
        ) from error
    return [line for line in text.splitlines() if line.strip()]
