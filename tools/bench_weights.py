"""Time and memory of reading and converting weights, each measurement in a process of its own.

    python tools/bench_weights.py sizes --preset gpt2-xl --folder /tmp/xl
        writes a random model of that shape as safetensors, converts it to every format that can hold it and reads it
        onto a mesh of 8 CPU devices: seconds and peak memory of each, also as a share of the file's size.
    python tools/bench_weights.py torch --preset gpt2 --folder /tmp/124m --torch-python /tmp/torch-env/bin/python
        reads the same .safetensors and .bin once with jaxgpt and once with torch, safetensors and transformers
        (which live in another environment: they are not dependencies), five times in turn.

Every reader also sums all its numbers: a mapped file is read only where it is used. Peak memory is the operating
system's maximum resident set, pages of mapped files included.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jaxgpt.config import load_recipe
from jaxgpt.weights.convert import write_model
from jaxgpt.weights.names import places
from jaxgpt.weights.tensors import DTYPES, StoredModel, Tensor

LOAD = """
import sys, jax, jaxgpt
from jaxgpt.config import MeshConfig
from jaxgpt.parallel import mesh_of
mesh = mesh_of(MeshConfig(data=1, fsdp=len(jax.devices())))
params = jaxgpt.load(sys.argv[1], mesh=mesh).params
import numpy as np
for leaf in jax.tree.leaves(params):
    [np.asarray(shard.data).sum() for shard in leaf.addressable_shards]
"""
SUM = (
    "; [tensor.sum() for tensor in tensors.values()]"  # a mapped file is not read before its numbers are used
)
TORCH_LOAD = "import sys, torch; tensors = torch.load(sys.argv[1], weights_only=True)" + SUM
SAFETENSORS_LOAD = "import sys, torch, safetensors.torch as s; tensors = s.load_file(sys.argv[1])" + SUM
TRANSFORMERS_LOAD = (
    "import sys; from transformers import GPT2LMHeadModel as G; tensors = G.from_pretrained(sys.argv[1]).state_dict()"
    + SUM
)
TO_BIN = (
    "import sys, torch, safetensors.torch as s; t = s.load_file(sys.argv[1]); "
    "t['lm_head.weight'] = t['transformer.wte.weight']; torch.save(t, sys.argv[2])"
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Seconds and peak memory of converting a random model to every format and of reading it onto 8 devices."""

    folder: Path
    """Where the files go; about five times the model's size is written and removed."""
    preset: str = "gpt2-xl"
    """The shape."""


@dataclass(frozen=True, kw_only=True)
class Torch:
    """Seconds and peak memory of reading .safetensors and .bin, against torch, safetensors and transformers."""

    folder: Path
    """Where the files go."""
    torch_python: Path
    """The interpreter of an environment with torch, safetensors and transformers."""
    preset: str = "gpt2"
    """The shape."""
    repeat: int = 5
    """Runs of each, in turn."""


def random_model(preset: str) -> StoredModel:
    """A model of a preset's shape whose numbers are drawn when they are read."""
    config = load_recipe(preset).model

    def tensor(number: int, shape: tuple[int, ...]) -> Tensor:
        def read() -> np.ndarray:
            return np.random.default_rng(number).standard_normal(shape, np.float32) * np.float32(0.02)

        return Tensor(shape, DTYPES["float32"], read)

    return StoredModel(config, {place.name: tensor(n, place.shape) for n, place in enumerate(places(config))})


def measured(command: list[str], **environment: str) -> tuple[float, int]:
    """Seconds and peak resident bytes of a process that must succeed."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | environment)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(command)}: status {status}")
    return seconds, usage.ru_maxrss * 1024


def sizes(args: Sizes) -> None:
    """Print a JSON line a measurement."""
    source = args.folder / "huggingface"
    if not source.exists():
        write_model(random_model(args.preset), source, "huggingface")
    size = (source / "model.safetensors").stat().st_size
    jobs = {
        f"to {to}": [
            sys.executable,
            "-m",
            "jaxgpt",
            "convert",
            str(source),
            str(args.folder / to),
            "--to",
            to,
        ]
        for to in ("jaxgpt", "nanogpt", "llmc")
    }
    jobs["to huggingface"] = [*jobs["to jaxgpt"][:4], str(args.folder / "jaxgpt"), str(args.folder / "again")]
    jobs["onto 8 devices"] = [sys.executable, "-c", LOAD, str(source)]
    for name, command in jobs.items():
        flags = "--xla_force_host_platform_device_count=8" if "devices" in name else ""
        seconds, peak = measured(command, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
        print(
            json.dumps(
                {
                    "job": name,
                    "seconds": round(seconds, 1),
                    "file_bytes": size,
                    "peak_bytes": peak,
                    "peak_over_file": round(peak / size, 3),
                }
            ),
            flush=True,
        )
        if name == "to nanogpt" or name == "to llmc":
            shutil.rmtree(args.folder / name.removeprefix("to "))


def torch(args: Torch) -> None:
    """Print a JSON line a reader: medians of seconds and peak memory."""
    source, pickled = args.folder / "safetensors", args.folder / "bin"
    if not source.exists():
        write_model(random_model(args.preset), source, "huggingface")
    theirs, weights = str(args.torch_python), source / "model.safetensors"
    if not pickled.exists():
        pickled.mkdir()
        shutil.copy(source / "config.json", pickled)
        measured([theirs, "-c", TO_BIN, str(weights), str(pickled / "pytorch_model.bin")])
    jobs = {
        "safetensors, jaxgpt.load": [sys.executable, "-c", LOAD, str(source)],
        "safetensors, safetensors.torch.load_file": [theirs, "-c", SAFETENSORS_LOAD, str(weights)],
        "safetensors, transformers": [theirs, "-c", TRANSFORMERS_LOAD, str(source)],
        "bin, jaxgpt.load": [sys.executable, "-c", LOAD, str(pickled)],
        "bin, torch.load": [theirs, "-c", TORCH_LOAD, str(pickled / "pytorch_model.bin")],
        "bin, transformers": [theirs, "-c", TRANSFORMERS_LOAD, str(pickled)],
    }
    runs: dict[str, list[tuple[float, int]]] = {name: [] for name in jobs}
    for _ in range(args.repeat):
        for name, command in jobs.items():
            runs[name].append(measured(command, JAX_PLATFORMS="cpu"))
    for name, pairs in runs.items():
        seconds, peak = (statistics.median(values) for values in zip(*pairs, strict=True))
        print(
            json.dumps({"reader": name, "seconds": round(seconds, 2), "peak_mib": round(peak / 2**20)}),
            flush=True,
        )


def main() -> None:
    command = tyro.cli(
        Annotated[Sizes, tyro.conf.subcommand("sizes")] | Annotated[Torch, tyro.conf.subcommand("torch")]  # type: ignore
    )
    sizes(command) if isinstance(command, Sizes) else torch(command)


if __name__ == "__main__":
    main()
