"""Products of int8 and bfloat16 kernels: what they compute, and that they are read as they are stored."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import GPTConfig
from jaxgpt.inference.products import reads_small_types, stored_product
from jaxgpt.inference.programs import empty_cache
from jaxgpt.inference.served import Served
from jaxgpt.inference.served_layers import ServedLayers
from jaxgpt.model.cache import KVCache
from jaxgpt.model.gpt import define

INPUTS, OUTPUTS = 48, 20
READS = reads_small_types(jax.devices()[0])


def rows_of(rows: int) -> np.ndarray:
    """Rows of very different sizes, the first of them zero where there are several."""
    sizes = np.logspace(-4, 4, rows) * np.append(np.zeros(1), np.ones(rows))[-rows:]
    return (np.random.default_rng(rows).standard_normal((rows, INPUTS)) * sizes[:, None]).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 2, 5, 40])
@pytest.mark.parametrize(("dtype", "lost"), [("float32", 2**-23), ("bfloat16", 2**-15)])
def test_a_product_with_int8_is_as_exact_as_the_type_of_its_rows(rows: int, dtype: str, lost: float) -> None:
    """Of each row at most the given share of its largest number, for each of its numbers."""
    kernel_OI = np.random.default_rng(0).integers(-127, 128, (OUTPUTS, INPUTS))
    x_LI = jnp.asarray(rows_of(rows), dtype)
    found = jax.jit(stored_product)(jnp.asarray(kernel_OI, jnp.int8), x_LI)
    exact_LI = np.asarray(x_LI, np.float64)
    allowed_OL = np.abs(kernel_OI).sum(1)[:, None] * np.abs(exact_LI).max(1) * lost
    assert found.dtype == jnp.float32 and found.shape == (OUTPUTS, rows)
    assert np.all(np.abs(found - kernel_OI @ exact_LI.T) <= allowed_OL)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_product_with_bfloat16_is_added_up_in_float32(rows: int) -> None:
    kernel_OI = jax.random.normal(jax.random.key(0), (OUTPUTS, INPUTS), jnp.bfloat16)
    x_LI = jnp.asarray(rows_of(rows), jnp.bfloat16)
    found = jax.jit(stored_product)(kernel_OI, x_LI)
    expected = np.asarray(kernel_OI, np.float64) @ np.asarray(x_LI, np.float64).T
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("number", [np.inf, np.nan])
def test_a_row_that_is_not_finite_has_no_finite_product(dtype: str, number: float) -> None:
    """The others keep theirs."""
    kernel_OI = jnp.ones((OUTPUTS, INPUTS), jnp.int8)
    x_LI = jnp.ones((2, INPUTS), dtype).at[1, 3].set(number)
    found = np.asarray(stored_product(kernel_OI, x_LI))
    assert not np.isfinite(found[:, 1]).any()
    np.testing.assert_allclose(found[:, 0], INPUTS, rtol=1e-6)


@pytest.mark.skipif(not READS, reason="XLA has no library here that multiplies small types")
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize(("int8", "dtype"), [(True, "float32"), (False, "bfloat16")])
def test_no_kernel_and_no_table_is_converted_in_the_program_that_writes(
    config: GPTConfig, int8: bool, dtype: str, slots: int
) -> None:
    """A float32 copy of a kernel or of the table would have its shape; a loop would make it once."""
    config = dataclasses.replace(config, compute_dtype=dtype, vocab=500, layers=1)
    served = Served.of(config, jax.jit(define(config).init)(jax.random.key(0)), int8=int8)
    as_before = dataclasses.replace(served, layers=ServedLayers(turned=True, int8=int8))
    kernels = {
        (leaf.size, leaf.shape[-1])
        for leaf in jax.tree.leaves(served.params)
        if leaf.dtype in ("int8", "bfloat16")
    }
    assert served.layers.as_stored and len(kernels) >= 4
    made = made_in_float32(served, slots)
    assert not kernels & made
    columns = max(slots, 2)
    assert int8 or (config.padded_vocab * columns, columns) in made  # the table stands on the left
    assert kernels & made_in_float32(as_before, 1)


def made_in_float32(served: Served, slots: int) -> set[tuple[int, int]]:
    """How many numbers, and how many in a row, the arrays have that a program of four steps keeps in float32.

    They are the results of fusions and conversions; what is computed inside of a fusion is never kept.
    """

    def write(served: Served, cache: KVCache, token_B: jax.Array) -> jax.Array:
        def step(_: int, carry: tuple[KVCache, jax.Array]) -> tuple[KVCache, jax.Array]:
            x_BTD, cache = served.model.hidden(served.params, carry[1][:, None], cache=carry[0])
            assert cache is not None
            return cache, jnp.argmax(served.model.unembed(served.params, x_BTD[:, 0]), axis=-1).astype(int)

        return jax.lax.fori_loop(0, 4, step, (cache, token_B))[1]

    cache = empty_cache(config=served.config, slots=slots, span=16, heads=served.heads)
    text = jax.jit(write).lower(served, cache, jnp.zeros(slots, int)).compile().as_text()
    parts = [part for part in text.split("\n\n") if not re.match(r"\s*%(fused|wrapped)", part)]
    found = re.findall(r"= f32\[([\d,]+)\]\S* (?:fusion|convert)\(", "\n".join(parts))
    shapes = [tuple(map(int, dims.split(","))) for dims in found]
    assert shapes
    return {(math.prod(shape), shape[-1]) for shape in shapes}
