"""`jaxgpt info`: what this machine and installation are, for a person and for a bug report."""

import importlib.metadata
import importlib.util
import platform
from dataclasses import dataclass

PACKAGES = ("jaxgpt", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tiktoken", "numpy")


@dataclass(frozen=True, kw_only=True)
class InfoArgs:
    """Versions, backend, devices, data type and memory; warns when an accelerator is there but not used."""


def run(args: InfoArgs) -> None:
    """Print the facts to stdout."""
    import jax
    from rich.console import Console
    from rich.table import Table

    from jaxgpt.training.flops import peak_flops

    table = Table(show_header=False, box=None)
    table.add_row("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in PACKAGES:
        table.add_row(name, importlib.metadata.version(name))
    table.add_row("backend", jax.default_backend())
    table.add_row("processes", f"{jax.process_count()}, this is number {jax.process_index()}")
    for device in jax.local_devices():
        peak = peak_flops(device.device_kind)
        flops = f"{peak / 1e12:.0f} TFLOP/s in bfloat16" if peak else "peak unknown"
        table.add_row(f"device {device.id}", f"{device.device_kind}, {flops}, {_memory(device)}")
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    table.add_row(
        "compute dtype", f"float32 unless set; {dtype} is the usual choice here (--model.compute-dtype)"
    )
    Console().print(table)
    for warning in silent_fallback(jax.default_backend()):
        Console(stderr=True).print(f"warning: {warning}", style="yellow", soft_wrap=True)


def _memory(device: object) -> str:
    try:
        stats = device.memory_stats()  # type: ignore[attr-defined]
    except Exception:  # backends without memory statistics raise kinds of their own
        stats = None
    if not stats or "bytes_limit" not in stats:
        return "memory unknown"
    return f"{stats.get('bytes_in_use', 0) / 2**30:.1f} of {stats['bytes_limit'] / 2**30:.1f} GiB in use"


def silent_fallback(backend: str) -> list[str]:
    """Why JAX on CPU may not be what was wanted: an accelerator's device files are here, its plugin is not used."""
    from pathlib import Path

    if backend != "cpu":
        return []
    warnings = []
    if any(Path("/dev").glob("nvidia[0-9]*")):
        warnings.append("an NVIDIA GPU is here, but JAX runs on CPU: pip install 'jaxgpt[cuda]'")
    if any(Path("/dev").glob("accel[0-9]*")) or importlib.util.find_spec("libtpu"):
        warnings.append(
            "a TPU or libtpu is here, but JAX runs on CPU: pip install 'jaxgpt[tpu]' and see JAX_PLATFORMS"
        )
    return warnings
