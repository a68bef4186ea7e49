"""Counting arithmetic and utilisation."""

import dataclasses
import re
import time
from types import SimpleNamespace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import pytest

from jaxgpt.config import GPTConfig
from jaxgpt.model.gpt import define
from jaxgpt.training import flops

GPT2 = GPTConfig()


@pytest.mark.parametrize(
    ("layers", "heads", "width", "published"),
    [
        (12, 12, 768, 124_439_808),
        (24, 16, 1024, 354_823_168),
        (36, 20, 1280, 774_030_080),
        (48, 25, 1600, 1_557_611_200),
    ],
)
def test_parameter_counts_are_those_of_the_public_weights(layers, heads, width, published):
    # published: the elements of the Hugging Face checkpoints gpt2, gpt2-medium, gpt2-large and gpt2-xl
    assert flops.count_parameters(GPTConfig(layers=layers, heads=heads, width=width)) == published


def test_parameter_count_equals_a_list_of_all_shapes():
    config = GPTConfig(vocab=11, context=7, layers=3, heads=2, width=4, mlp_width=10)
    block = [(4,), (4,), (4, 12), (12,), (4, 4), (4,), (4,), (4,), (4, 10), (10,), (10, 4), (4,)]
    shapes = [(11, 4), (7, 4), (4,), (4,), *block * 3]
    assert flops.count_parameters(config) == sum(s[0] * (s[1] if len(s) == 2 else 1) for s in shapes)


def test_without_biases_only_matrices_and_layer_norm_scales_are_counted():
    config = GPTConfig(
        vocab=11, context=7, layers=3, heads=2, width=4, mlp_width=10, bias=False, position="rotary"
    )
    assert flops.count_parameters(config) == 11 * 4 + 3 * (4 * 12 + 4 * 4 + 2 * 4 * 10 + 2 * 4) + 4


def test_the_books_model_has_the_books_number_of_parameters():
    untied = GPTConfig(qkv_bias=False, tied_head=False)
    assert flops.count_parameters(untied) == 163_009_536
    assert flops.count_parameters(GPTConfig(qkv_bias=False)) == 124_412_160


def test_gpt2_flops_per_token_are_the_number_worked_out_by_hand():
    # 6 (124,439,808 - 1024 x 768) + 12 x 12 x 768 x 1024
    assert flops.train_flops_per_token(GPT2) == 741_920_256 + 113_246_208


def test_tying_the_head_changes_the_parameters_and_not_the_arithmetic():
    untied = GPTConfig(tied_head=False)
    assert flops.count_parameters(untied) - flops.count_parameters(GPT2) == 50257 * 768
    assert flops.train_flops_per_token(untied) == flops.train_flops_per_token(GPT2)


def test_padding_the_vocabulary_changes_neither_count():
    padded = GPTConfig(vocab_multiple=4096)
    assert flops.count_parameters(padded) == flops.count_parameters(GPT2)
    assert flops.train_flops_per_token(padded) == flops.train_flops_per_token(GPT2)


def test_only_attention_depends_on_the_context():
    difference = flops.train_flops_per_token(GPT2, context=512) - flops.train_flops_per_token(
        GPT2, context=256
    )
    assert difference == 12 * 12 * 768 * 256


def test_the_formula_agrees_with_what_xla_counts():
    # One layer's products written out, forward and backward; XLA counts the FLOPs of the compiled program.
    config = GPTConfig(vocab=512, context=64, layers=1, heads=1, width=128, bias=False, position="rotary")
    shapes = {"qkv": (128, 384), "out": (128, 128), "up": (128, 512), "down": (512, 128), "head": (128, 512)}

    def loss(params, x_TD):
        q_TD, k_TD, v_TD = jnp.split(x_TD @ params["qkv"], 3, axis=-1)
        x_TD = (q_TD @ k_TD.T) @ v_TD @ params["out"]
        return (x_TD @ params["up"] @ params["down"] @ params["head"]).var()

    params = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
    x_TD = jax.ShapeDtypeStruct((64, 128), "float32")
    cost = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x_TD).compile().cost_analysis()
    # Our count holds 3 LayerNorm scales, XLA's the sum and the adding of gradients: products dominate both.
    assert cost["flops"] == pytest.approx(64 * flops.train_flops_per_token(config), rel=0.02)


def test_peak_is_known_for_bfloat16_on_listed_devices_only():
    assert flops.peak_flops("TPU v5 lite") == 197e12
    assert flops.peak_flops("NVIDIA H200") == 989.5e12
    assert flops.peak_flops("NVIDIA H200", "float32") is None
    assert flops.peak_flops("cpu") is None
    assert flops.peak_flops("Tesla T4") is None


def test_utilisation_is_one_when_all_devices_do_nothing_else():
    tokens_per_second = 8 * 989.5e12 / flops.train_flops_per_token(GPT2)
    assert flops.utilisation(tokens_per_second, GPT2, 989.5e12, 8) == pytest.approx(1.0)
    assert flops.utilisation(tokens_per_second, GPT2, 989.5e12, 16) == pytest.approx(0.5)


def test_utilisation_is_unknown_when_the_peak_is():
    assert flops.utilisation(1000.0, GPT2, None, 1) is None


SMALL = GPTConfig(vocab=64, context=16, layers=1, heads=1, width=16)
WANTED = {"float32": "highest", "bfloat16": "default"}  # the precision that a type of computation asks for


def test_measured_matmul_flops_are_the_products_over_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(
        [0.0, 0.5, 1.0, 1.5, 2.0, 12.0, 13.0, 13.5]
    )  # 0.5, 0.5 and once 10 seconds: the median is 0.5
    monkeypatch.setattr(flops, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert flops.measured_matmul_flops(SMALL, jax.devices()[0], size=8, seconds=1.0) == 2 * 8**3 / 0.5


def test_measuring_a_matmul_takes_about_the_seconds_asked_for() -> None:
    start = time.perf_counter()
    assert flops.measured_matmul_flops(SMALL, jax.devices()[0], size=256, seconds=0.2) > 0
    assert 0.2 < time.perf_counter() - start < 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_product_that_is_measured_has_the_precision_of_the_products_of_the_model(
    dtype: Literal["float32", "bfloat16"],
) -> None:
    config = dataclasses.replace(SMALL, compute_dtype=dtype)
    model = define(config)
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens_BT = jax.ShapeDtypeStruct((2, 16), "int32")
    whole = jax.jit(model.apply).lower(params, tokens_BT).compile().as_text()
    product, left, _ = flops._matrix_product(config, jax.devices()[0], 8)
    assert precisions(product.as_text() or "") == precisions(whole or "") == {WANTED[dtype]}
    assert left.dtype == dtype


def precisions(program: str) -> set[str]:
    """The precisions of the matrix products in a compiled program."""
    products = [line for line in program.splitlines() if " dot(" in line]
    assert products
    return {(re.findall(r"operand_precision=\{(\w+),", line) or ["default"])[0] for line in products}


def test_the_product_is_measured_on_the_device_asked_for() -> None:
    device = jax.devices()[5]
    product, left, right = flops._matrix_product(SMALL, device, 8)
    assert left.devices() == right.devices() == product(left, right).devices() == {device}


def test_only_on_cpu_the_product_is_small_unless_its_size_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def product(config: GPTConfig, device: Any, size: int) -> Any:
        sizes.append(size)
        return (lambda left, right: SimpleNamespace(block_until_ready=lambda: None)), 0, 0

    monkeypatch.setattr(flops, "_matrix_product", product)
    for platform in ("cpu", "gpu"):
        flops.measured_matmul_flops(SMALL, SimpleNamespace(platform=platform), seconds=0.0)
    assert sizes == [1024, 8192]
