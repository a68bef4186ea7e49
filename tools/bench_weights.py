"""Measures the time and the memory of reading and converting weights, each in a process of its own.

    python tools/bench_weights.py sizes --preset gpt2-xl --folder /tmp/xl
        writes a random model of that shape as safetensors, converts it to every format that can hold it, and
        reads it onto a mesh of 8 CPU devices. It prints the seconds and the peak memory of each, also as a
        share of the file's size.
    python tools/bench_weights.py torch --folder /tmp/124m --torch-python /tmp/torch-env/bin/python
        reads the same .safetensors and .bin files with jaxgpt and with torch, safetensors and transformers,
        in turn. Those are not dependencies of jaxgpt and live in another environment.

Every reader also sums all its numbers, because the parts of a mapped file are read only when they are used.
Peak memory is the operating system's maximum resident set, which includes the pages of mapped files.
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
SUM = "; [tensor.sum() for tensor in tensors.values()]"
TORCH_LOAD = "import sys, torch; tensors = torch.load(sys.argv[1], weights_only=True)" + SUM
SAFETENSORS_LOAD = "import sys, torch, safetensors.torch as s; tensors = s.load_file(sys.argv[1])" + SUM
TRANSFORMERS_LOAD = (
    "import sys; from transformers import GPT2LMHeadModel as G; "
    "tensors = G.from_pretrained(sys.argv[1]).state_dict()" + SUM
)
TO_BIN = (
    "import sys, torch, safetensors.torch as s; t = s.load_file(sys.argv[1]); "
    "t['lm_head.weight'] = t['transformer.wte.weight']; torch.save(t, sys.argv[2])"
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Measure converting a random model to every format, and reading it onto 8 devices."""

    folder: Path
    """Folder for the files. About five times the size of the model is written there and removed again."""
    preset: str = "gpt2-xl"
    """Preset that gives the shape of the model."""


@dataclass(frozen=True, kw_only=True)
class Torch:
    """Measure reading .safetensors and .bin, and compare with torch, safetensors and transformers."""

    folder: Path
    """Folder for the files."""
    torch_python: Path
    """Python of an environment that has torch, safetensors and transformers."""
    preset: str = "gpt2"
    """Preset that gives the shape of the model."""
    repeat: int = 5
    """Number of runs of each reader, in turn."""


def random_model(preset: str) -> StoredModel:
    """Return a model of a preset's shape, whose numbers are drawn when they are read."""
    config = load_recipe(preset).model

    def tensor(number: int, shape: tuple[int, ...]) -> Tensor:
        def read() -> np.ndarray:
            return np.random.default_rng(number).standard_normal(shape, np.float32) * np.float32(0.02)

        return Tensor(shape, DTYPES["float32"], read)

    return StoredModel(config, {place.name: tensor(n, place.shape) for n, place in enumerate(places(config))})


def measured(command: list[str], **environment: str) -> tuple[float, int]:
    """Return the seconds and the peak resident bytes of a process, which must succeed."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | environment)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(command)}: ended with status {status}")
    return seconds, usage.ru_maxrss * 1024


def sizes(args: Sizes) -> None:
    """Print a line of JSON for each measurement."""
    source = args.folder / "huggingface"
    if not source.exists():
        write_model(random_model(args.preset), source, "huggingface")
    size = (source / "model.safetensors").stat().st_size
    convert = [sys.executable, "-m", "jaxgpt", "convert"]
    jobs = {
        f"to {to}": [*convert, str(source), str(args.folder / to), "--to", to]
        for to in ("jaxgpt", "nanogpt", "llmc")
    }
    jobs["to huggingface"] = [*convert, str(args.folder / "jaxgpt"), str(args.folder / "again")]
    jobs["onto 8 devices"] = [sys.executable, "-c", LOAD, str(source)]
    for name, command in jobs.items():
        flags = "--xla_force_host_platform_device_count=8" if "devices" in name else ""
        seconds, peak = measured(command, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
        figures = {
            "job": name,
            "seconds": round(seconds, 1),
            "file_bytes": size,
            "peak_bytes": peak,
            "peak_over_file": round(peak / size, 3),
        }
        print(json.dumps(figures), flush=True)
        if name in ("to nanogpt", "to llmc"):
            shutil.rmtree(args.folder / name.removeprefix("to "))


def torch(args: Torch) -> None:
    """Print a line of JSON for each reader: the medians of its seconds and of its peak memory."""
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
        figures = {"reader": name, "seconds": round(seconds, 2), "peak_mib": round(peak / 2**20)}
        print(json.dumps(figures), flush=True)


def main() -> None:
    """Run the measurement that the command line asks for."""
    kinds = Annotated[Sizes, tyro.conf.subcommand("sizes")] | Annotated[Torch, tyro.conf.subcommand("torch")]
    command: Sizes | Torch = tyro.cli(kinds)
    sizes(command) if isinstance(command, Sizes) else torch(command)


if __name__ == "__main__":
    main()
