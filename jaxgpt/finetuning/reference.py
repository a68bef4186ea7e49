"""The reference of preference tuning: how probable the answers were before the model was tuned, in a file.

It is measured once, with the parameters that a run begins with. The run keeps the numbers and needs no second
model, neither beside the one that trains nor when it is resumed.
"""

import functools
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxgpt import hosts
from jaxgpt.errors import DataError, MissingError, unreadable
from jaxgpt.files import write_atomically
from jaxgpt.finetuning.dialogue_batches import OrderedRows
from jaxgpt.finetuning.preference_batches import PairRows
from jaxgpt.finetuning.preference_loss import LogProbabilities
from jaxgpt.model.gpt import Params
from jaxgpt.parallel import P, place_rows

REFERENCE_FILE = "reference.npz"


def measured(
    log_probabilities: LogProbabilities,
    params: Params,
    parts: Mapping[str, PairRows],
    *,
    mesh: Mesh,
    sequences: int,
    between: Callable[[int, int], None],
) -> dict[str, np.ndarray]:
    """The log-probabilities of all pairs of each part of the data, float32 [pairs, 2], in nats.

    `between` is called before the first batch, which compiles, and after each.
    """
    everywhere = NamedSharding(mesh, P())
    jitted = jax.jit(lambda params, batch: log_probabilities(params, batch, None), out_shardings=everywhere)
    batches_of = {name: OrderedRows(rows, sequences=sequences) for name, rows in parts.items()}
    found: dict[str, list[np.ndarray]] = {name: [] for name in parts}
    places = [(name, number) for name, batches in batches_of.items() for number in range(len(batches))]
    for done, (name, number) in enumerate(places):
        between(done, len(places))
        read = functools.partial(batches_of[name].rows, number)
        found[name].append(np.asarray(jitted(params, place_rows(read, sequences, mesh))))
    between(len(places), len(places))
    return {
        name: np.concatenate([np.zeros((0, 2), np.float32), *found[name]])[: len(parts[name])]
        for name in parts
    }


def keep(folder: Path, parts: Mapping[str, np.ndarray]) -> None:
    """Write the log-probabilities of each part of the data. Raises StorageError when writing fails."""
    content = io.BytesIO()
    np.savez(content, **{name: np.asarray(numbers) for name, numbers in parts.items()}, allow_pickle=False)
    hosts.decide(lambda: write_atomically(folder / REFERENCE_FILE, content.getvalue()))


def kept(folder: Path, part: str, count: int) -> np.ndarray:
    """The log-probabilities of a part of the data that has `count` pairs, float32 [count, 2].

    Raises MissingError where the file is not there, DataError where it is damaged, and StorageError where it
    cannot be read.
    """
    path, lost = folder / REFERENCE_FILE, "the run has lost its reference"
    fix = "put the file back, or begin again in another --out-dir"
    if not path.is_file():
        raise MissingError(lost, path=path, why="the file is not there", fix=fix)
    try:
        found: np.ndarray = np.load(io.BytesIO(path.read_bytes()))[part]
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # a damaged zip file has many ways to fail
        raise DataError(
            lost, path=path, why=f"{type(error).__name__}: {str(error)[:200]}", fix=fix
        ) from error
    if found.shape != (count, 2) or not np.isfinite(found).all():
        why = f"{part} does not hold two numbers for each of {count:,} pairs"
        raise DataError(lost, path=path, why=why, fix=fix)
    return found
