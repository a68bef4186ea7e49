"""The encoder is BERT: its logits, its view of the whole text, its padding, its use as a classifier."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import EncoderConfig, OptimConfig
from jaxgpt.errors import ConfigError
from jaxgpt.finetuning.class_batches import Encoded, Rows, TrainingTexts
from jaxgpt.finetuning.class_head import class_logits, class_loss
from jaxgpt.model.encoder import define
from jaxgpt.model.gpt import Params
from jaxgpt.training.fit import fit

GOLDEN = Path(__file__).parent / "golden" / "architectures"
CONFIG = EncoderConfig(vocab=37, context=14, layers=2, heads=4, width=16, mlp_width=40, classes=2)
MODEL = define(CONFIG)
PARAMS: Params = jax.jit(MODEL.init)(jax.random.key(0))
APPLY = jax.jit(MODEL.apply)
HIDDEN = jax.jit(lambda params, tokens: MODEL.hidden(params, tokens)[0])


def linear(weights: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}


def norm(weights: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}


def block_of_bert(weights: dict[str, np.ndarray], at: str) -> Params:
    parts = [linear(weights, f"{at}.attention.self.{name}") for name in ("query", "key", "value")]
    c_attn = {leaf: np.stack([part[leaf] for part in parts], axis=-2) for leaf in ("kernel", "bias")}
    return {
        "attn": {"c_attn": c_attn, "c_proj": linear(weights, f"{at}.attention.output.dense")},
        "ln_1": norm(weights, f"{at}.attention.output.LayerNorm"),
        "mlp": {
            "c_fc": linear(weights, f"{at}.intermediate.dense"),
            "c_proj": linear(weights, f"{at}.output.dense"),
        },
        "ln_2": norm(weights, f"{at}.output.LayerNorm"),
    }


def params_of_bert(weights: dict[str, np.ndarray]) -> Params:
    """Ours from a BertForPreTraining's. The embedding of the first text's type is added to all positions."""
    tables = {name: weights[f"bert.embeddings.{name}_embeddings.weight"] for name in ("word", "position")}
    blocks = [block_of_bert(weights, f"bert.encoder.layer.{n}") for n in range(CONFIG.layers)]
    first_type = weights["bert.embeddings.token_type_embeddings.weight"][0]
    transform = "cls.predictions.transform"
    return {
        "wte": {"embedding": tables["word"]},
        "wpe": {"embedding": tables["position"] + first_type[None]},
        "ln_e": norm(weights, "bert.embeddings.LayerNorm"),
        "h": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks),
        "head": {
            "dense": linear(weights, f"{transform}.dense"),
            "ln": norm(weights, f"{transform}.LayerNorm"),
            "bias": weights["cls.predictions.bias"],
        },
        "pooler": linear(weights, "bert.pooler.dense"),
        "score": linear(weights, "cls.seq_relationship"),
    }


def test_logits_are_those_of_bert() -> None:
    with np.load(GOLDEN / "bert.npz") as file:
        weights = dict(file)
    params = params_of_bert(weights)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, PARAMS)
    tokens_BT = weights["tokens"]
    words_BTV = APPLY(params, tokens_BT)
    real_BT = tokens_BT != 0
    np.testing.assert_allclose(words_BTV[real_BT], weights["words"][real_BT], atol=2e-5)
    classes_BC = MODEL.score(params, HIDDEN(params, tokens_BT)[:, 0])
    np.testing.assert_allclose(classes_BC, weights["classes"], atol=1e-5)


def test_every_token_of_a_text_sees_every_other_and_no_padding() -> None:
    tokens_BT = np.array([[5, 9, 7, 3, 0, 0]], np.int32)

    def said(wpe_SD: jax.Array, at: int) -> jax.Array:
        moved = PARAMS | {"wpe": {"embedding": wpe_SD}}
        return jnp.square(MODEL.apply(moved, tokens_BT)[0, at]).sum()

    gradient = jax.jit(jax.vmap(jax.grad(said), in_axes=(None, 0)))
    seen_TS = np.abs(gradient(PARAMS["wpe"]["embedding"], jnp.arange(4))).sum(axis=-1)
    assert (seen_TS[:, :4] > 0).all() and not seen_TS[:, 4:].any()


def test_more_padding_changes_nothing() -> None:
    text = [5, 9, 7, 3]
    short, long = (np.array([text + [0] * more], np.int32) for more in (1, 8))
    np.testing.assert_allclose(HIDDEN(PARAMS, short)[:, :4], HIDDEN(PARAMS, long)[:, :4], atol=1e-6)


def test_segments_keep_texts_apart() -> None:
    tokens_BT, segments_BT = np.array([[5, 9, 7, 3]]), jnp.array([[1, 1, 2, 2]])
    other_BT = np.array([[5, 9, 8, 4]])
    hidden = jax.jit(lambda tokens_BT: MODEL.hidden(PARAMS, tokens_BT, segments_BT=segments_BT)[0])
    first, second = hidden(tokens_BT), hidden(other_BT)
    np.testing.assert_array_equal(first[:, :2], second[:, :2])
    assert np.abs(first[:, 2:] - second[:, 2:]).max() > 0.1


def test_dropout_has_another_mask_for_every_key() -> None:
    model = define(dataclasses.replace(CONFIG, dropout=0.5))
    tokens_BT = np.array([[5, 9, 7, 3]])
    apply = jax.jit(lambda key: model.apply(PARAMS, tokens_BT, key=key))
    some = [apply(jax.random.key(n)) for n in (0, 0, 1)]
    np.testing.assert_array_equal(some[0], some[1])
    assert np.abs(some[0] - some[2]).max() > 1e-3
    assert np.abs(some[0] - APPLY(PARAMS, tokens_BT)).max() > 1e-3


def test_it_learns_to_classify_by_the_last_word() -> None:
    """The first token's state knows the label only because it sees what stands behind it."""
    draw = np.random.default_rng(0)
    texts = [draw.integers(1, 37, draw.integers(2, 12)).tolist() for _ in range(64)]
    data = Encoded(texts, [int(text[-1] > 18) for text in texts], cut=0)
    form = Rows(context=14, padding=0, length=12)
    training = TrainingTexts(data, form, sequences=32, seed=0)
    optim = OptimConfig(learning_rate=3e-3, warmup_steps=10, weight_decay=0.0)
    loss = class_loss(MODEL, "first")
    fitted = fit(PARAMS, loss, training.rows, steps=60, sequences=32, optim=optim)
    batch = form.batch(data, range(64), 12)
    logits_BC = jax.jit(lambda params: class_logits(MODEL, params, batch, "first"))(fitted.params)
    found_B = logits_BC.argmax(axis=1)
    assert np.mean(found_B == np.array(data.labels)) > 0.9
    assert fitted.rows[-1]["step"] == 60 and fitted.rows[-1]["loss"] < 0.5 * fitted.rows[0]["loss"]


def test_a_wrong_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match="width = 10: it must be a multiple of heads"):
        EncoderConfig(width=10, heads=4)
    with pytest.raises(ConfigError, match="padding = 37: it must be an id of the vocabulary, 0 to 36"):
        EncoderConfig(vocab=37, padding=37)
    with pytest.raises(ConfigError, match="EncoderConfig cannot be made: activation = 'tanh'"):
        EncoderConfig(activation="tanh")  # type: ignore[arg-type]
