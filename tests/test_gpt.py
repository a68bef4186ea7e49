import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shaken
from placements import OnTpu

from jaxgpt.config import GPTConfig, Keeps, MeshConfig, TrainConfig, load_recipe, preset_names
from jaxgpt.model.cache import lengthened
from jaxgpt.model.gpt import Params, define
from jaxgpt.model.stack import unstacked
from jaxgpt.parallel import NOWHERE, Placement, mesh_of
from jaxgpt.training.flops import count_parameters
from jaxgpt.training.loss import cross_entropy

POSITIONS = ["learned", "sinusoidal", "rotary", "alibi"]
# Fixed positions are added as learned ones are, and slopes act as a mask does: most tests do without.
MOST_POSITIONS = [
    pytest.param(name, marks=pytest.mark.exhaustive) if name in ("sinusoidal", "alibi") else name
    for name in POSITIONS
]
PUBLISHED = {
    (12, 12, 768): 124_439_808,
    (24, 16, 1024): 354_823_168,
    (36, 20, 1280): 774_030_080,
    (48, 25, 1600): 1_557_611_200,
}


def stored_parameters(config: GPTConfig) -> int:
    """What `init` makes, without the rows that pad the vocabulary."""
    shapes = jax.eval_shape(define(config).init, jax.random.key(0))
    padding = (config.padded_vocab - config.vocab) * config.width * (1 if config.tied_head else 2)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes)) - padding


@pytest.mark.parametrize(("sizes", "published"), PUBLISHED.items())
def test_parameter_counts_are_the_published_ones(sizes: tuple[int, int, int], published: int) -> None:
    layers, heads, width = sizes
    config = GPTConfig(layers=layers, heads=heads, width=width)
    assert stored_parameters(config) == count_parameters(config) == published


@pytest.mark.parametrize(
    "changes",
    [
        {"tied_head": False},
        {"bias": False},
        {"qkv_bias": False},
        {"bias": False, "qkv_bias": False},
        {"position": "alibi"},
        {"mlp_width": 7},
    ],
)
def test_the_counting_formula_counts_what_is_made(config: GPTConfig, changes: dict[str, Any]) -> None:
    changed = dataclasses.replace(config, **changes)
    assert stored_parameters(changed) == count_parameters(changed)


def test_with_norms_of_queries_and_keys_their_size_does_not_matter(
    config: GPTConfig, tokens_BT: np.ndarray
) -> None:
    """Without biases and with queries and keys a hundred times as large; values count as before."""
    config = dataclasses.replace(config, bias=False, qk_norm=True)
    params = jax.jit(define(config).init)(jax.random.key(0))
    larger = jax.tree.map(jnp.copy, params)
    kernel = larger["h"]["attn"]["c_attn"]["kernel"]
    larger["h"]["attn"]["c_attn"]["kernel"] = kernel.at[:, :, :2].multiply(100)
    apply = jax.jit(define(config).apply)
    expected = apply(params, tokens_BT)
    np.testing.assert_allclose(apply(larger, tokens_BT), expected, rtol=0, atol=1e-4)
    larger["h"]["attn"]["c_attn"]["kernel"] = kernel.at[:, :, 2].multiply(100)
    assert np.abs(apply(larger, tokens_BT) - expected).max() > 0.01


def test_blocks_that_begin_with_zero_do_nothing_at_first(config: GPTConfig, tokens_BT: np.ndarray) -> None:
    """And their other layers are drawn as usual, so that the first step changes something."""
    config = dataclasses.replace(config, init="gpt2_zero")
    params = jax.jit(define(config).init)(jax.random.key(0))
    first = params | {"h": jax.tree.map(lambda leaf: leaf[:1], params["h"])}
    found, _ = define(config).hidden(params, tokens_BT)
    expected, _ = define(dataclasses.replace(config, layers=1)).hidden(first, tokens_BT)
    np.testing.assert_array_equal(found, expected)
    stds = {name: float(jnp.std(params["h"]["mlp"][name]["kernel"])) for name in ("c_fc", "c_proj")}
    assert stds["c_proj"] == 0 and stds["c_fc"] == pytest.approx(0.02, rel=0.1)


def test_future_tokens_cannot_change_the_past(
    config: GPTConfig, params: Params, tokens_BT: np.ndarray
) -> None:
    """One position's output has a gradient for the embeddings up to that position and none for later ones."""
    model = define(dataclasses.replace(config, vocab=config.context, position="learned", vocab_multiple=8))
    params = params | {"wte": {"embedding": params["wte"]["embedding"][: config.context]}}
    tokens_1T = jnp.arange(config.context)[
        None
    ]  # every token once: its row of the table is its position's embedding

    def loss_at(table_VD: jax.Array, position: int) -> jax.Array:
        x_BTD, _ = model.hidden(params | {"wte": {"embedding": table_VD}}, tokens_1T)
        return jnp.sum(x_BTD[0, position] * jnp.arange(config.width))

    gradient = jax.jit(jax.grad(loss_at))
    for position in (0, 7, config.context - 1):
        grad_TD = gradient(params["wte"]["embedding"], position)
        moved_T = np.abs(grad_TD).max(axis=1) > 0
        np.testing.assert_array_equal(moved_T, np.arange(config.context) <= position)


@pytest.mark.parametrize(
    "position",
    [
        "learned",
        pytest.param("rotary", marks=pytest.mark.exhaustive),
        pytest.param("sinusoidal", marks=pytest.mark.exhaustive),
        pytest.param("alibi", marks=pytest.mark.exhaustive),
    ],
)
def test_scanned_unrolled_and_recomputed_blocks_give_the_same_loss_and_gradients(
    config: GPTConfig, tokens_BT: np.ndarray, position: str
) -> None:
    config = dataclasses.replace(config, position=position)
    params = shaken(jax.jit(define(config).init)(jax.random.key(0)))

    def loss(params: Params, **how: Any) -> jax.Array:
        logits_BTV = define(config, **how).apply(params, tokens_BT[:, :-1])
        return cross_entropy(logits_BTV, jnp.asarray(tokens_BT[:, 1:])).mean()

    def measured(**how: Any) -> tuple[jax.Array, Params]:
        return jax.jit(jax.value_and_grad(functools.partial(loss, **how)))(params)

    expected, grads = measured()
    for how in ({"unrolled": True}, {"keeps": "products"}, {"keeps": "nothing", "unrolled": True}):
        value, others = measured(**how)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), others, grads)


def test_unrolled_blocks_run_outside_a_loop(config: GPTConfig, params: Params, tokens_BT: np.ndarray) -> None:
    def loops(**how: bool) -> int:
        model = define(config, **how)
        return str(jax.make_jaxpr(jax.grad(lambda p: model.hidden(p, tokens_BT)[0].sum()))(params)).count(
            "scan["
        )

    assert loops(unrolled=True) == 0 < loops()


def test_the_backward_pass_computes_again_what_is_not_kept(
    config: GPTConfig, params: Params, tokens_BT: np.ndarray
) -> None:
    """Of a block's six products. Of the last one, nothing is needed, and the scores are never kept."""

    def products(keeps: Keeps) -> int:
        model = define(config, keeps=keeps)
        jaxpr = jax.make_jaxpr(jax.grad(lambda p: model.hidden(p, tokens_BT)[0].sum()))(params)
        return str(jaxpr).count("dot_general")

    assert products("products") == products("all")
    assert products("nothing") == products("all") + 5


@pytest.mark.parametrize("keeps", ["products", "nothing"])
def test_the_backward_pass_gathers_kernels_again(
    config: GPTConfig, tokens_BT: np.ndarray, keeps: Keeps
) -> None:
    """They are bfloat16; what is stored is float32."""
    config = dataclasses.replace(config, compute_dtype="bfloat16")
    model = define(config, keeps=keeps, placement=OnTpu(mesh_of(MeshConfig(data=4, fsdp=2))))
    params = jax.eval_shape(model.init, jax.random.key(0))
    _, back = jax.eval_shape(lambda p: jax.vjp(lambda p: model.hidden(p, tokens_BT)[0], p), params)
    shapes = {leaf["kernel"].shape for part in ("attn", "mlp") for leaf in params["h"][part].values()}
    kept = {leaf.shape for leaf in jax.tree.leaves(back) if leaf.dtype == jnp.bfloat16}
    assert len(shapes) == 4 and not shapes & kept


@pytest.mark.parametrize("tied_head", [True, False])
def test_only_on_a_tpu_the_heads_table_is_rounded_into_an_array_of_its_own(
    config: GPTConfig, params: Params, tied_head: bool
) -> None:
    config = dataclasses.replace(config, compute_dtype="bfloat16", tied_head=tied_head)
    table = f"tensor<{config.padded_vocab}x{config.width}xbf16>"

    def settled(placement: Placement) -> list[str]:
        model = define(config, placement=placement)
        text = jax.jit(model.apply).lower(
            jax.eval_shape(model.init, jax.random.key(0)), np.zeros((2, 4), int)
        )
        return [line for line in text.as_text().splitlines() if "optimization_barrier" in line]

    [line] = settled(OnTpu(mesh_of(MeshConfig(data=1), jax.devices()[:1])))
    assert table in line and settled(NOWHERE) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"position": "learned"},
        {"position": "rotary", "qk_norm": True, "activation": "relu_squared", "tied_head": False},
        pytest.param({"position": "sinusoidal"}, marks=pytest.mark.exhaustive),
        pytest.param({"position": "alibi"}, marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_cached_decoding_equals_the_full_forward_pass(
    config: GPTConfig, tokens_BT: np.ndarray, changes: dict[str, Any]
) -> None:
    config = dataclasses.replace(config, **changes)
    model = define(config)
    params, hidden = shaken(jax.jit(model.init)(jax.random.key(0))), jax.jit(model.hidden)
    expected, _ = hidden(params, tokens_BT)
    served = params | {"h": unstacked(params["h"])}
    for given in (params, served):
        x_BTD, cache = jax.jit(model.hidden, static_argnames="keep")(given, tokens_BT[:, :5], keep=True)
        assert cache.span == 5 and len(cache.keys) == config.layers
        cache, parts = lengthened(cache, config.context), [x_BTD]
        for piece in (slice(5, 6), slice(6, 9), slice(9, 32)):
            x_BTD, cache = hidden(served, tokens_BT[:, piece], cache=cache)
            parts.append(x_BTD)
        np.testing.assert_array_equal(cache.length_B, [32] * 4)
        np.testing.assert_allclose(jnp.concatenate(parts, axis=1), expected, rtol=2e-5, atol=2e-5)


def test_scanned_blocks_refuse_a_cache(config: GPTConfig, params: Params, tokens_BT: np.ndarray) -> None:
    model = define(config)
    _, cache = jax.jit(model.hidden, static_argnames="keep")(params, tokens_BT[:, :5], keep=True)
    with pytest.raises(AssertionError, match="unstacked blocks"):
        model.hidden(params, tokens_BT[:, 5:6], cache=cache)


@pytest.mark.parametrize("position", MOST_POSITIONS)
def test_packed_texts_are_texts_alone(config: GPTConfig, tokens_BT: np.ndarray, position: str) -> None:
    config = dataclasses.replace(config, position=position)
    model = define(config)
    params, apply = shaken(jax.jit(model.init)(jax.random.key(0))), jax.jit(model.apply)
    segments_BT = jnp.where(jnp.arange(32) < 11, 0, 1)[None].repeat(4, axis=0)
    positions_BT = jnp.concatenate([jnp.arange(11), jnp.arange(21)])[None].repeat(4, axis=0)
    packed = apply(params, tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT)
    for part in (slice(0, 11), slice(11, 32)):
        np.testing.assert_allclose(packed[:, part], apply(params, tokens_BT[:, part]), rtol=2e-5, atol=2e-5)


def test_padding_rows_are_never_predicted_and_never_trained(
    config: GPTConfig, params: Params, tokens_BT: np.ndarray
) -> None:
    model = define(config)
    assert jax.eval_shape(model.apply, params, tokens_BT).shape == (4, 32, config.vocab)
    x_BTD, _ = jax.jit(model.hidden)(params, tokens_BT)
    assert (model.unembed(params, x_BTD)[..., config.vocab :] == -jnp.inf).all()
    rows_VD = jax.jit(model.init)(jax.random.key(0))["wte"]["embedding"]
    assert rows_VD.shape[0] == config.padded_vocab > config.vocab and not rows_VD[config.vocab :].any()
    grads = jax.jit(jax.grad(lambda p: cross_entropy(model.unembed(p, x_BTD), jnp.asarray(tokens_BT)).sum()))(
        params
    )
    assert (
        not grads["wte"]["embedding"][config.vocab :].any()
        and grads["wte"]["embedding"][: config.vocab].any()
    )


def test_bfloat16_computes_near_float32_and_keeps_float32_logits(
    config: GPTConfig, params: Params, tokens_BT: np.ndarray
) -> None:
    exact = jax.jit(define(config).apply)(params, tokens_BT)
    half = define(dataclasses.replace(config, compute_dtype="bfloat16"))
    x_BTD, _ = jax.eval_shape(half.hidden, params, tokens_BT)
    logits = jax.jit(half.apply)(params, tokens_BT)
    assert x_BTD.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    assert 1e-4 < np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()


def test_dropout_needs_a_key_and_follows_it(config: GPTConfig, params: Params, tokens_BT: np.ndarray) -> None:
    apply = jax.jit(define(dataclasses.replace(config, dropout=0.5)).apply)
    without = apply(params, tokens_BT)
    np.testing.assert_array_equal(without, jax.jit(define(config).apply)(params, tokens_BT))
    one, again, two = (apply(params, tokens_BT, key=jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, two) and not np.allclose(one, without)


SMALL = ("nano", "shakespeare-char")
# Recipes of other tasks start from a trained model.
PRETRAINED = [name for name in preset_names() if isinstance(load_recipe(name), TrainConfig)]


@pytest.mark.parametrize("name", SMALL)
def test_initial_loss_is_log_vocabulary_plus_half_logit_variance(name: str) -> None:
    check_initial_loss(load_recipe(name).model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        name if name == "gpt2-xl" else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in PRETRAINED
        if name not in SMALL
    ],
)
def test_initial_loss_of_the_large_presets(name: str) -> None:
    """With two layers, because how many there are decides only the memory that this takes."""
    check_initial_loss(dataclasses.replace(load_recipe(name).model, layers=2))


def check_initial_loss(config: GPTConfig) -> None:
    """Check that the loss starts at log V plus half the variance of the logits.

    The logits are activations of variance 1 times rows of standard deviation 0.02, so their variance is
    0.02^2 D; PyTorch's rows reach evenly from -1/sqrt(D) to 1/sqrt(D), and the variance is 1/3. The loss is
    averaged over every possible target, because a few hundred drawn ones would scatter it too much.
    """
    model = define(dataclasses.replace(config, compute_dtype="float32"))
    tokens_BT = jax.random.randint(jax.random.key(1), (4, min(config.context, 128)), 0, config.vocab)

    @jax.jit
    def loss(params: Params) -> jax.Array:
        logits_BTV = model.apply(params, tokens_BT)
        return (jax.nn.logsumexp(logits_BTV, axis=-1) - logits_BTV.mean(axis=-1)).mean()

    params = jax.jit(model.init)(jax.random.key(0))
    variance = 1 / 3 if config.init == "torch" and not config.tied_head else 0.02**2 * config.width
    assert abs(loss(params) - (np.log(config.vocab) + variance / 2)) < 0.03
