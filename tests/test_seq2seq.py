"""The encoder-decoder is torch.nn.Transformer; who sees whom in it; padding; and how it writes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxgpt.config import GPTConfig, OptimConfig, Seq2SeqConfig
from jaxgpt.model import seq2seq
from jaxgpt.model.gpt import Params
from jaxgpt.model.mask import Mask
from jaxgpt.model.post_norm import CrossAttention, PostNormBlock, run_blocks
from jaxgpt.model.pure import structure
from jaxgpt.text.sequences import BEGIN, PADDING, Sequences, right
from jaxgpt.training.fit import fit
from jaxgpt.training.loss import translation_loss

GOLDEN = Path(__file__).parent / "golden" / "architectures"
BLOCKS = GPTConfig(layers=2, heads=4, width=16, mlp_width=40, activation="relu", position="sinusoidal")
MODEL = seq2seq.define(Seq2SeqConfig(vocab=12, layers=2, heads=4, width=16, mlp_width=40))
PARAMS: Params = jax.jit(MODEL.init)(jax.random.key(0))
Weights = dict[str, np.ndarray]


@jax.jit
def logits(params: Params, source_BS: jax.Array, inputs_BT: jax.Array) -> jax.Array:
    return MODEL.decode(params, inputs_BT, MODEL.encode(params, source_BS))


def linear(weights: Weights, name: str) -> Params:
    return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}


def norm(weights: Weights, name: str) -> Params:
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}


def projections(weights: Weights, at: str) -> list[Params]:
    """Query, key and value of a torch.nn.MultiheadAttention."""
    kernels, biases = (np.split(weights[f"{at}in_proj_{kind}"], 3) for kind in ("weight", "bias"))
    return [{"kernel": kernel.T, "bias": bias} for kernel, bias in zip(kernels, biases, strict=True)]


def side_by_side(parts: list[Params]) -> Params:
    return {leaf: np.stack([part[leaf] for part in parts], axis=-2) for leaf in ("kernel", "bias")}


def cross_of_torch(weights: Weights, at: str) -> Params:
    query, *key_value = projections(weights, at)
    return {"c_q": query, "c_kv": side_by_side(key_value), "c_proj": linear(weights, f"{at}out_proj")}


def block_of_torch(weights: Weights, at: str) -> Params:
    norms = sorted(name for name in weights if name.startswith(f"{at}.norm") and name.endswith("weight"))
    block = {
        "attn": {
            "c_attn": side_by_side(projections(weights, f"{at}.self_attn.")),
            "c_proj": linear(weights, f"{at}.self_attn.out_proj"),
        },
        "ln_1": norm(weights, f"{at}.norm1"),
        "mlp": {"c_fc": linear(weights, f"{at}.linear1"), "c_proj": linear(weights, f"{at}.linear2")},
        "ln_2": norm(weights, f"{at}.norm{len(norms)}"),
    }
    if len(norms) == 3:
        block |= {
            "cross": cross_of_torch(weights, f"{at}.multihead_attn."),
            "ln_cross": norm(weights, f"{at}.norm2"),
        }
    return block


def test_cross_attention_is_that_of_torch() -> None:
    with np.load(GOLDEN / "cross.npz") as file:
        weights = dict(file)
    mask = Mask(
        causal=False, segments_BT=jnp.ones((2, 3), bool), key_segments_BS=jnp.asarray(weights["real"])
    )
    cross = nnx.merge(structure(lambda: CrossAttention(BLOCKS, nnx.Rngs(0))), cross_of_torch(weights, ""))
    queries_BTD, keys_BSD = (jnp.asarray(weights[name], jnp.float32) for name in ("queries", "keys"))
    np.testing.assert_allclose(cross(queries_BTD, keys_BSD, mask, None), weights["found"], atol=1e-5)


def test_blocks_are_those_of_torch() -> None:
    """The states behind the decoder of a torch.nn.Transformer, its inputs given as vectors."""
    with np.load(GOLDEN / "transformer.npz") as file:
        weights = dict(file)
    stacks = {}
    for name in ("encoder", "decoder"):
        blocks = [block_of_torch(weights, f"{name}.layers.{n}") for n in range(BLOCKS.layers)]
        stacks[name] = jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)
        assert jax.tree.map(jnp.shape, stacks[name]) == jax.tree.map(jnp.shape, PARAMS[name]["h"])
    real_BS = jnp.asarray(weights["real"])
    source_BSD, targets_BTD = (jnp.asarray(weights[name], jnp.float32) for name in ("source", "targets"))
    encoder, decoder = (
        structure(lambda d=d: PostNormBlock(BLOCKS, nnx.Rngs(0), decoder=d)) for d in (False, True)
    )
    memory_BSD = run_blocks(encoder, stacks["encoder"], source_BSD, real_BS, key=None)
    mask = Mask(causal=False, segments_BT=jnp.ones(targets_BTD.shape[:2], bool), key_segments_BS=real_BS)
    states_BTD = run_blocks(decoder, stacks["decoder"], targets_BTD, None, memory_BSD, mask, key=None)
    np.testing.assert_allclose(states_BTD, weights["states"], atol=2e-5)


def test_embeddings_are_scaled_and_have_sines() -> None:
    """A model without blocks leaves its embeddings as they are."""
    model = seq2seq.define(Seq2SeqConfig(vocab=12, layers=1, heads=4, width=16))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda shape: jnp.zeros(shape.shape), shapes)
    params["encoder"]["h"] |= {
        name: {"scale": jnp.ones((1, 16)), "bias": jnp.zeros((1, 16))} for name in ("ln_1", "ln_2")
    }
    params["wte"] = {"embedding": jax.random.normal(jax.random.key(1), (12, 16))}
    states_D = jax.jit(model.encode)(params, np.array([[3, 7]])).states_BSD[0, 1]
    rates = 10_000.0 ** (-np.arange(0, 16, 2) / 16)
    sines_D = np.stack([np.sin(rates), np.cos(rates)], axis=-1).ravel()
    x_D = np.asarray(params["wte"]["embedding"])[7] * 4 + sines_D
    np.testing.assert_allclose(states_D, (x_D - x_D.mean()) / x_D.std(), atol=1e-3)


def test_the_decoder_sees_the_whole_source_and_no_later_input() -> None:
    source_BS, inputs_BT = np.array([[3, 4, 5, 6, 7]]), np.array([[1, 8, 9, 10, 11]])  # all different

    def said(wte_VD: jax.Array, at: int) -> jax.Array:
        params = PARAMS | {"wte": {"embedding": wte_VD}}
        x = MODEL.decode(params, inputs_BT, MODEL.encode(params, source_BS))[0, at]
        return jnp.square(x[0])  # the score of a token that stands nowhere

    gradient = jax.jit(jax.vmap(jax.grad(said), in_axes=(None, 0)))
    seen_TV = np.abs(gradient(PARAMS["wte"]["embedding"], jnp.arange(5))).sum(axis=-1)
    assert (seen_TV[:, source_BS[0]] > 0).all()
    np.testing.assert_array_equal(seen_TV[:, inputs_BT[0]] > 0, np.tril(np.ones((5, 5), bool)))


def test_padding_of_the_source_changes_nothing() -> None:
    inputs_BT = np.array([[1, 8, 9]])
    short, long = (np.array([[3, 4, 5] + [PADDING] * more]) for more in (0, 4))
    np.testing.assert_allclose(logits(PARAMS, short, inputs_BT), logits(PARAMS, long, inputs_BT), atol=1e-6)


def test_dropout_has_another_mask_for_every_key() -> None:
    model = seq2seq.define(Seq2SeqConfig(vocab=12, layers=1, heads=2, width=8, dropout=0.5))
    params, source_BS = jax.jit(model.init)(jax.random.key(0)), np.array([[3, 4]])
    encode = jax.jit(lambda key: model.encode(params, source_BS, key=key).states_BSD)
    some = [encode(jax.random.key(n)) for n in (0, 0, 1)]
    np.testing.assert_array_equal(some[0], some[1])
    assert np.abs(some[0] - some[2]).max() > 1e-3


@pytest.mark.slow
def test_it_learns_to_reverse_and_writes_what_it_learned() -> None:
    data = Sequences(task="reverse", longest=2, letters=4)
    model = seq2seq.define(Seq2SeqConfig(vocab=data.vocab, layers=1, heads=2, width=32))
    optim = OptimConfig(learning_rate=3e-3, warmup_steps=20, weight_decay=0.0)
    params = jax.jit(model.init)(jax.random.key(0))
    fitted = fit(params, translation_loss(model), data.rows, steps=150, sequences=64, optim=optim)
    new = data.of_length(2, 32)
    written_BT = np.asarray(seq2seq.write(model, fitted.params, new.source_BS, BEGIN, 3))
    assert right(written_BT, new.targets_BT).mean() > 0.9
    read = jax.jit(lambda params: model.decode(params, new.inputs_BT, model.encode(params, new.source_BS)))
    given_BTV = read(fitted.params)
    same_B = right(written_BT, new.targets_BT)  # what it writes right is what it would say of the targets
    np.testing.assert_array_equal(given_BTV.argmax(axis=-1)[same_B], written_BT[same_B])
