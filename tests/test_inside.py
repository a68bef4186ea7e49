"""What a model computes on its way is what the float64 reference computes there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import GPTConfig
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.evaluation import reference
from jaxgpt.inference.inside import attention_weights, compile_attention, compile_lens, logit_lens
from jaxgpt.inference.served import Served
from jaxgpt.model.gpt import Inside, Params, define
from jaxgpt.model.positions import alibi_slopes
from jaxgpt.model.stack import unstacked
from jaxgpt.weights.params import stored_params


def looked_into(config: GPTConfig, params: Params, tokens_BT: np.ndarray) -> Inside:
    inside = define(config).inside
    assert inside is not None
    return jax.jit(inside)(params, tokens_BT)


@pytest.fixture(scope="module")
def inside(config: GPTConfig, params: Params, tokens_BT: np.ndarray) -> Inside:
    return looked_into(config, params, tokens_BT)


@pytest.fixture(scope="module")
def served(config: GPTConfig, params: Params) -> Served:
    return Served.of(config, params)


def test_attention_weights_are_those_of_the_reference(
    config: GPTConfig, params: Params, tokens_BT: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, scale_by_inverse_layer=True)
    softmax, seen = reference.softmax, []
    monkeypatch.setattr(reference, "softmax", lambda scores: seen.append(softmax(scores)) or seen[-1])
    reference.reference_logits(config, stored_params(config, params).tensors, tokens_BT[1])
    weights_NHTT = looked_into(config, params, tokens_BT).weights_NBHTT[:, 1]
    np.testing.assert_allclose(weights_NHTT, seen, rtol=0, atol=1e-6)


def test_the_lens_is_the_reference_that_ends_early(
    config: GPTConfig, params: Params, tokens_BT: np.ndarray, inside: Inside
) -> None:
    tensors = stored_params(config, params).tensors
    logits_NBTV = jax.jit(define(config).unembed)(params, inside.hidden_NBTD)[..., : config.vocab]
    for layers in range(1, config.layers + 1):
        shorter = dataclasses.replace(config, layers=layers)
        left = {name: t for name, t in tensors.items() if name[:2] != "h." or int(name[2]) < layers}
        expected_TV = reference.reference_logits(shorter, left, tokens_BT[1])
        np.testing.assert_allclose(logits_NBTV[layers, 1], expected_TV, rtol=0, atol=1e-5)
    x_TD = np.asarray(params["wte"]["embedding"], np.float64)[tokens_BT[1]] + params["wpe"]["embedding"]
    alone_TV = reference.unembed(
        config, tensors, reference.layer_norm(config, tensors, "ln_f", np.asarray(x_TD))
    )
    np.testing.assert_allclose(logits_NBTV[0, 1], alone_TV, rtol=0, atol=1e-5)


def test_the_lens_of_the_last_layer_is_what_the_model_says(
    config: GPTConfig, params: Params, tokens_BT: np.ndarray, inside: Inside
) -> None:
    expected_BTD, _ = jax.jit(define(config).hidden)(params, tokens_BT)
    # Two programs: XLA may join the same operations in another way, and then round otherwise.
    np.testing.assert_allclose(inside.hidden_NBTD[-1], expected_BTD, rtol=0, atol=2e-6)
    assert inside.hidden_NBTD.shape == (config.layers + 1, *expected_BTD.shape)


def test_slopes_count_and_single_blocks_do_the_same(
    config: GPTConfig, params: Params, tokens_BT: np.ndarray
) -> None:
    """With ALiBi, the first layer's scores are those without positions, lowered by the distance."""
    sloped = dataclasses.replace(config, position="alibi")
    blocks = {name: leaf for name, leaf in params.items() if name != "wpe"} | {"h": unstacked(params["h"])}
    found_HTT = looked_into(sloped, blocks, tokens_BT).weights_NBHTT[0, 1]
    nowhere = params | {"wpe": {"embedding": jnp.zeros_like(params["wpe"]["embedding"])}}
    plain_HTT = looked_into(config, nowhere, tokens_BT).weights_NBHTT[0, 1]
    places = np.arange(config.context)
    lowered = np.asarray(alibi_slopes(config.heads))[:, None, None] * (places[:, None] - places)[None]
    expected_HTT = np.where(places <= places[:, None], plain_HTT * np.exp(-lowered), 0)
    expected_HTT /= expected_HTT.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(found_HTT, expected_HTT, rtol=0, atol=1e-6)


def test_a_text_of_any_length_is_looked_into_alone(
    config: GPTConfig, params: Params, tokens_BT: np.ndarray, served: Served, inside: Inside
) -> None:
    ids = tokens_BT[1, :10].tolist()
    weights_NHTT = attention_weights(served, ids)
    np.testing.assert_allclose(weights_NHTT, inside.weights_NBHTT[:, 1, :, :10, :10], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(attention_weights(served, ids, 2), weights_NHTT[2])
    logits_NTV = define(config).unembed(params, inside.hidden_NBTD[:, 1, :10])
    logprobs_NTV = np.asarray(jax.nn.log_softmax(logits_NTV))
    lens = logit_lens(served, ids, 3)
    order_NTV = np.argsort(-logprobs_NTV, axis=-1)[..., :3]
    np.testing.assert_array_equal(lens.ids_NTK, order_NTV)
    expected_NTK = np.take_along_axis(logprobs_NTV, order_NTV, axis=-1)
    np.testing.assert_allclose(lens.logprobs_NTK, expected_NTK, rtol=0, atol=1e-5)


def test_what_is_compiled_before_is_not_compiled_again(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    ids = list(range(20))  # of another length than in the other tests
    with jax.log_compiles():
        compile_attention(served, ids)
        compile_lens(served, ids)
    assert caplog.text.count("Compiling ") == 2
    caplog.clear()
    with jax.log_compiles():
        attention_weights(served, ids, 1)
        logit_lens(served, ids)
    assert "ompiling" not in caplog.text


def test_what_cannot_be_looked_into(served: Served, config: GPTConfig) -> None:
    for ids in ([], [0] * (config.context + 1)):
        with pytest.raises(ConfigError, match="1 to 32 can be looked at"):
            logit_lens(served, ids)
    with pytest.raises(ConfigError, match="the layers are 0 to 2"):
        attention_weights(served, [1, 2], 3)
    with pytest.raises(ConfigError, match="it must be 1 to 20"):
        logit_lens(served, [1, 2], 21)
    with pytest.raises(DataError, match="token id 61"):
        attention_weights(served, [1, 61])
