"""Checks of the compiler: whether its results are right, and whether fused attention works."""

import importlib
from typing import TYPE_CHECKING

import numpy as np
from packaging.requirements import Requirement

from jaxgpt.doctor.check import Check, Finding
from jaxgpt.doctor.packages import bounds_of

if TYPE_CHECKING:
    import jax

ROWS = 32_769  # with fewer rows, jaxlib 0.10.2 gets all of them right on CPU
AMPERE = (8, 0)  # the lowest compute capability that has cuDNN's fused attention
WITHOUT_FUSION = "export XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=   # turns the broken fusion off"
SPLASH = "jax.experimental.pallas.ops.tpu.splash_attention"


def check_results(device: "jax.Device") -> Check:
    """Run a program that jaxlib 0.10.2 miscompiles on CPU (jax issue 39103), and compare it with NumPy.

    The numbers are small integers, which the reduced precision of accelerators represents exactly too.
    """
    import jax
    import jax.numpy as jnp

    rows = (np.arange(3 * ROWS).reshape(ROWS, 3) % 97).astype(np.float32)
    want = (rows * rows).sum(axis=1)
    with jax.default_device(device):
        matrix = jnp.eye(3, dtype=jnp.float32)
        got = np.asarray(jax.jit(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2)))(jnp.asarray(rows)))
    wrong = np.flatnonzero(got != want)
    if not wrong.size:
        return Check("results", f"{ROWS:,} rows computed on {device.platform} equal NumPy's", [])
    first, supported = wrong[0], Requirement(bounds_of("jax"))
    finding = Finding(
        f"JAX {jax.__version__} computes wrong results on {device.platform} (as in jax issue 39103): "
        f"row {first} of {ROWS} is {got[first]:g} instead of {want[first]:g}",
        WITHOUT_FUSION if jax.__version__ in supported.specifier else f"pip install '{supported}'",
    )
    return Check("results", f"{wrong.size:,} of {ROWS:,} rows are wrong on {device.platform}", [finding])


def check_attention(device: "jax.Device") -> Check:
    """Look for the platform's fused attention: cuDNN's on NVIDIA GPUs, splash attention on TPUs."""
    if device.platform == "gpu":
        return _cudnn(device)
    if device.platform == "tpu":
        return _splash()
    return Check(
        "attention", f"{device.platform} has no fused kernel: attention is computed in blocks of queries", []
    )


def _cudnn(device: "jax.Device") -> Check:
    """Compile and run cuDNN's attention, forward and backward, on a small bfloat16 array."""
    import jax
    import jax.numpy as jnp

    capability = str(getattr(device, "compute_capability", "0.0"))
    if tuple(int(part) for part in capability.split(".")) < AMPERE:
        told = f"cuDNN's fused kernel needs compute capability 8.0 or more, and this GPU has {capability}"
        return Check("attention", told, [])

    def total(qkv_BTHK: "jax.Array") -> "jax.Array":
        out = jax.nn.dot_product_attention(*[qkv_BTHK] * 3, is_causal=True, implementation="cudnn")
        return out.astype(jnp.float32).sum()

    try:
        with jax.default_device(device):
            gradient = jax.jit(jax.grad(total))(jnp.ones((1, 64, 2, 64), jnp.bfloat16))
            jax.block_until_ready(gradient)
    except Exception as error:  # noqa: BLE001  JAX, XLA and cuDNN raise many kinds; each is the finding.
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        finding = Finding(
            f"cuDNN's fused attention does not run here, so attention needs more time and memory: {why}",
            "pip install --upgrade 'jaxgpt[cuda13]'   # or cuda12; it brings a cuDNN of its own",
        )
        return Check("attention", "cuDNN's fused kernel was tried", [finding])
    return Check("attention", "cuDNN's fused kernel runs, forward and backward, in bfloat16", [])


def _splash() -> Check:
    """Look whether splash attention, which is a part of JAX, can be imported. It is not run."""
    try:
        importlib.import_module(SPLASH)
    except ImportError as error:
        finding = Finding(
            f"JAX's splash attention does not import: {error}", f"pip install '{bounds_of('jax')}'"
        )
        return Check("attention", "splash attention was looked for", [finding])
    return Check("attention", "splash attention can be imported; it was not run", [])
