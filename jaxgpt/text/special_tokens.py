"""A tokenizer gets further special tokens, such as the markers of a chat template. Texts keep their ids."""

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path

from jaxgpt.errors import ConfigError
from jaxgpt.text.foreign_tokenizer import ForeignTokenizer
from jaxgpt.text.tokenizer import RankTokenizer, Tokenizer, rank_problems, refuse_surrogates
from jaxgpt.text.tokenizer_folder import JSON_FILE, SETTINGS_FILE, TokenizerFiles, parse_files
from jaxgpt.text.tokenizer_json import END_OF_TEXT, format_json, parse_json

MARKER = re.compile(r"<\S+>|\[\S+\]")


def with_special_tokens(tokenizer: Tokenizer, tokens: Sequence[str]) -> ForeignTokenizer:
    """Return the tokenizer with these special tokens, whose ids follow its own.

    The result is a tokenizer.json, as the `tokenizers` library reads it. Raises ConfigError that names every
    token which is none, or exists already, and for a tokenizer that can have no such tokens.
    """
    if isinstance(tokenizer, RankTokenizer):
        given = _files_of(tokenizer)
    elif isinstance(tokenizer, ForeignTokenizer):
        given = tokenizer.given
    else:
        raise ConfigError(
            f"the tokenizer {tokenizer.name}",
            why="its tokens are single characters, and it can have no special ones",
            fix="begin with a model of another tokenizer, such as bytes or gpt2",
        )
    data = copy.deepcopy(given.data)
    added, vocab = data["added_tokens"], data["model"]["vocab"]
    _check(tokens, {*vocab, *(token["content"] for token in added)})
    added[:] = [token for token in added if token["id"] < tokenizer.vocab]  # the model has no others
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for id, text in enumerate(tokens, start=tokenizer.vocab):
        vocab[text] = id  # where it does not stand there, the library numbers added tokens by itself
        added.append({"id": id, "content": text, **flags})
    settings = json.loads(given.files.get(SETTINGS_FILE, b"{}"))
    settings.pop("added_tokens_decoder", None)  # they all stand in tokenizer.json now
    files = {JSON_FILE: data, SETTINGS_FILE: settings | given.special}
    written = {
        name: json.dumps(table, ensure_ascii=False, indent=1).encode() for name, table in files.items()
    }
    return ForeignTokenizer(parse_files(written, Path(JSON_FILE)), Path(JSON_FILE))


def is_grown(tokenizer: Tokenizer) -> bool:
    """Whether it is a tokenizer of GPT-2's kind that has got further special tokens."""
    if not isinstance(tokenizer, ForeignTokenizer):
        return False
    data = copy.deepcopy(tokenizer.given.data)
    added, vocab = data["added_tokens"], data["model"]["vocab"]
    for token in [token for token in added if token["special"] and token["content"] != END_OF_TEXT]:
        added.remove(token)
        vocab.pop(token["content"], None)
    ranks = parse_json(data)
    return ranks is not None and not rank_problems(ranks)


def _files_of(tokenizer: RankTokenizer) -> TokenizerFiles:
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, **tokenizer.special_tokens}
    written = {JSON_FILE: format_json(tokenizer.ranks), SETTINGS_FILE: json.dumps(settings).encode()}
    return parse_files(written, Path(JSON_FILE))


def _check(tokens: Sequence[str], known: set[str]) -> None:
    """Raise ConfigError that names every token which cannot be added."""
    problems: list[str] = []
    for number, text in enumerate(tokens):
        refuse_surrogates(text)
        if text in known:
            problems.append(f"{text} exists already")
        elif text in tokens[:number]:
            problems.append(f"{text} is named twice")
        elif not MARKER.fullmatch(text):
            problems.append(f"{text!r} does not look like a special token")
    if not tokens:
        problems.append("none is named")
    if problems:
        raise ConfigError(
            "cannot add these special tokens",
            why="; ".join(problems),
            fix="name new ones in angle or square brackets and without white space, such as '<|user|>'",
        )
