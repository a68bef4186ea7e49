"""What speculative decoding has the device do: read the prompts, and make a round of proposals and
judgements.

Source: Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from jaxgpt.inference.programs import read_prompt
from jaxgpt.inference.sampling import Plan, Settings, draw, filtered
from jaxgpt.inference.served import Served
from jaxgpt.model.cache import KVCache, lengthened

Pair = tuple[Served, Served]  # the target and the draft
Caches = tuple[KVCache, ...]  # the target's and the draft's


@functools.partial(jax.jit, static_argnames=("plan", "span"))
def start(
    pair: Pair, tokens_BT: Array, length_B: Array, settings: Settings, seed_B: Array, *, span: int, plan: Plan
) -> tuple[Array, Caches]:
    """The last token of each prompt with the first new one [B, 2], and the caches of both models.

    The first new token is the target's.
    """
    target, draft = pair
    last_BD, target_cache = read_prompt(target, tokens_BT, length_B)
    _, draft_cache = read_prompt(draft, tokens_BT, length_B - 1)
    key_B = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 0))(seed_B)
    first_B = draw(key_B, jnp.log(_distribution(target, last_BD, settings, plan)), plan.platform)
    last_B = jnp.take_along_axis(tokens_BT, (length_B - 1)[:, None], axis=1)[:, 0]
    return jnp.stack([last_B, first_B], axis=1), (
        target.on_heads(lengthened(target_cache, span)),
        draft.on_heads(lengthened(draft_cache, span)),
    )


@functools.partial(jax.jit, donate_argnames="caches", static_argnames=("plan", "lookahead"))
def one_round(
    pair: Pair,
    caches: Caches,
    last_B2: Array,
    left_B: Array,
    settings: Settings,
    seed_B: Array,
    number: Array,
    *,
    plan: Plan,
    lookahead: int,
) -> tuple[Array, Caches, Array, Array]:
    """One round: the last two tokens, the caches, up to lookahead + 1 new tokens, and how many proposals
    stay.

    Before and after it, the target's cache holds all tokens of each row but the last, the draft's all but the
    last two.
    """
    target, draft = pair
    keys_B3 = jax.vmap(lambda seed: jax.random.split(jax.random.fold_in(jax.random.key(seed), number), 3))(
        seed_B
    )
    draft_cache, proposed_BT, q_BTV = _propose(
        draft, caches[1], last_B2, settings, keys_B3[:, 0], plan, lookahead
    )
    x_BTD, target_cache = _read(target, jnp.concatenate([last_B2[:, 1:], proposed_BT], axis=1), caches[0])
    B, T, D = x_BTD.shape
    each = jax.tree.map(lambda leaf_B: jnp.repeat(leaf_B, T), settings)
    p_BTV = _distribution(target, x_BTD.reshape(B * T, D), each, plan).reshape(B, T, -1)
    accepted_B, drawn_B = judge(p_BTV, q_BTV, proposed_BT, keys_B3[:, 1], keys_B3[:, 2], plan.platform)
    written_BT = jnp.pad(proposed_BT, ((0, 0), (0, 1))).at[jnp.arange(B), accepted_B].set(drawn_B)
    made_B = jnp.minimum(accepted_B + 1, left_B)
    newest_B2 = made_B[:, None] + jnp.arange(2)[None]
    last_B2 = jnp.take_along_axis(jnp.concatenate([last_B2, written_BT], axis=1), newest_B2, axis=1)
    pairs = zip(caches, (target_cache, draft_cache), strict=True)
    set_back = tuple(KVCache(new.keys, new.values, old.length_B + made_B) for old, new in pairs)
    return last_B2, set_back, written_BT, accepted_B


def _propose(
    draft: Served,
    cache: KVCache,
    last_B2: Array,
    settings: Settings,
    key_B: Array,
    plan: Plan,
    lookahead: int,
) -> tuple[KVCache, Array, Array]:
    """The draft's cache, the tokens it proposes [B, T], and the distributions it drew them from [B, T, V].

    The draft reads the last two tokens first: where all it proposed was accepted, its cache lacks the last of
    these.
    """

    def propose(x_BD: Array, step: Array | int) -> tuple[Array, Array]:
        q_BV = _distribution(draft, x_BD, settings, plan)
        key_of_step_B = jax.vmap(jax.random.fold_in, (0, None))(key_B, step)
        return draw(key_of_step_B, jnp.log(q_BV), plan.platform), q_BV

    def one_more(
        carry: tuple[KVCache, Array], step: Array
    ) -> tuple[tuple[KVCache, Array], tuple[Array, Array]]:
        cache, token_B = carry
        x_BTD, cache = _read(draft, token_B[:, None], cache)
        token_B, q_BV = propose(x_BTD[:, 0], step)
        return (cache, token_B), (token_B, q_BV)

    x_BTD, cache = _read(draft, last_B2, cache)
    first = propose(x_BTD[:, 1], 0)
    (cache, _), later = jax.lax.scan(one_more, (cache, first[0]), jnp.arange(1, lookahead))
    token_BT, q_BTV = (
        jnp.concatenate([one[:, None], jnp.moveaxis(more, 0, 1)], axis=1)
        for one, more in zip(first, later, strict=True)
    )
    return cache, token_BT, q_BTV


def _read(served: Served, tokens_BT: Array, cache: KVCache) -> tuple[Array, KVCache]:
    """Hidden states [B, T, D] of tokens behind the cache, and the cache with them.

    A row near the end of its text is read past its end, and past the context. What that gives is dropped and
    must only be finite: positions stop at the last there is.
    """
    positions_BT = cache.length_B[:, None] + jnp.arange(tokens_BT.shape[1])[None]
    positions_BT = jnp.minimum(positions_BT, served.config.context - 1)
    x_BTD, longer = served.model.hidden(served.params, tokens_BT, positions_BT=positions_BT, cache=cache)
    assert longer is not None
    return x_BTD, served.on_heads(longer)


def _distribution(served: Served, x_BD: Array, settings: Settings, plan: Plan) -> Array:
    """Probabilities [B, V] of the next token; at temperature 0 the most probable one has all."""
    vocab = served.config.vocab
    logits_BV = served.model.unembed(served.params, x_BD)[:, :vocab]
    best_BV = jax.nn.one_hot(jnp.argmax(logits_BV, axis=-1), vocab)
    if not plan.draws:
        return best_BV
    drawn_BV = jax.nn.softmax(filtered(logits_BV, settings, plan), axis=-1)
    return jnp.where(settings.temperature[:, None] > 0, drawn_BV, best_BV)


def judge(
    p_BTV: Array, q_BTV: Array, proposed_BT: Array, accept_key_B: Array, draw_key_B: Array, platform: str
) -> tuple[Array, Array]:
    """How many of each row's proposals stay, and the token that follows them, so that all are distributed as
    p.

    `proposed_BT` was drawn from q; p has one position more. A proposal stays with probability min(1, p / q),
    if all before it stay. The token that follows is drawn from max(0, p - q), normalised, in place of the
    first proposal that does not stay, and from p where all stay. One-hot p and q are greedy decoding. Source:
    Leviathan et al. 2023, algorithm 1; appendix A.1 shows why it is right.
    """
    p_BT, q_BT = (
        jnp.take_along_axis(of_BTV[:, : q_BTV.shape[1]], proposed_BT[..., None], axis=-1)[..., 0]
        for of_BTV in (p_BTV, q_BTV)
    )
    chance_BT = jax.vmap(lambda key: jax.random.uniform(key, q_BT.shape[1:]))(accept_key_B)
    stays_BT = (chance_BT * q_BT < p_BT).astype(jnp.int32)
    accepted_B = jnp.cumprod(stays_BT, axis=1).sum(axis=1)
    # Behind the last proposal nothing is to be taken off p.
    none_BTV = jnp.pad(q_BTV, ((0, 0), (0, 1), (0, 0)))
    p_BV, q_BV = (
        jnp.take_along_axis(of, accepted_B[:, None, None], axis=1)[:, 0] for of in (p_BTV, none_BTV)
    )
    rest_BV = jnp.maximum(p_BV - q_BV, 0)
    # Where nothing is left, p and q are equal, and the refusal is a rounding error.
    rest_BV = jnp.where(rest_BV.sum(axis=-1, keepdims=True) > 0, rest_BV, p_BV)
    return accepted_B, draw(draw_key_B, jnp.log(rest_BV), platform)
