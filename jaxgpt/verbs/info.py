"""`jaxgpt info`: facts about this machine and installation. With --check it examines them too."""

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxgpt.files import write_atomically

if TYPE_CHECKING:
    import jax

    from jaxgpt.doctor.check import Check

PACKAGES = ("jaxgpt", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tiktoken", "numpy")


@dataclass(frozen=True, kw_only=True)
class InfoArgs:
    """Print versions, backend, devices, data type and memory, and warn about an accelerator that is not used.

    With --check it examines the installation and the machine too. For each thing that is wrong, it prints the
    command that mends it. It then exits with 2 if anything is wrong, and with 0 if nothing is.
    """

    check: bool = False
    """Check computed results, versions of packages, use of accelerators, fused attention, memory and disk.
    For each thing that is wrong, the line that mends it is printed."""
    json: Path | None = None
    """Write what was found to this file too."""


def run(args: InfoArgs) -> None:
    """Print facts to stdout and findings to stderr. Raises ConfigError when --check finds anything wrong."""
    import jax
    from rich.console import Console

    from jaxgpt.doctor.machine import check_accelerators
    from jaxgpt.errors import ConfigError

    devices = _devices()
    facts = _facts(devices)
    _print(facts)
    accelerators = check_accelerators(jax.default_backend(), os.environ.get("JAX_PLATFORMS"))
    checks = [accelerators, *_further_checks(devices)] if args.check else []
    _print([(check.name, check.result) for check in checks])
    found = [finding for check in checks or [accelerators] for finding in check.findings]
    for finding in found:
        told = f"{'wrong' if args.check else 'warning'}: {finding.what}\n  to mend it: {finding.fix}"
        Console(stderr=True).print(told, style="yellow", soft_wrap=True, markup=False, highlight=False)
    if args.json:
        _write(args.json, facts, checks)
    if args.check and found:
        are = "thing is" if len(found) == 1 else "things are"
        raise ConfigError(
            f"{len(found)} {are} wrong with this installation or machine",
            why="each is named above, with the line that mends it",
            fix="run these lines, then jaxgpt info --check again",
        )


def _devices() -> list["jax.Device"]:
    """This process's devices. Raises ConfigError when JAX does not start."""
    import jax

    from jaxgpt.errors import ConfigError

    try:
        devices: list[jax.Device] = jax.local_devices()
    except (AssertionError, RuntimeError) as error:  # JAX raises these for a platform without a plugin
        raise ConfigError(
            f"JAX does not start (JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')})",
            why=str(error).splitlines()[0] if str(error) else "it has no such platform here",
            fix="install its plugin (pip install 'jaxgpt[cuda13]', cuda12 or tpu), or unset JAX_PLATFORMS",
        ) from error
    return devices


def _further_checks(devices: list["jax.Device"]) -> list["Check"]:
    from jaxgpt.doctor.compiler import check_attention, check_results
    from jaxgpt.doctor.machine import check_disk, check_memory
    from jaxgpt.doctor.packages import check_packages

    return [
        check_packages(),
        check_results(devices[0]),
        check_attention(devices[0]),
        check_memory(devices),
        check_disk(Path.cwd()),
    ]


def _facts(devices: list["jax.Device"]) -> list[tuple[str, str]]:
    """The facts that a bug report needs, each a name and a text."""
    import jax

    from jaxgpt.doctor.packages import version_of
    from jaxgpt.training.flops import peak_flops

    facts = [("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    facts += [(name, version_of(name) or "not installed") for name in PACKAGES]
    facts.append(("backend", jax.default_backend()))
    facts.append(("processes", f"{jax.process_count()}, this is number {jax.process_index()}"))
    for device in devices:
        peak = peak_flops(device.device_kind)
        flops = f"{peak / 1e12:.0f} TFLOP/s in bfloat16" if peak else "peak unknown"
        facts.append((f"device {device.id}", f"{device.device_kind}, {flops}, {_memory(device)}"))
    usual = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    facts.append(
        ("compute dtype", f"float32 unless set; {usual} is the usual choice here (--model.compute-dtype)")
    )
    return facts


def _memory(device: "jax.Device") -> str:
    from jaxgpt.doctor.machine import memory_of

    if (room := memory_of(device)) is None:
        return "memory unknown"
    used, limit = room
    return f"{used / 2**30:.1f} of {limit / 2**30:.1f} GiB in use"


def _print(rows: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _write(path: Path, facts: list[tuple[str, str]], checks: list["Check"]) -> None:
    found: dict[str, Any] = {"facts": dict(facts)}
    found["checks"] = [
        {
            "name": check.name,
            "result": check.result,
            "findings": [finding._asdict() for finding in check.findings],
        }
        for check in checks
    ]
    write_atomically(path, (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode())
