"""The GRU is torch.nn.GRU; what the decoder depends on, with attention and without; padding."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxgpt.config import RNNConfig
from jaxgpt.errors import ConfigError
from jaxgpt.model.gpt import Params
from jaxgpt.model.pure import structure
from jaxgpt.model.rnn import GRU, alignment, define
from jaxgpt.model.seq2seq import Seq2Seq

GOLDEN = Path(__file__).parent / "golden" / "architectures"
CONFIGS = {
    name: RNNConfig(vocab=12, width=8, attention=name == "attention") for name in ("attention", "none")
}
MODELS = {name: define(config) for name, config in CONFIGS.items()}
PARAMS: dict[str, Params] = {name: jax.jit(model.init)(jax.random.key(0)) for name, model in MODELS.items()}
EACH = pytest.mark.parametrize("name", list(MODELS))
SOURCE_BS, INPUTS_BT = np.array([[3, 4, 5, 6, 7]]), np.array([[1, 8, 9, 10, 11]])  # all different


@functools.partial(jax.jit, static_argnums=0)
def logits(model: Seq2Seq, params: Params, source_BS: np.ndarray, inputs_BT: np.ndarray) -> jax.Array:
    return model.decode(params, inputs_BT, model.encode(params, source_BS))


def test_the_unit_is_that_of_torch() -> None:
    with np.load(GOLDEN / "gru.npz") as file:
        weights = dict(file)
    params = {
        name: {"kernel": weights[f"weight_{kind}_l0"].T, "bias": weights[f"bias_{kind}_l0"]}
        for name, kind in (("input", "ih"), ("state", "hh"))
    }
    gru = nnx.merge(structure(lambda: GRU(12, nnx.Rngs(0))), params)
    inputs_BTD, first_BD = (jnp.asarray(weights[name], jnp.float32) for name in ("inputs", "first"))
    states_BTD = gru(inputs_BTD, first_BD, jnp.ones(inputs_BTD.shape[:2], bool))
    np.testing.assert_allclose(states_BTD, weights["states"], atol=1e-5)


@EACH
def test_the_decoder_sees_the_whole_source_and_no_later_input(name: str) -> None:
    model = MODELS[name]

    def said(wte_VD: jax.Array, at: int) -> jax.Array:
        params = PARAMS[name] | {"wte": {"embedding": wte_VD}}
        return jnp.square(logits(model, params, SOURCE_BS, INPUTS_BT)[0, at, 0])

    gradient = jax.jit(jax.vmap(jax.grad(said), in_axes=(None, 0)))
    seen_TV = np.abs(gradient(PARAMS[name]["wte"]["embedding"], jnp.arange(5))).sum(axis=-1)
    assert (seen_TV[:, SOURCE_BS[0]] > 0).all()
    np.testing.assert_array_equal(seen_TV[:, INPUTS_BT[0]] > 0, np.tril(np.ones((5, 5), bool)))


@EACH
def test_padding_of_the_source_changes_nothing(name: str) -> None:
    long_BS = np.concatenate([SOURCE_BS, np.zeros((1, 4), int)], axis=1)
    short, long = (logits(MODELS[name], PARAMS[name], source, INPUTS_BT) for source in (SOURCE_BS, long_BS))
    np.testing.assert_allclose(short, long, atol=1e-6)


@pytest.mark.parametrize(("name", "looks"), [("attention", True), ("none", False)])
def test_only_attention_looks_at_states_before_the_last_one(name: str, looks: bool) -> None:
    memory = MODELS[name].encode(PARAMS[name], SOURCE_BS)
    other = memory._replace(states_BSD=memory.states_BSD.at[:, 1].add(1.0))
    before, after = (MODELS[name].decode(PARAMS[name], INPUTS_BT, m) for m in (memory, other))
    assert bool(np.any(before != after)) == looks


def test_alignment_gives_weights_that_add_up_to_one_and_none_to_padding() -> None:
    long_BS = np.concatenate([SOURCE_BS, np.zeros((1, 4), int)], axis=1)
    weights_BTS = alignment(CONFIGS["attention"])(PARAMS["attention"], long_BS, INPUTS_BT)
    assert weights_BTS.shape == (1, 5, 9) and not weights_BTS[..., 5:].any()
    np.testing.assert_allclose(weights_BTS.sum(axis=-1), 1, rtol=1e-5)


def test_a_wrong_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match="width = 0: it must be greater than 0"):
        RNNConfig(vocab=12, width=0)
    with pytest.raises(ConfigError, match="padding = 12: it must be an id of the vocabulary, 0 to 11"):
        RNNConfig(vocab=12, padding=12)
