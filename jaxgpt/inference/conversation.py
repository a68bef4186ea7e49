"""A conversation with a model: its history, its template, and which part of it fits the context."""

from dataclasses import dataclass, field

from jaxgpt.errors import ConfigError
from jaxgpt.inference.templates import Message, Template

# What the user said and, once the model has answered, the answer.
Exchange = list[Message]


def room_for_prompt(context: int, max_new_tokens: int) -> int:
    """Return how many tokens of a context the history may take: what the answer leaves, and at least half."""
    return context - min(max_new_tokens, context // 2)


@dataclass
class Conversation:
    """Who said what. For each exchange, call `ask`, let the model continue the ids, and call `answer`.

    A system text opens the conversation. It stays when old exchanges are dropped.
    """

    template: Template
    room: int
    """The largest number of tokens in a prompt (see `room_for_prompt`)."""
    system: str = ""
    exchanges: list[Exchange] = field(default_factory=list)
    """The exchanges that are remembered, the oldest first."""
    turns: int = 0
    """How many times `ask` was called."""

    def ask(self, text: str) -> tuple[list[int], list[str]]:
        """Return the ids to continue after the user has said `text`, and notes on what was left out to make
        them fit.

        The oldest exchanges are dropped first, and for good. If `text` does not even fit alone, its beginning
        is cut off. Raises ConfigError if the system text takes all the room, DataError for text that is not
        Unicode, and what the template raises. An error leaves the conversation unchanged.
        """
        exchanges, notes = [*self.exchanges, [("user", text)]], []
        while len(exchanges) > 1 and len(self._ids(exchanges)) > self.room:
            del exchanges[0]
        if dropped := len(self.exchanges) + 1 - len(exchanges):
            notes.append(f"the context is full: {dropped} earlier exchange{'s' * (dropped > 1)} dropped")
        ids = self._ids(exchanges)
        if len(ids) > self.room:
            kept = self._longest_end(text)
            notes.append(f"only the last {len(kept)} of {len(text)} characters fit the context and are read")
            exchanges[-1] = [("user", kept)]
            ids = self._ids(exchanges)
        self.exchanges = exchanges
        self.turns += 1
        return ids, notes

    def answer(self, text: str) -> None:
        """Remember what the model said after the last `ask`, even if it was stopped early."""
        self.exchanges[-1].append(("assistant", self.template.remembered(text)))

    def reset(self) -> None:
        """Forget everything except the system text."""
        self.exchanges = []

    def _ids(self, exchanges: list[Exchange]) -> list[int]:
        messages = [message for exchange in exchanges for message in exchange]
        return self.template.ids([("system", self.system)] * bool(self.system) + messages)

    def _longest_end(self, text: str) -> str:
        """Return the longest end of a text that fits if nothing else was said."""
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
