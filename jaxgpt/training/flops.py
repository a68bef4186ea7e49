"""How much arithmetic training takes, and what share of the hardware's arithmetic it reaches.

The convention is that of PaLM (Chowdhery et al. 2022, appendix B). A token costs 6 FLOPs for every parameter
that it is multiplied with: 2 in the forward pass and 4 in the backward pass. Attention's two products with
the whole context cost another 12 x layers x width x context. This counts what the model asks for, not what
the machine does. Causal masking therefore does not lower the count, and recomputation does not raise it.
"""

import statistics
import time
from typing import TYPE_CHECKING

from jaxgpt.config import GPTConfig

if TYPE_CHECKING:
    import jax

PEAK_FLOPS = {
    # The source is Google Cloud's page on each TPU version, "peak compute per chip (bf16)". One JAX device is
    # one chip, but on TPU7x it is half a chip. JAX spells some names in two ways
    # (jax/_src/pallas/mosaic/tpu_info.py).
    "TPU v4": 275e12,  # Cloud TPU v4
    "TPU v5 lite": 197e12,  # Cloud TPU v5e
    "TPU v5e": 197e12,  # the same
    "TPU v5": 459e12,  # Cloud TPU v5p
    "TPU v5p": 459e12,  # the same
    "TPU v6 lite": 918e12,  # Cloud TPU v6e
    "TPU v6e": 918e12,  # the same
    "TPU7x": 2307e12 / 2,  # Cloud TPU7x, two devices on each chip
    # A figure is halved where NVIDIA's data sheet gives it with 2:4 sparsity. The T4 is missing because it
    # does not compute in bfloat16.
    "NVIDIA A100-SXM4-40GB": 312e12,  # A100 Tensor Core GPU data sheet
    "NVIDIA A100-SXM4-80GB": 312e12,  # the same
    "NVIDIA A100-PCIE-40GB": 312e12,  # the same
    "NVIDIA A100 80GB PCIe": 312e12,  # the same
    "NVIDIA H100 80GB HBM3": 1979e12 / 2,  # H100 Tensor Core GPU data sheet, SXM
    "NVIDIA H100 PCIe": 1513e12 / 2,  # H100 Tensor Core GPU data sheet, first edition, PCIe
    "NVIDIA H100 NVL": 1671e12 / 2,  # H100 Tensor Core GPU data sheet, NVL
    "NVIDIA H200": 1979e12 / 2,  # H200 Tensor Core GPU data sheet, SXM
    "NVIDIA L4": 242e12 / 2,  # L4 Tensor Core GPU data sheet
    "NVIDIA L40S": 733e12 / 2,  # L40S data sheet
    "NVIDIA GeForce RTX 3090": 71e12,  # GA102 architecture white paper, float32 accumulation
    "NVIDIA GeForce RTX 4090": 165.2e12,  # Ada GPU architecture white paper, float32 accumulation
}
"""FLOP/s of one device on dense bfloat16 matrix products, by JAX's `device_kind`."""


def count_parameters(config: GPTConfig) -> int:
    """The number of parameters of the model. The rows that pad the embedding are not counted."""
    head = 0 if config.tied_head else config.vocab * config.width
    positions = config.context * config.width if config.position == "learned" else 0
    return config.vocab * config.width + positions + head + _parameters_of_blocks(config)


def train_flops_per_token(config: GPTConfig, context: int | None = None) -> float:
    """FLOPs to train on one token of a sequence of `context` tokens. None means the model's own context.

    The formula is 6 x parameters + 12 x layers x width x context (PaLM, appendix B). The parameters are those
    of the blocks and of the last LayerNorm, with their biases, and the vocab x width matrix of the output
    head, whether it is tied or not. The two embedding look-ups and padding rows do not count. The masked half
    of the attention scores does count. Softmax, GELU and recomputation in the backward pass do not.
    """
    parameters = _parameters_of_blocks(config) + config.vocab * config.width
    return 6.0 * parameters + attention_flops_per_token(config, context)


def attention_flops_per_token(config: GPTConfig, context: int | None = None) -> float:
    """FLOPs of attention's two products alone, of those that `train_flops_per_token` counts."""
    return 12.0 * config.layers * config.width * (context or config.context)


def _parameters_of_blocks(config: GPTConfig) -> int:
    """The number of parameters in the blocks and in the LayerNorm after them."""
    width, mlp = config.width, config.mlp_size
    matrices = 4 * width * width + 2 * width * mlp  # c_attn (3), attn.c_proj (1); c_fc, mlp.c_proj
    biases = width + mlp + width if config.bias else 0
    biases += 3 * width if config.biased_qkv else 0
    layer_norm = 2 * width if config.bias else width
    return config.layers * (matrices + biases + 2 * layer_norm) + layer_norm


def peak_flops(device_kind: str, dtype: str = "bfloat16") -> float | None:
    """FLOP/s that the maker states for one device, for dense matrix products in `dtype`; None when unknown.

    Only bfloat16 is known. The speed of a float32 product depends on the precision that XLA picks for it.
    """
    return PEAK_FLOPS.get(device_kind) if dtype == "bfloat16" else None


def measured_matmul_flops(
    config: GPTConfig, device: "jax.Device", *, size: int | None = None, seconds: float = 1.0
) -> float:
    """FLOP/s that one device reaches on square matrix products, from their median time.

    It serves as the upper limit where no data sheet gives one. The product therefore has the type and the
    precision of this model's own products. The matrices have `size` rows. None means 1024 on CPU and 8192
    elsewhere, so that the time to start a product hardly counts. Products are timed for about `seconds`, and
    at least three of them.
    """
    if size is None:
        size = 1024 if device.platform == "cpu" else 8192
    product, left, right = _matrix_product(config, device, size)
    product(left, right).block_until_ready()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        product(left, right).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2.0 * size**3 / statistics.median(times)


def _matrix_product(
    config: GPTConfig, device: "jax.Device", size: int
) -> tuple["jax.stages.Compiled", "jax.Array", "jax.Array"]:
    """A compiled square product with this model's type and precision, and two matrices on the device."""
    import jax

    with jax.default_device(device), jax.default_matmul_precision(config.matmul_precision):
        keys = jax.random.split(jax.random.key(0))
        left, right = (jax.random.normal(key, (size, size), config.compute_dtype) for key in keys)
        return jax.jit(lambda a, b: a @ b).lower(left, right).compile(), left, right


def utilisation(
    tokens_per_second: float, config: GPTConfig, peak: float | None, devices: int, context: int | None = None
) -> float | None:
    """Model FLOPs utilisation (MFU): the FLOP/s of training divided by the peak FLOP/s of all devices.

    `tokens_per_second` counts all devices together. `peak` is the FLOP/s of one device; the result is None
    when it is None. `context` is as in `train_flops_per_token`.
    """
    if peak is None:
        return None
    return tokens_per_second * train_flops_per_token(config, context) / (peak * devices)
