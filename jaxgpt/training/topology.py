"""Devices that are not here: slices of TPU chips and simulated CPU devices, to compile a step for, and GPUs.

A slice is named by its chips and how they lie: `v5e:2x4`, `v5p:2x2x1`; `cpu:8` are eight devices of this CPU,
and `h100:8` are eight GPUs of one machine.
"""

import importlib.util
import math
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxgpt.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Chip(NamedTuple):
    """What the maker states of a chip."""

    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes a second, between the chip and its memory."""
    links: float
    """Bytes a second that it sends to other chips of the slice, over all its links together."""
    clock: float | None
    """Cycles a second, as the peak implies it: each cell of each unit multiplies and adds at each cycle."""


# Source: Google Cloud's page on each TPU version, "system architecture", read in November 2026. The links are
# half of "bidirectional inter-chip interconnect bandwidth (per chip)".
# v5e has four units of 128 x 128, and v5p four on each of two cores. For v6e the page says two of 256 x 256,
# which would make a clock of 3.5 GHz. The compiler (libtpu 0.0.41) reckons with more: by its estimate a
# product of two matrices of 4,096 x 4,096 takes 301,616 cycles. These are 2 x 4,096^3 / 301,616 = 455,675
# operations a cycle, and two such units do 262,144. Its cycles are taken for those of twice as many units.
CHIPS = {
    "v5e": Chip(16 * 2**30, 819e9, 400e9 / 2, 197e12 / (4 * 2 * 128**2)),
    "v5p": Chip(95 * 2**30, 2765e9, 1200e9 / 2, 459e12 / (2 * 4 * 2 * 128**2)),
    "v6e": Chip(32 * 2**30, 1638e9, 800e9 / 2, 918e12 / (2 * 2 * 2 * 256**2)),
}
# Source: NVIDIA's data sheet of each GPU in its SXM form, as of November 2026. The links are half of NVLink's
# bandwidth, which counts both directions.
GPUS = {
    "a100": Chip(80e9, 2039e9, 600e9 / 2, None),  # A100 80GB
    "h100": Chip(80e9, 3350e9, 900e9 / 2, None),
    "h200": Chip(141e9, 4800e9, 900e9 / 2, None),
}
DEVICE_KINDS = {"a100": "NVIDIA A100-SXM4-80GB", "h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200"}
HOST = 8  # GPUs of one machine, which NVLink connects
SPELLED = re.compile(r"(?P<chip>cpu|" + "|".join([*CHIPS, *GPUS]) + r"):(?P<shape>[1-9]\d*(x[1-9]\d*){0,2})")
LARGEST = 4096  # devices


class Topology(NamedTuple):
    """A slice, by its chips and its shape."""

    chip: str
    shape: tuple[int, ...]

    @classmethod
    def named(cls, name: str) -> "Topology":
        """The slice of this name. Raises ConfigError for a name that says none."""
        found = SPELLED.fullmatch(name)
        shape = tuple(map(int, found["shape"].split("x"))) if found else ()
        flat = found is not None and found["chip"] not in CHIPS
        if found is None or (flat and len(shape) > 1) or math.prod(shape) > LARGEST:
            raise ConfigError(
                f"topology = {name}",
                why="it names no slice",
                fix=f"write the chip ({', '.join(CHIPS)}) and how many lie in each direction, such as "
                f"v5e:2x4 or v5p:2x2x1; or a GPU ({', '.join(GPUS)}) and how many, such as h100:8; or cpu:8",
            )
        if found["chip"] in GPUS and shape[0] > HOST:
            raise ConfigError(
                f"topology = {name}",
                why=f"what connects GPUs of several machines is not known; one has up to {HOST}",
                fix=f"plan for one machine: {found['chip']}:{HOST}",
            )
        return cls(found["chip"], shape)

    def __str__(self) -> str:
        return f"{self.chip}:{'x'.join(map(str, self.shape))}"

    @property
    def size(self) -> int:
        """The number of chips."""
        return math.prod(self.shape)

    @property
    def facts(self) -> Chip | None:
        """What the maker states of the chip; None of a CPU."""
        return (CHIPS | GPUS).get(self.chip)

    @property
    def on_paper(self) -> bool:
        """Whether there is no compiler for these chips here."""
        return self.chip in GPUS

    @property
    def device_kind(self) -> str | None:
        """What JAX calls a GPU; None of other chips, which say it themselves."""
        return DEVICE_KINDS.get(self.chip)

    def environment(self) -> dict[str, str]:
        """The variables that a process must be started with to compile for this slice.

        Raises ConfigError where the compiler for TPUs is not installed.
        """
        given = {name: value for name, value in os.environ.items() if not name.startswith("TPU_")}
        given["JAX_PLATFORMS"] = "cpu"
        if self.chip == "cpu":
            flag = f"--xla_force_host_platform_device_count={self.size}"
            return given | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}"}
        if importlib.util.find_spec("libtpu") is None:
            raise ConfigError(
                f"topology = {self}",
                why="compiling for TPUs needs their compiler, libtpu, which is not installed",
                fix="pip install 'jaxgpt[plan]', or plan for devices of this CPU: --topology cpu:8",
            )
        # What the machine of a TPU would otherwise be asked for.
        return given | {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": "v5litepod-8",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several plans at a time: there is no chip to quarrel about
        }

    def devices(self) -> "Sequence[Any]":
        """The devices, in a process that was started with `environment`."""
        import jax
        from jax.experimental import topologies

        if self.chip == "cpu":
            return jax.devices("cpu")
        return topologies.get_topology_desc(platform="tpu", topology_name=str(self)).devices
