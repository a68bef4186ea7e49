"""Placements that claim another platform than their devices have."""

from jaxgpt.parallel import Placement


class OnTpu(Placement):
    """A placement that takes its devices for TPUs."""

    platform = "tpu"


class OnGpu(Placement):
    """A placement that takes its devices for GPUs."""

    platform = "gpu"
