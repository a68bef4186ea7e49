"""Products of matrices with few rows, as a served model needs them on a CPU, where they wait for memory.

A kernel is turned: (out, in). It is read from its beginning to its end, in the type it is stored in. XLA can
multiply int8 and bfloat16 on a CPU as they are where it has the library YNNPACK (JAX 0.10 and later);
`reads_small_types` asks the compiler. Otherwise it makes float32 copies, which need more time than they save.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

MOST_PAIRED = 8  # a product with more rows than these does not read a float32 kernel's outputs in pairs
DIGIT = 127  # the largest magnitude of a digit in int8
STEPS = 2 * DIGIT  # a digit's step is so many steps of the next digit
DIGITS = {"float32": 3, "bfloat16": 2}  # three digits have 23 bits, as many as float32
CONTRACTED = (((1,), (1,)), ((), ()))  # both sides are summed over their last axis


def turned_product(kernel_OI: Array, x_LI: Array) -> Array:
    """[O, I] times [L, I] transposed: [O, L], in the type of both.

    With a few rows, two outputs are read as one of twice the length, and each row is multiplied once with
    zeros behind it and once with zeros before it. A CPU reads longer runs of memory faster, and such a
    product waits for memory, so that the multiplications with zero cost nothing.
    """
    rows, (outputs, inputs) = len(x_LI), kernel_OI.shape
    if not 1 < rows <= MOST_PAIRED or outputs % 2:
        return jax.lax.dot_general(kernel_OI, x_LI, CONTRACTED)
    none_LI = jnp.zeros_like(x_LI)
    twice = jnp.block([[x_LI, none_LI], [none_LI, x_LI]])
    y = jax.lax.dot_general(kernel_OI.reshape(-1, 2 * inputs), twice, CONTRACTED)
    return y.reshape(outputs, rows)


def stored_product(kernel_OI: Array, x_LI: Array) -> Array:
    """[O, I], int8 or bfloat16, times [L, I] transposed: float32 [O, L]."""
    if kernel_OI.dtype == jnp.int8:
        return _integer_product(kernel_OI, x_LI)
    rows, x_LI = len(x_LI), x_LI.astype(kernel_OI.dtype)
    if rows == 1:  # a single row is a product that XLA does not give to the library
        x_LI = jnp.concatenate([x_LI, jnp.zeros_like(x_LI)])
    y_OL: Array = jax.lax.dot_general(kernel_OI, x_LI, CONTRACTED, preferred_element_type=jnp.float32)
    # Without the barrier XLA turns the product round where its result is turned, and a table takes ten times
    # as long with its rows on the right.
    y_OL = jax.lax.optimization_barrier(y_OL)
    return y_OL[:, :rows]


def stored_rows(table_VD: Array, tokens: Array) -> Array:
    """The rows of these tokens, float32 [..., D].

    Without the barrier XLA converts all of a bfloat16 table before the loop that writes tokens.
    """
    table_VD, tokens = jax.lax.optimization_barrier((table_VD, tokens))
    rows: Array = table_VD[tokens].astype(jnp.float32)
    return rows


def _integer_product(kernel_OI: Array, x_LI: Array) -> Array:
    """int8 [O, I] times [L, I] transposed: float32 [O, L].

    Each row of x is written with a scale of its own as two or three digits in int8, each digit 1/254 of the
    one before it. The digits are rows of one product of integers, which is exact; what is lost is less than
    the type of x loses itself.
    """
    digits, rows = DIGITS[str(x_LI.dtype)], len(x_LI)
    scale_L1 = jnp.max(jnp.abs(x_LI), axis=1, keepdims=True).astype(jnp.float32) / DIGIT
    rest_LI = x_LI.astype(jnp.float32) / jnp.where(scale_L1 > 0, scale_L1, 1)
    parts = []
    for _ in range(digits):
        parts.append(jnp.round(rest_LI))
        rest_LI = (rest_LI - parts[-1]) * STEPS
    parts_LI = jnp.concatenate([part.astype(jnp.int8) for part in parts])
    sums = jax.lax.dot_general(kernel_OI, parts_LI, CONTRACTED, preferred_element_type=jnp.int32)
    y_OL = jnp.zeros((len(kernel_OI), rows))
    for sums_OL in reversed(jnp.split(sums, digits, axis=1)):
        y_OL = y_OL / STEPS + sums_OL.astype(jnp.float32)
    return y_OL * scale_L1.T


@functools.cache
def reads_small_types(device: jax.Device) -> bool:
    """Whether XLA multiplies int8 and bfloat16 on this CPU as they are: both are compiled to see it."""
    place = jax.sharding.SingleDeviceSharding(device)

    def compiled(dtype: str, result: str) -> str:
        shape = jax.ShapeDtypeStruct((256, 256), dtype, sharding=place)
        few = jax.ShapeDtypeStruct((4, 256), dtype, sharding=place)
        program = jax.jit(
            functools.partial(jax.lax.dot_general, preferred_element_type=result), static_argnums=2
        )
        return str(program.lower(shape, few, CONTRACTED).compile().as_text())

    return all("__ynn_fusion" in compiled(*types) for types in (("int8", "int32"), ("bfloat16", "float32")))
