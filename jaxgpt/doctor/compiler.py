"""What the compiler makes of a program: right results, and a fused attention where there is one."""

import importlib
from typing import TYPE_CHECKING

import numpy as np
from packaging.requirements import Requirement

from jaxgpt.doctor.check import Check, Finding
from jaxgpt.doctor.packages import bounds_of

if TYPE_CHECKING:
    import jax

ROWS = 32_769  # the fewest rows whose last one jaxlib 0.10.2 gets wrong on CPU
AMPERE = (8, 0)  # the oldest compute capability with cuDNN's fused attention
WITHOUT_FUSION = (
    "export XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=   # leaves out what is broken on CPU"
)
SPLASH = "jax.experimental.pallas.ops.tpu.splash_attention"


def check_results(device: "jax.Device") -> Check:
    """Compare a program that jaxlib 0.10.2 miscompiles on CPU (jax issue 39103) with NumPy, row by row.

    The numbers are small integers, so that float32 and what accelerators round to hold them exactly.
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
        f"JAX {jax.__version__} computes wrong results on {device.platform} (as jax issue 39103): "
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
        "attention", f"{device.platform} has no fused kernel: attention goes over blocks of queries", []
    )


def _cudnn(device: "jax.Device") -> Check:
    """Compile and run cuDNN's attention, forward and backward, on a few numbers in bfloat16."""
    import jax
    import jax.numpy as jnp

    capability = str(getattr(device, "compute_capability", "0.0"))
    if tuple(int(part) for part in capability.split(".")) < AMPERE:
        told = f"a GPU of compute capability {capability} has no fused kernel of cuDNN (8.0 and newer have)"
        return Check("attention", told, [])

    def total(qkv_BTHK: "jax.Array") -> "jax.Array":
        out = jax.nn.dot_product_attention(*[qkv_BTHK] * 3, is_causal=True, implementation="cudnn")
        return out.astype(jnp.float32).sum()

    try:
        with jax.default_device(device):
            gradient = jax.jit(jax.grad(total))(jnp.ones((1, 64, 2, 64), jnp.bfloat16))
            jax.block_until_ready(gradient)
    except Exception as error:  # a missing or old cuDNN raises kinds of every layer below
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        finding = Finding(
            f"cuDNN's fused attention does not run here, so attention takes longer and more memory: {why}",
            "pip install --upgrade 'jaxgpt[cuda13]'   # or cuda12; it brings a cuDNN of its own",
        )
        return Check("attention", "cuDNN's fused kernel was tried", [finding])
    return Check("attention", "cuDNN's fused kernel runs, forward and backward, in bfloat16", [])


def _splash() -> Check:
    """Splash attention is a part of JAX: it is there or it is not. It is not run here."""
    try:
        importlib.import_module(SPLASH)
    except ImportError as error:
        finding = Finding(
            f"JAX's splash attention does not import: {error}", f"pip install '{bounds_of('jax')}'"
        )
        return Check("attention", "splash attention was looked for", [finding])
    return Check("attention", "splash attention is there; it was not run", [])
