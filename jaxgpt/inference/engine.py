"""The engine: requests join and leave a fixed number of slots, and all slots decode together.

A prompt is read in one pass (`programs.prefill`), padded to a power of two, and its keys and values are put
into a free slot of the cache. Then all slots go on together (`programs.decode`), several tokens in a call of
the device. The cache is as long as the longest row needs, rounded up to a power of two, so that any mix of
lengths compiles at most

    prefill: (number of bucket lengths) x (number of powers of two up to the slots)
    pick: number of powers of two up to the slots     decode: number of spans

programs, the last two for each combination of what is asked for (`Plan`, log-probabilities). Rows never mix:
what a request gets does not depend on the requests beside it. Only the rounding does: prompts that are read
together, and a cache that a neighbour has made longer, add up in another order.

A request says what happens past the context window: it slides (the older half is dropped, and the rest is
read again from position 0), or it stops. A prompt longer than the window is cut to its last tokens.
"""

import math
from collections import deque
from collections.abc import Collection, Generator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.errors import ConfigError
from jaxgpt.inference import programs
from jaxgpt.inference.programs import SHORTEST_PROMPT, SHORTEST_SPAN, Picked, bucket_of
from jaxgpt.inference.requests import NewToken, Request
from jaxgpt.inference.rows import NOBODY, Row, biases_of, drawing, ends_of, pairs_of, reports, seen_of
from jaxgpt.inference.sampling import Plan, Sampling, Seen
from jaxgpt.inference.scoring import score_spans
from jaxgpt.inference.served import Served
from jaxgpt.model.cache import KVCache


class Engine:
    """Runs requests to their ends; see the module's docstring. Not for several threads at a time.

    `slots` rows decode together; more requests wait. `ends` are the ids that end a text: such a token is told
    of with the finish `end`. `steps` is how many tokens a call of the device makes at most; requests join and
    leave between calls.
    """

    def __init__(
        self, served: Served, *, slots: int = 8, ends: Collection[int] = (), steps: int = 16
    ) -> None:
        for name, value in (("slots", slots), ("steps", steps)):
            if value < 1:
                fix = "give a number greater than 0"
                raise ConfigError(f"{name} = {value}", why="it must be 1 or more", fix=fix)
        self.served, self.config, self.slots, self.steps = served, served.config, slots, steps
        self._ends = frozenset(ends)
        self._waiting: deque[tuple[int, Request]] = deque()
        self._rows: list[Row | None] = [None] * slots
        self._number = 0
        self._cache: KVCache | None = None
        self._seen: Seen | None = None
        self._read_last = False
        """Whether the last step read prompts. The next one then decodes: no flood of prompts stops it."""

    # --- what callers do

    def submit(self, request: Request) -> int:
        """Queue a request and return its number.

        Raises ConfigError for what cannot be run, DataError for ids of no token.
        """
        request.check(self.config.vocab)
        self._number += 1
        self._waiting.append((self._number, request))
        return self._number

    def cancel(self, number: int) -> None:
        """Forget a request, waiting or running, and free its slot at once. It may have ended already."""
        self._waiting = deque(pair for pair in self._waiting if pair[0] != number)
        self._rows = [None if row and row.number == number else row for row in self._rows]

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Slots in use."""
        return sum(row is not None for row in self._rows)

    @property
    def busy(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._waiting) or self.running > 0

    @property
    def bytes_per_step(self) -> int:
        """What one device reads for a step of decoding: its part of every matrix once, and of the cache."""
        params = self.served.params
        looked_up = {"wpe", "wte"} if "lm_head" in params else {"wpe"}  # of these only rows are read
        read = {name: leaves for name, leaves in params.items() if name not in looked_up}
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves((read, self._cache))
        )

    def step(self) -> list[NewToken]:
        """Let waiting requests into free slots, or make up to `steps` tokens of each row, by turns.

        Returns what happened, in order.
        """
        turn_to_read = not (self._read_last and self.running)
        self._read_last = False
        if turn_to_read and (news := self._admit()):
            self._read_last = True
            return news
        rows = {slot: row for slot, row in enumerate(self._rows) if row}
        if full := [slot for slot, row in rows.items() if row.filled == self.config.context]:
            return self._slide(full)
        return self._advance(rows) if rows else []

    def run(self, requests: Sequence[Request]) -> Generator[tuple[int, NewToken], None, None]:
        """What happens to these requests until all have ended, with each one's place in the list."""
        places = {self.submit(request): place for place, request in enumerate(requests)}
        try:
            while self.busy:
                for new in self.step():
                    if new.request in places:
                        yield places[new.request], new
        finally:
            for number in places:
                self.cancel(number)

    def warm_up(self) -> None:
        """Compile what common requests run: greedy, drawn, and filtered, each with log-probabilities and
        without.

        That is for short texts, one at a time. Longer texts, and several at a time, compile a program more
        when they first come.
        """
        for sampling in (Sampling(temperature=0), Sampling(), Sampling(top_p=0.9)):
            for logprobs in (None, 0):
                request = Request(
                    prompt=(0,), max_new_tokens=2, sampling=sampling, logprobs=logprobs, ignore_end=True
                )
                for _ in self.run([request]):
                    pass

    def score(self, ids: Sequence[int], alternatives: int = 0) -> list[NewToken]:
        """Log-probabilities of the tokens of a text, each given those before it; the first has none.

        Raises ConfigError for more tokens than the context, DataError for ids of no token.
        """
        if not 0 < len(ids) <= self.config.context:
            raise ConfigError(
                f"{len(ids)} tokens",
                why=f"1 to {self.config.context} can be scored",
                fix=f"give a text of 1 to {self.config.context} tokens",
            )
        (found,) = score_spans(self.served, [(ids, 1)], alternatives=alternatives)
        values_TK, ids_TK = found.top or (np.zeros((len(ids), 0)), np.zeros((len(ids), 0), np.int32))
        return [NewToken(0, ids[0], None, (), None)] + [
            NewToken(
                0, ids[place + 1], logprob, pairs_of(ids_TK[place], values_TK[place], alternatives), None
            )
            for place, logprob in enumerate(found.logprobs_T.tolist())
        ]

    # --- how a step is made

    def _admit(self) -> list[NewToken]:
        """Read the prompts of waiting requests into free slots, those of one bucket together.

        While rows are running they wait for it, so that a step then reads one context full at most.
        """
        news: list[NewToken] = []
        entering: list[tuple[int, Row]] = []
        room = self.config.context if self.running else math.inf
        for slot, row in enumerate(self._rows):
            while row is None and self._waiting:
                room -= bucket_of(len(self._waiting[0][1].prompt), SHORTEST_PROMPT, self.config.context)
                if room < 0:
                    return news + self._enter(entering)
                number, request = self._waiting.popleft()
                if request.max_new_tokens == 0:
                    news.append(NewToken(number, None, None, (), "length"))
                    continue
                row = self._rows[slot] = Row(number, request, list(request.prompt))
                entering.append((slot, row))
        return news + self._enter(entering)

    def _enter(self, entering: list[tuple[int, Row]]) -> list[NewToken]:
        return self._read([(slot, row, row.tokens[-self.config.context :]) for slot, row in entering])

    def _slide(self, full: list[int]) -> list[NewToken]:
        """What becomes of rows whose window is full."""
        news, moving = [], []
        for slot in full:
            row = self._rows[slot]
            assert row is not None
            if row.request.slide:
                moving.append((slot, row, row.tokens[-(self.config.context // 2 + 1) :]))
            else:
                self._rows[slot] = None
                news.append(NewToken(row.number, None, None, (), "length"))
        return news + self._read(moving)

    def _read(self, entering: list[tuple[int, Row, list[int]]]) -> list[NewToken]:
        """Fill slots with windows of tokens, and draw the token after each."""
        by_bucket: dict[int, list[tuple[int, Row, list[int]]]] = {}
        for entry in entering:
            bucket = bucket_of(len(entry[2]), SHORTEST_PROMPT, self.config.context)
            by_bucket.setdefault(bucket, []).append(entry)
        news: list[NewToken] = []
        for bucket, group in sorted(by_bucket.items()):
            while group:
                size = 1 << (len(group).bit_length() - 1)  # powers of two: few shapes
                news += self._read_group(bucket, group[:size])
                group = group[size:]
        return news

    def _read_group(self, bucket: int, group: list[tuple[int, Row, list[int]]]) -> list[NewToken]:
        tokens_BT = np.zeros((len(group), bucket), np.int32)
        for line, (_, _, window) in enumerate(group):
            tokens_BT[line, : len(window)] = window
        length_B = np.array([len(window) for _, _, window in group], np.int32)
        rows = [row for _, row, _ in group]
        seen = seen_of(rows, self.config) if any(row.request.sampling.penalises for row in rows) else None
        logits_BV, keys, values = programs.prefill(self.served, tokens_BT, length_B)
        picked = programs.pick(
            logits_BV,
            *drawing(rows),
            seen,
            biases_of(rows, self._ends, self.config.padded_vocab),
            plan=self._plan(rows),
            logprobs=reports(rows),
        )
        slots = np.array([slot for slot, _, _ in group], np.int32)
        self._cache = programs.put(self._room_for(bucket), keys, values, slots, heads=self.served.heads)
        self._seen = None  # made anew when next needed
        for _, row, window in group:
            row.filled = len(window)
        picked = jax.device_get(picked)
        return [self._note(slot, row, picked, line) for line, (slot, row, _) in enumerate(group)]

    def _advance(self, rows: dict[int, Row]) -> list[NewToken]:
        """Up to `steps` more tokens of every row."""
        left = {slot: row.request.max_new_tokens - row.made for slot, row in rows.items()}
        room = self.config.context - max(row.filled for row in rows.values())
        steps = min(self.steps, room, max(left.values()))
        cache = self._room_for(max(row.filled for row in rows.values()) + steps)
        everyone, plan = [row or NOBODY for row in self._rows], self._plan(list(rows.values()))
        seen = (self._seen or seen_of(everyone, self.config)) if plan.penalises else None
        cache = KVCache(cache.keys, cache.values, jnp.array([row.filled for row in everyone], jnp.int32))
        token_B = np.array([row.tokens[-1] for row in everyone], np.int32)
        left_B = np.array([left.get(slot, 0) for slot in range(self.slots)], np.int32)
        self._cache, self._seen, picked, made_B = programs.decode(
            self.served,
            cache,
            seen,
            token_B,
            left_B,
            *drawing(everyone),
            np.int32(steps),
            ends_of(everyone, self._ends),
            biases_of(everyone, self._ends, self.config.padded_vocab),
            plan=plan,
            most=self.steps,
            logprobs=reports(list(rows.values())),
        )
        picked, made_B = jax.device_get((picked, made_B))
        news: list[NewToken] = []
        for step in range(int(made_B.max())):
            drawn = jax.tree.map(lambda leaf, step=step: leaf[step], picked)
            for slot, row in rows.items():
                if step < made_B[slot] and self._rows[slot] is row:
                    row.filled += 1
                    news.append(self._note(slot, row, drawn, slot))
        return news

    def _note(self, slot: int, row: Row, picked: Picked, line: int) -> NewToken:
        """Write down one drawn token. Here is decided where a text ends; its slot is free then."""
        token, request = int(picked.token[line]), row.request
        row.tokens.append(token)
        row.made += 1
        ends = token in request.stop_ids or (token in self._ends and not request.ignore_end)
        finish = "end" if ends else "length" if row.made == request.max_new_tokens else None
        if finish:
            self._rows[slot] = None
        if request.logprobs is None or picked.logprob is None:
            return NewToken(row.number, token, None, (), finish)
        assert picked.top is not None
        pairs = pairs_of(picked.top[1][line], picked.top[0][line], request.logprobs)
        return NewToken(row.number, token, float(picked.logprob[line]), pairs, finish)

    def _plan(self, rows: Sequence[Row]) -> Plan:
        return Plan.of([row.request.sampling for row in rows], self.served.platform)

    def _room_for(self, length: int) -> KVCache:
        """The cache with room for rows of this length.

        It is a new one where the present one is longer than needed and has nothing in it.
        """
        filled = [row.filled for row in self._rows if row]
        span = bucket_of(max([length, *filled]), SHORTEST_SPAN, self.config.context)
        heads = self.served.heads
        if self._cache is None or (self._cache.span > span and not any(filled)):
            cache: KVCache = programs.empty_cache(
                config=self.config, slots=self.slots, span=span, heads=heads
            )
        elif self._cache.span >= span:
            cache = self._cache
        else:
            cache = programs.longer_cache(self._cache, span=span, heads=heads)
        return cache
