"""A conversation with a model: its history, its template, and what of it fits the context window. No terminal here."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jaxgpt.errors import ConfigError, DataError
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.prompts import CHAT_STOP, chat_prompt
from jaxgpt.inference.requests import Request
from jaxgpt.inference.text_stream import TextStream
from jaxgpt.text.tokenizer import Tokenizer

CHAT_FILE = "chat.json"  # beside a model's weights: {"chat": "instruction"} says how the model was tuned
TEMPLATES = ("instruction", "plain")
Exchange = list[
    tuple[str, str]
]  # what the user said and, once it was given, the answer: (role, content) each


def template_of(model: str | Path) -> str:
    """`instruction` or `plain`: what chat.json in the model's folder says; plain where there is none.

    Raises DataError for a file that is not {"chat": "instruction"} or {"chat": "plain"}.
    """
    path = Path(model) / CHAT_FILE
    if not path.is_file():
        return "plain"
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(
            "not JSON", path=path, why=str(error), fix='expected {"chat": "instruction"}'
        ) from error
    if not isinstance(found, dict) or set(found) != {"chat"} or found["chat"] not in TEMPLATES:
        why = f"it must be one key, chat, with one of {', '.join(TEMPLATES)}"
        raise DataError("no template", path=path, why=why, fix='expected {"chat": "instruction"}')
    return found["chat"]


def room_for_prompt(context: int, max_new_tokens: int) -> int:
    """How many tokens of a window the history may take: what the answer leaves, and never less than half."""
    return context - min(max_new_tokens, context // 2)


@dataclass
class Conversation:
    """Who said what. `ask`, let the model continue, `answer`; and again.

    `instruction` is the template of `chat_prompt`. `plain` is one growing text, for base models: what the user types is
    appended as it stands, and so is what the model writes. A system text is the template's opening, or the plain
    text's beginning; it stays when old exchanges are dropped.
    """

    tokenizer: Tokenizer
    template: str
    """One of TEMPLATES."""
    room: int
    """Tokens that a prompt may have (`room_for_prompt`)."""
    system: str = ""
    exchanges: list[Exchange] = field(default_factory=list)
    """The oldest first."""
    turns: int = 0
    """How many times was asked since the beginning."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end an answer."""
        return CHAT_STOP if self.template == "instruction" else ()

    def ask(self, text: str) -> tuple[list[int], list[str]]:
        """The ids to continue when the user says this, and what had to be left out for them to fit, in words.

        The oldest exchanges go first, for good. What the user says now is cut, at its beginning, only where it does not
        fit alone. Raises ConfigError where the system text takes all the room, DataError for text that is no Unicode;
        the conversation is then what it was.
        """
        exchanges, notes = [*self.exchanges, [("user", text)]], []
        while len(exchanges) > 1 and len(self._ids(exchanges)) > self.room:
            del exchanges[0]
        if dropped := len(self.exchanges) + 1 - len(exchanges):
            notes.append(
                f"{dropped} earlier exchange{'s' * (dropped > 1)} dropped: the context window is full"
            )
        ids = self._ids(exchanges)
        if len(ids) > self.room:
            kept = self._longest_end(text)
            notes.append(
                f"only the last {len(kept)} of {len(text)} characters fit the context window and are read"
            )
            exchanges[-1] = [("user", kept)]
            ids = self._ids(exchanges)
        self.exchanges = exchanges
        self.turns += 1
        return ids, notes

    def answer(self, text: str) -> None:
        """Note what the model said to the last `ask`, whole or not."""
        said = text.strip() if self.template == "instruction" else text
        self.exchanges[-1].append(("assistant", said))

    def reset(self) -> None:
        """Forget all but the system text."""
        self.exchanges = []

    def _ids(self, exchanges: list[Exchange]) -> list[int]:
        messages = [message for exchange in exchanges for message in exchange]
        if self.template == "plain":
            text = self.system + "".join(content for _, content in messages)
            return self.tokenizer.encode(text) or [self.tokenizer.end_of_text]
        return self.tokenizer.encode(chat_prompt([("system", self.system)] * bool(self.system) + messages))

    def _longest_end(self, text: str) -> str:
        """The longest end of a text that fits as the only thing said."""
        if (least := len(self._ids([[("user", "")]]))) > self.room:
            raise ConfigError(
                f"{least} tokens before anything is said",
                why=f"there is room for {self.room}",
                fix="shorten --system, or lower --max-new-tokens",
            )
        fits, too_long = 0, len(text)
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if len(self._ids([[("user", text[len(text) - middle :])]])) <= self.room:
                fits = middle
            else:
                too_long = middle
        return text[len(text) - fits :]


def answer_pieces(
    engine: Engine, request: Request, tokenizer: Tokenizer, stop: tuple[str, ...], stopped: Callable[[], bool]
) -> Iterator[str]:
    """The answer as it comes, until it ends, a stop string comes, or `stopped` says so between two tokens.

    The engine must have nothing else to do.
    """
    stream, number = TextStream(tokenizer, stop), engine.submit(request)
    try:
        while engine.busy:
            for new in engine.step():
                if stopped():
                    return
                if new.token is not None and (piece := stream.push(new.token)):
                    yield piece
                if stream.stopped:
                    return
    finally:
        engine.cancel(number)
    if rest := stream.finish():
        yield rest
