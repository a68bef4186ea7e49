"""Speculative decoding: a small draft model proposes, the target judges several tokens in one pass.

In a round (`one_round`, one call of the device) the draft writes `lookahead` tokens, and the target reads all
of them at once behind its cache. Each row keeps its tokens up to the first that is refused, and the token at
that place is drawn anew. The text has the target's own distribution, whatever the draft is; with a good draft
it takes fewer passes of the target.

Both caches are set back by changing their lengths: what stands behind a length is never seen and is
overwritten next.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxgpt.errors import ConfigError
from jaxgpt.inference.programs import SHORTEST_PROMPT, SHORTEST_SPAN, bucket_of
from jaxgpt.inference.rounds import one_round, start
from jaxgpt.inference.sampling import Plan, Sampling, settings_of
from jaxgpt.inference.served import Served
from jaxgpt.text.batch import check_ids


@dataclass
class Statistics:
    """How well a draft did, over all rows."""

    tokens: int = 0
    """Tokens written, end tokens included."""
    target_passes: int = 0
    """Passes of the target, the one over the prompt included. A pass counts once for each of its rows."""
    proposed: int = 0
    """Tokens that the draft wrote, without those behind the end of a text."""
    accepted: int = 0
    """Proposed tokens that were kept."""

    @property
    def accepted_share(self) -> float:
        """The share of the proposed tokens that were kept; 0 without proposals.

        Those behind a refused token were not kept either.
        """
        return self.accepted / max(1, self.proposed)

    @property
    def passes_per_token(self) -> float:
        """Passes of the target for each token. Without a draft it is 1; at best it is 1 / (lookahead + 1)."""
        return self.target_passes / max(1, self.tokens)


class SpeculativeDecoder:
    """Continues texts with a target model, helped by a draft model. Not for several threads at a time.

    Both models have the same vocabulary and lie on the same devices. `lookahead` is how many tokens the draft
    proposes in a round; `ends` are the ids that end a text. `statistics` tells of the newest call.

    Greedy text is the target's own, except for ties: reading several tokens in one pass rounds differently
    from reading them one by one.

    Source: Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2.
    """

    def __init__(
        self, target: Served, draft: Served, *, lookahead: int = 4, ends: Collection[int] = ()
    ) -> None:
        for holds, what, why, fix in (
            (
                target.config.vocab == draft.config.vocab,
                f"a draft of {draft.config.vocab} token ids",
                f"the target has {target.config.vocab}",
                "give two models of one vocabulary",
            ),
            (
                target.mesh == draft.mesh,
                "a draft on other devices than its target",
                "a round runs both as one program",
                "lay the draft out on the target's mesh: Served.of(..., mesh=target.mesh)",
            ),
            (lookahead >= 1, f"lookahead = {lookahead}", "it must be 1 or more", "choose 1 or more"),
        ):
            if not holds:
                raise ConfigError(what, why=why, fix=fix)
        self.lookahead, self.statistics = lookahead, Statistics()
        self.context = min(target.config.context, draft.config.context)
        self._pair, self._ends = (target, draft), frozenset(ends)

    def stream(
        self, prompt: Sequence[int], *, max_new_tokens: int, sampling: Sampling | None = None, seed: int = 0
    ) -> Iterator[int]:
        """Token ids that continue a prompt, without the end token. Raises as `rounds` does."""
        for (news,) in self.rounds([prompt], max_new_tokens=max_new_tokens, sampling=sampling, seeds=[seed]):
            yield from news

    def rounds(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        seeds: Sequence[int],
    ) -> Iterator[list[list[int]]]:
        """The new tokens of every prompt, a round at a time: none or several for each, without the end token.

        What a prompt gets depends on its own seed, not on the prompts beside it. Every number of prompts
        compiles programs of its own. Raises ConfigError for what cannot be run, DataError for ids of no
        token.
        """
        sampling = sampling or Sampling()
        self._check(prompts, max_new_tokens, sampling, seeds)
        counts = self.statistics = Statistics()
        if max_new_tokens == 0:
            return
        drawing = settings_of([sampling] * len(prompts)), np.array(seeds, np.uint32)
        plan = Plan.of([sampling], self._pair[0].platform)
        length_B = np.array([len(prompt) for prompt in prompts], np.int32)
        tokens_BT = np.zeros(
            (len(prompts), bucket_of(int(length_B.max()), SHORTEST_PROMPT, self.context)), np.int32
        )
        for row, prompt in enumerate(prompts):
            tokens_BT[row, : len(prompt)] = prompt
        # The last round may write past the end of the text.
        room = int(length_B.max()) + max_new_tokens + self.lookahead
        span = bucket_of(room, SHORTEST_SPAN, self.context + self.lookahead)
        last_B2, caches = start(self._pair, tokens_BT, length_B, *drawing, span=span, plan=plan)
        left = [max_new_tokens] * len(prompts)
        yield self._note(np.asarray(last_B2)[:, 1:], np.zeros_like(length_B), 0, left, counts)
        number = 0
        while any(left):
            number += 1
            left_B = np.array(left, np.int32)  # anew each round: a device may still be reading the last one
            last_B2, caches, written_BT, accepted_B = one_round(
                self._pair,
                caches,
                last_B2,
                left_B,
                *drawing,
                np.int32(number),
                lookahead=self.lookahead,
                plan=plan,
            )
            yield self._note(np.asarray(written_BT), np.asarray(accepted_B), self.lookahead, left, counts)

    def _check(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampling: Sampling, seeds: Sequence[int]
    ) -> None:
        longest, ask = max(map(len, prompts), default=0), f"max_new_tokens = {max_new_tokens}"
        for holds, what, why, fix in (
            (
                all(prompts) and prompts,
                "empty prompt",
                "there is nothing to continue",
                "give at least one token",
            ),
            (
                len(seeds) == len(prompts),
                f"{len(seeds)} seeds",
                f"there are {len(prompts)} prompts",
                "give one seed for each prompt",
            ),
            (
                all(0 <= s < 2**32 for s in seeds),
                f"seeds = {seeds}",
                "they must be 32-bit unsigned",
                f"give whole numbers from 0 to {2**32 - 1}",
            ),
            (max_new_tokens >= 0, ask, "it must be 0 or more", "give the number of tokens to write"),
            (
                longest + max_new_tokens <= self.context,
                f"{ask} after a prompt of {longest} tokens",
                f"the smaller context is {self.context}, and with a draft it does not slide",
                "ask for fewer tokens, or shorten the prompts",
            ),
            (
                not sampling.penalises,
                "penalties",
                "speculative decoding does not support them",
                "leave them out, or decode without a draft",
            ),
        ):
            if not holds:
                raise ConfigError(what, why=why, fix=fix)
        for prompt in prompts:
            check_ids(np.asarray(prompt), self._pair[0].config.vocab)

    def _note(
        self,
        written_BT: np.ndarray,
        accepted_B: np.ndarray,
        proposed: int,
        left: list[int],
        counts: Statistics,
    ) -> list[list[int]]:
        """The new tokens of each text, counted and taken off what it has left.

        Behind an end token nothing is left.
        """
        news = [list[int]() for _ in left]
        for row in (row for row, tokens_left in enumerate(left) if tokens_left):
            tokens = written_BT[row, : min(int(accepted_B[row]) + 1, left[row])].tolist()
            end = next((place for place, token in enumerate(tokens) if token in self._ends), None)
            ended = end is not None
            tokens = tokens if end is None else tokens[: end + 1]
            left[row] = 0 if ended else left[row] - len(tokens)
            counts.tokens += len(tokens)
            counts.target_passes += 1
            counts.proposed += proposed if left[row] else min(proposed, len(tokens))
            counts.accepted += min(int(accepted_B[row]), len(tokens))
            news[row] = tokens[:-1] if ended else tokens
        return news
