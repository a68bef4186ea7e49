"""Checks of the machine: accelerators that JAX does not use, free memory, free disk space."""

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxgpt.doctor.check import Check, Finding
from jaxgpt.doctor.packages import version_of

if TYPE_CHECKING:
    import jax

DEVICES = Path("/dev")
PCI_DEVICES = Path("/sys/bus/pci/devices")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
MEMORY = Path("/proc/meminfo")
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")  # the limit of a container

GOOGLE = "0x1ae0"  # the vendor number of TPUs on the PCI bus
# The oldest driver for CUDA 13 (NVIDIA's release notes of CUDA 13.0). CUDA 12 works with older ones.
CUDA13_DRIVER = 580
# In bytes. The parameters of GPT-2 124M, their gradients and AdamW's two moments take 0.5 GB each.
LEAST_MEMORY = 2e9
# In bytes. Three checkpoints of GPT-2 124M take 1.5 GB each: two are kept while a third is written.
LEAST_DISK = 5e9
WHY_NOT = "-c 'import jax; jax.devices()'   # says why JAX does not use it"


def check_accelerators(platform: str, asked: str | None) -> Check:
    """Look for a GPU or TPU that JAX does not use.

    `platform` is what JAX runs on, and `asked` is the value of JAX_PLATFORMS. There is no finding where
    JAX_PLATFORMS asks for the CPU, because JAX then runs on CPU on purpose.
    """
    if platform != "cpu":
        return Check("accelerators", f"JAX runs on {platform}", [])
    if asked and asked.split(",")[0] == "cpu":
        return Check("accelerators", f"JAX runs on CPU, as JAX_PLATFORMS={asked} asks", [])
    findings = [*_unused_gpu(), *_unused_tpu()]
    return Check(
        "accelerators", f"JAX runs on CPU{'' if findings else ', and no accelerator is here'}", findings
    )


def _unused_gpu() -> Iterator[Finding]:
    if not (
        any(DEVICES.glob("nvidia[0-9]*")) or (DEVICES / "dxg").exists()
    ):  # dxg: a GPU under WSL on Windows
        return
    installed = [name for name in ("jax-cuda12-plugin", "jax-cuda13-plugin") if version_of(name)]
    driver = _driver()
    extra = "cuda12" if driver and driver < CUDA13_DRIVER else "cuda13"
    if not installed:
        yield Finding(
            "an NVIDIA GPU is here, but JAX runs on CPU because its CUDA plugin is not installed",
            f"pip install 'jaxgpt[{extra}]'",
        )
    elif installed == ["jax-cuda13-plugin"] and extra == "cuda12":
        yield Finding(
            f"an NVIDIA GPU is here, but JAX runs on CPU: its driver {driver} is too old for CUDA 13",
            "pip uninstall -y jax-cuda13-plugin jax-cuda13-pjrt && pip install 'jaxgpt[cuda12]'",
        )
    else:
        yield Finding(
            f"an NVIDIA GPU and {installed[-1]} are here, but JAX runs on CPU",
            f"JAX_PLATFORMS=cuda python {WHY_NOT}",
        )


def _driver() -> int | None:
    """The major version of the NVIDIA driver; None where it is not known."""
    try:
        found = re.search(r"Module .*?(\d+)\.\d+", NVIDIA_DRIVER.read_text())
    except OSError:
        return None
    return int(found[1]) if found else None


def _unused_tpu() -> Iterator[Finding]:
    here, libtpu = _tpu_is_here(), version_of("libtpu")
    if version_of("tensorflow-tpu"):
        yield Finding(
            "tensorflow-tpu is installed beside JAX and keeps it from the TPU (jax issue 29989)",
            "pip uninstall -y tensorflow-tpu && pip install --force-reinstall 'jaxgpt[tpu]'",
        )
    elif here and not libtpu:
        yield Finding(
            "a TPU is here, but JAX runs on CPU because libtpu is not installed", "pip install 'jaxgpt[tpu]'"
        )
    elif here:
        yield Finding(
            f"a TPU and libtpu {libtpu} are here, but JAX runs on CPU; another process may hold the TPU",
            f"JAX_PLATFORMS=tpu python {WHY_NOT}",
        )
    elif libtpu:
        yield Finding(
            f"libtpu {libtpu} is installed, but JAX runs on CPU and no TPU is to be seen",
            f"JAX_PLATFORMS=tpu python {WHY_NOT}; without a TPU: export JAX_PLATFORMS=cpu",
        )


def _tpu_is_here() -> bool:
    """Whether the machine has a TPU: its own device file, or a VFIO device beside a PCI device by Google."""
    if any(DEVICES.glob("accel[0-9]*")):
        return True
    vendors = (path.read_text().strip() for path in PCI_DEVICES.glob("*/vendor"))
    return any(DEVICES.glob("vfio/[0-9]*")) and GOOGLE in vendors


def check_memory(devices: Sequence["jax.Device"]) -> Check:
    """Look at the memory that is free on the host and on each accelerator."""
    free = {"the host": host_memory()}
    for device in devices:
        if room := memory_of(device):
            used, limit = room
            free[f"device {device.id}"] = limit - used
    findings = [
        Finding(
            f"{name} has {amount / 1e9:.1f} GB of memory free: too little to train GPT-2 124M",
            "end other programs there (see top or nvidia-smi), or train a small model: jaxgpt pretrain nano",
        )
        for name, amount in free.items()
        if amount is not None and amount < LEAST_MEMORY
    ]
    told = [
        f"{name} has {'an unknown amount' if amount is None else f'{amount / 1e9:.1f} GB'} free"
        for name, amount in free.items()
    ]
    return Check("memory", ", ".join(told), findings)


def host_memory() -> int | None:
    """Bytes of memory that a new program can use, within a container's limit; None where unknown."""
    try:
        available = re.search(r"MemAvailable:\s+(\d+) kB", MEMORY.read_text())
    except OSError:
        return None
    if available is None:
        return None
    try:
        limit = MEMORY_LIMIT.read_text().strip()
    except OSError:
        limit = "max"
    free = int(available[1]) * 1024
    return min(free, int(limit)) if limit.isdecimal() else free


def memory_of(device: "jax.Device") -> tuple[int, int] | None:
    """The bytes in use on a device, and all bytes that JAX may use; None where the backend does not say."""
    try:
        stats = device.memory_stats()
    except Exception:  # noqa: BLE001  Backends without memory statistics raise kinds of their own.
        stats = None
    if not stats or "bytes_limit" not in stats:
        return None
    return stats.get("bytes_in_use", 0), stats["bytes_limit"]


def check_disk(folder: Path) -> Check:
    """Look at the free disk space in the folder for run directories."""
    free = shutil.disk_usage(folder).free
    findings = []
    if free < LEAST_DISK:
        findings.append(
            Finding(
                f"{folder} has {free / 1e9:.1f} GB of disk free: too little for checkpoints of GPT-2 124M",
                "delete files, or name a folder on another disk: jaxgpt pretrain ... --out-dir /disk/run",
            )
        )
    return Check("disk", f"{free / 1e9:.1f} GB free in {folder}", findings)
