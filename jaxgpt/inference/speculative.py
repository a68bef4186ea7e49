"""Speculative decoding: a small draft model proposes, the target judges several tokens in one pass.

A round (`_round`, one call of the device) has the draft write `lookahead` tokens, the target read them all at once
behind its cache, and each row keep its tokens up to the first that is refused, which is drawn anew. What comes out has
the target's own distribution, whatever the draft is; a good draft makes it come in fewer passes of the target.

Both caches are set back by their lengths alone: what stands behind a length is never seen and is overwritten next.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding

from jaxgpt.config import GPTConfig
from jaxgpt.errors import ConfigError
from jaxgpt.inference.programs import SHORTEST_PROMPT, SHORTEST_SPAN, bucket_of
from jaxgpt.inference.sampling import Plan, Sampling, Settings, draw, filtered, settings_of
from jaxgpt.inference.served import heads_sharding, kernels_for, mesh_under, on_heads, served
from jaxgpt.model.cache import KVCache, lengthened
from jaxgpt.model.gpt import Params, define
from jaxgpt.model.layers import Kernels
from jaxgpt.text.batch import check_ids

Caches = tuple[KVCache, ...]  # the target's and the draft's


@dataclass
class Statistics:
    """How well a draft did, over all rows."""

    tokens: int = 0
    """Tokens written, end tokens included."""
    target_passes: int = 0
    """Passes of the target, that over the prompt included; a pass over several rows counts once for each."""
    proposed: int = 0
    """Tokens the draft wrote, without those behind the end of a text."""
    accepted: int = 0
    """Those of them that were kept."""

    @property
    def accepted_share(self) -> float:
        """Of the proposed tokens, counting those behind a refused one as refused; 0 where none was."""
        return self.accepted / max(1, self.proposed)

    @property
    def passes_per_token(self) -> float:
        """Passes of the target for each token; 1 without a draft, 1 / (lookahead + 1) at best."""
        return self.target_passes / max(1, self.tokens)


class _Player(NamedTuple):
    """What is fixed of one of the two models when a program is compiled."""

    config: GPTConfig
    kernels: Kernels
    heads: NamedSharding
    """Of a layer's cache."""

    @classmethod
    def on(cls, mesh: Mesh, config: GPTConfig, kernels: Kernels) -> "_Player":
        return cls(config, kernels, heads_sharding(config, mesh))

    def read(self, params: Params, tokens_BT: Array, cache: KVCache) -> tuple[Array, KVCache]:
        """Hidden states [B, T, D] of tokens behind the cache, and the cache with them.

        A row near the end of its text is read past it, and past the context; what that gives is dropped, and must only
        be finite: positions stop at the last there is.
        """
        positions_BT = cache.length_B[:, None] + jnp.arange(tokens_BT.shape[1])[None]
        positions_BT = jnp.minimum(positions_BT, self.config.context - 1)
        model = define(self.config, kernels=self.kernels)
        x_BTD, longer = model.hidden(params, tokens_BT, positions_BT=positions_BT, cache=cache)
        assert longer is not None
        return x_BTD, on_heads(longer, self.heads)

    def read_prompt(
        self, params: Params, tokens_BT: Array, length_B: Array, span: int
    ) -> tuple[Array, KVCache]:
        """Hidden states [B, D] of each prompt's last token, and a cache of this span. Padding stands on the right."""
        x_BTD, cache = define(self.config, kernels=self.kernels).hidden(params, tokens_BT, keep=True)
        assert cache is not None
        last_BD = jnp.take_along_axis(x_BTD, (length_B - 1)[:, None, None], axis=1)[:, 0]
        return last_BD, on_heads(lengthened(KVCache(cache.keys, cache.values, length_B), span), self.heads)

    def distribution(self, params: Params, x_BD: Array, settings: Settings, plan: Plan) -> Array:
        """Probabilities [B, V] the next token is drawn with; at temperature 0 the most probable one has all."""
        logits_BV = define(self.config, kernels=self.kernels).unembed(params, x_BD)[:, : self.config.vocab]
        best_BV = jax.nn.one_hot(jnp.argmax(logits_BV, axis=-1), self.config.vocab)
        if not plan.draws:
            return best_BV
        drawn_BV = jax.nn.softmax(filtered(logits_BV, settings, plan), axis=-1)
        return jnp.where(settings.temperature[:, None] > 0, drawn_BV, best_BV)


class SpeculativeDecoder:
    """Continues texts with a target model, helped by a draft model. Not for several threads at a time.

    Both are (config, parameters), of one vocabulary; the draft goes to the target's devices. `lookahead` is how many
    tokens the draft proposes in a round; `end` is the id that ends a text. `statistics` tells of the newest call.

    The greedy text is the target's own, but for ties: reading several tokens in one pass rounds differently from
    reading them one by one.

    Source: Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2.
    """

    def __init__(
        self,
        target: tuple[GPTConfig, Params],
        draft: tuple[GPTConfig, Params],
        *,
        lookahead: int = 4,
        end: int | None = None,
    ) -> None:
        if target[0].vocab != draft[0].vocab:
            raise ConfigError(
                f"a draft of {draft[0].vocab} token ids",
                why=f"the target has {target[0].vocab}",
                fix="give two models of one vocabulary",
            )
        if lookahead < 1:
            fix = "give the number of tokens to propose at a time"
            raise ConfigError(f"lookahead = {lookahead}", why="it must be 1 or more", fix=fix)
        mesh = mesh_under(target[1])
        self.lookahead, self.statistics = lookahead, Statistics()
        self.context = min(target[0].context, draft[0].context)
        self._end, kernels = end, kernels_for(mesh, int8=False)
        self._players = _Player.on(mesh, target[0], kernels), _Player.on(mesh, draft[0], kernels)
        self._params = tuple(served(params, config, kernels, mesh) for config, params in (target, draft))

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
        """The new tokens of every prompt, a round at a time: none or several each, without the end token.

        What a prompt gets depends on its own seed, not on those beside it. Every number of prompts compiles anew.
        Raises ConfigError for what cannot be run, DataError for ids of no token.
        """
        sampling = sampling or Sampling()
        self._check(prompts, max_new_tokens, sampling, seeds)
        counts = self.statistics = Statistics()
        if max_new_tokens == 0:
            return
        drawing = settings_of([sampling] * len(prompts)), np.array(seeds, np.uint32)
        static = {"players": self._players, "plan": Plan.of([sampling])}
        length_B = np.array([len(prompt) for prompt in prompts], np.int32)
        tokens_BT = np.zeros(
            (len(prompts), bucket_of(int(length_B.max()), SHORTEST_PROMPT, self.context)), np.int32
        )
        for row, prompt in enumerate(prompts):
            tokens_BT[row, : len(prompt)] = prompt
        room = (
            int(length_B.max()) + max_new_tokens + self.lookahead
        )  # the last round may write past the text's end
        span = bucket_of(room, SHORTEST_SPAN, self.context + self.lookahead)
        last_B2, caches = _start(self._params, tokens_BT, length_B, *drawing, span=span, **static)
        left = [max_new_tokens] * len(prompts)
        yield self._note(np.asarray(last_B2)[:, 1:], np.zeros_like(length_B), 0, left, counts)
        number = 0
        while any(left):
            number += 1
            left_B = np.array(left, np.int32)  # anew each round: a device may still be reading the last one
            last_B2, caches, written_BT, accepted_B = _round(
                self._params,
                caches,
                last_B2,
                left_B,
                *drawing,
                np.int32(number),
                lookahead=self.lookahead,
                **static,
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
                "a draft is not judged with them",
                "decode with the engine",
            ),
        ):
            if not holds:
                raise ConfigError(what, why=why, fix=fix)
        for prompt in prompts:
            check_ids(np.asarray(prompt), self._players[0].config.vocab)

    def _note(
        self,
        written_BT: np.ndarray,
        accepted_B: np.ndarray,
        proposed: int,
        left: list[int],
        counts: Statistics,
    ) -> list[list[int]]:
        """The texts' new tokens, counted and taken from what is left of each; behind an end token nothing is."""
        news = [list[int]() for _ in left]
        for row in (row for row, tokens_left in enumerate(left) if tokens_left):
            tokens = written_BT[row, : min(int(accepted_B[row]) + 1, left[row])].tolist()
            ended = self._end in tokens
            tokens = tokens[: tokens.index(self._end) + 1] if ended else tokens
            left[row] = 0 if ended else left[row] - len(tokens)
            counts.tokens += len(tokens)
            counts.target_passes += 1
            counts.proposed += proposed if left[row] else min(proposed, len(tokens))
            counts.accepted += min(int(accepted_B[row]), len(tokens))
            news[row] = tokens[:-1] if ended else tokens
        return news


@functools.partial(jax.jit, static_argnames=("players", "plan", "span"))
def _start(
    params: tuple[Params, Params],
    tokens_BT: Array,
    length_B: Array,
    settings: Settings,
    seed_B: Array,
    *,
    span: int,
    players: tuple[_Player, _Player],
    plan: Plan,
) -> tuple[Array, Caches]:
    """The last token of each prompt with the first new one [B, 2], which is the target's; and both models' caches."""
    target, draft = players
    last_BD, target_cache = target.read_prompt(params[0], tokens_BT, length_B, span)
    _, draft_cache = draft.read_prompt(params[1], tokens_BT, length_B - 1, span)
    key_B = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 0))(seed_B)
    first_B = draw(key_B, jnp.log(target.distribution(params[0], last_BD, settings, plan)))
    last_B = jnp.take_along_axis(tokens_BT, (length_B - 1)[:, None], axis=1)[:, 0]
    return jnp.stack([last_B, first_B], axis=1), (target_cache, draft_cache)


@functools.partial(jax.jit, donate_argnames="caches", static_argnames=("players", "plan", "lookahead"))
def _round(
    params: tuple[Params, Params],
    caches: Caches,
    last_B2: Array,
    left_B: Array,
    settings: Settings,
    seed_B: Array,
    number: Array,
    *,
    players: tuple[_Player, _Player],
    plan: Plan,
    lookahead: int,
) -> tuple[Array, Caches, Array, Array]:
    """One round: the last two tokens, the caches, up to lookahead + 1 new tokens, and how many proposals stay.

    Before and after it the target's cache holds each row's tokens but the last, the draft's all but the last two.
    """
    target, draft = players
    keys_B3 = jax.vmap(lambda seed: jax.random.split(jax.random.fold_in(jax.random.key(seed), number), 3))(
        seed_B
    )
    draft_cache, proposed_BT, q_BTV = _propose(
        draft, params[1], caches[1], last_B2, settings, keys_B3[:, 0], plan, lookahead
    )
    x_BTD, target_cache = target.read(
        params[0], jnp.concatenate([last_B2[:, 1:], proposed_BT], axis=1), caches[0]
    )
    B, T, D = x_BTD.shape
    each = jax.tree.map(lambda leaf_B: jnp.repeat(leaf_B, T), settings)
    p_BTV = target.distribution(params[0], x_BTD.reshape(B * T, D), each, plan).reshape(B, T, -1)
    accepted_B, drawn_B = judge(p_BTV, q_BTV, proposed_BT, keys_B3[:, 1], keys_B3[:, 2])
    written_BT = jnp.pad(proposed_BT, ((0, 0), (0, 1))).at[jnp.arange(B), accepted_B].set(drawn_B)
    made_B = jnp.minimum(accepted_B + 1, left_B)
    newest_B2 = made_B[:, None] + jnp.arange(2)[None]
    last_B2 = jnp.take_along_axis(jnp.concatenate([last_B2, written_BT], axis=1), newest_B2, axis=1)
    pairs = zip(caches, (target_cache, draft_cache), strict=True)
    set_back = tuple(KVCache(new.keys, new.values, old.length_B + made_B) for old, new in pairs)
    return last_B2, set_back, written_BT, accepted_B


def _propose(
    draft: _Player,
    params: Params,
    cache: KVCache,
    last_B2: Array,
    settings: Settings,
    key_B: Array,
    plan: Plan,
    lookahead: int,
) -> tuple[KVCache, Array, Array]:
    """The draft's cache, the tokens it proposes [B, T], and the distributions it drew them from [B, T, V].

    It reads the last two tokens first: where all it proposed was accepted, its cache lacks the last of that.
    """

    def propose(x_BD: Array, step: Array | int) -> tuple[Array, Array]:
        q_BV = draft.distribution(params, x_BD, settings, plan)
        return draw(jax.vmap(jax.random.fold_in, (0, None))(key_B, step), jnp.log(q_BV)), q_BV

    def one_more(
        carry: tuple[KVCache, Array], step: Array
    ) -> tuple[tuple[KVCache, Array], tuple[Array, Array]]:
        cache, token_B = carry
        x_BTD, cache = draft.read(params, token_B[:, None], cache)
        token_B, q_BV = propose(x_BTD[:, 0], step)
        return (cache, token_B), (token_B, q_BV)

    x_BTD, cache = draft.read(params, last_B2, cache)
    first = propose(x_BTD[:, 1], 0)
    (cache, _), later = jax.lax.scan(one_more, (cache, first[0]), jnp.arange(1, lookahead))
    token_BT, q_BTV = (
        jnp.concatenate([one[:, None], jnp.moveaxis(more, 0, 1)], axis=1)
        for one, more in zip(first, later, strict=True)
    )
    return cache, token_BT, q_BTV


def judge(
    p_BTV: Array, q_BTV: Array, proposed_BT: Array, accept_key_B: Array, draw_key_B: Array
) -> tuple[Array, Array]:
    """How many of each row's proposals stay, and the token that follows them, so that all are distributed as p.

    `proposed_BT` was drawn from q; p has one position more. A proposal stays with probability min(1, p / q) and as
    those before it do. The token that follows is drawn from max(0, p - q), normalised, at the first that does not
    stay, and from p behind the last. One-hot p and q are greedy decoding. Source: Leviathan et al. 2023, algorithm 1
    and, for why it is right, appendix A.1.
    """
    p_BT, q_BT = (
        jnp.take_along_axis(of_BTV[:, : q_BTV.shape[1]], proposed_BT[..., None], axis=-1)[..., 0]
        for of_BTV in (p_BTV, q_BTV)
    )
    chance_BT = jax.vmap(lambda key: jax.random.uniform(key, q_BT.shape[1:]))(accept_key_B)
    stays_BT = (chance_BT * q_BT < p_BT).astype(jnp.int32)
    accepted_B = jnp.cumprod(stays_BT, axis=1).sum(axis=1)
    none_BTV = jnp.pad(
        q_BTV, ((0, 0), (0, 1), (0, 0))
    )  # behind the last proposal nothing is to be taken off p
    p_BV, q_BV = (
        jnp.take_along_axis(of, accepted_B[:, None, None], axis=1)[:, 0] for of in (p_BTV, none_BTV)
    )
    rest_BV = jnp.maximum(p_BV - q_BV, 0)
    rest_BV = jnp.where(
        rest_BV.sum(axis=-1, keepdims=True) > 0, rest_BV, p_BV
    )  # p = q, refused by a rounding error
    return accepted_B, draw(draw_key_B, jnp.log(rest_BV))
