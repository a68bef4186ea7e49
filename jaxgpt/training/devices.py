"""The devices that a run trained on, as its log records them."""

from typing import Any, NamedTuple

from jax.sharding import Mesh

from jaxgpt.config import GPTConfig
from jaxgpt.training.flops import measured_matmul_flops, peak_flops

Rows = list[dict[str, Any]]


class Devices(NamedTuple):
    """Devices that a run trained on. A field is None where the log does not record it."""

    number: int | None = None
    kind: str | None = None
    """JAX's name for this kind of device."""

    def __str__(self) -> str:
        return "devices that were not recorded" if self.kind is None else f"{self.number} x {self.kind}"


def device_facts(mesh: Mesh, model: GPTConfig, rows: Rows) -> dict[str, Any]:
    """What the log must record about the devices of `mesh` before steps run on them.

    This is nothing where the last `rows` of the log already come from the same devices. Where no data sheet
    gives the FLOP/s of these devices, it includes the FLOP/s that a matrix product reaches here.
    """
    device = mesh.local_devices[0]
    here, so_far = Devices(mesh.size, device.device_kind), stages(rows)
    if so_far and so_far[-1][0] == here:
        return {}
    facts: dict[str, Any] = {"devices": here.number, "device_kind": here.kind}
    if peak_flops(device.device_kind, model.compute_dtype) is None:
        facts["matmul_flops"] = measured_matmul_flops(model, device, seconds=0.2)
    return facts


def stages(rows: Rows) -> list[tuple[Devices, Rows]]:
    """The rows of a log, divided at each row where the run continued on other devices."""
    found: list[tuple[Devices, Rows]] = []
    for row in rows:
        if "device_kind" in row:
            found.append((Devices(row["devices"], row["device_kind"]), []))
        elif not found:
            found.append((Devices(), []))
        found[-1][1].append(row)
    return found
