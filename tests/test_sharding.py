"""What the compiled train step gathers, reduces and holds shows how it is split over devices.

Equal losses prove nothing here, because a step in which every device computes the whole batch has them too.
"""

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from jaxgpt.config import GPTConfig, MeshConfig, OptimConfig
from jaxgpt.parallel import ROWS, mesh_of
from jaxgpt.text.batch import Batch
from jaxgpt.training.flops import count_parameters
from jaxgpt.training.loss import next_token_loss
from jaxgpt.training.optim import learning_rate, optimizer_of
from jaxgpt.training.state import abstract_state, compile_step, train_step, training_model

# Sizes that differ from one another, so that an axis is known by its size. B divides by 8 into 7 rows.
TOY = GPTConfig(vocab=640, context=40, layers=2, heads=4, width=64, mlp_width=96)
B, T, D, E, F, V = 56, 40, 64, 64, 96, 640
STATE = 3 * 4 * count_parameters(TOY)  # bytes: float32 parameters and two moments

COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
Shape = tuple[int, ...]


def compiled_step(config: GPTConfig, sizes: tuple[int, int, int], *, rows: int = B, **how: Any) -> Any:
    """The compiled train step on a mesh data x fsdp x tensor of these sizes."""
    data, fsdp, tensor = sizes
    mesh = mesh_of(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: math.prod(sizes)])
    accumulate, chunk = how.pop("accumulate", 1), how.pop("chunk", 0)
    model = training_model(config, mesh, **{"blocks": "scan"} | how)
    schedule = learning_rate(OptimConfig(), 100)
    optimizer = optimizer_of(OptimConfig(), schedule)
    state = abstract_state(model, optimizer, mesh)
    step = functools.partial(
        train_step,
        loss=next_token_loss(model, chunk=chunk),
        optimizer=optimizer,
        schedule=schedule,
        accumulate=accumulate,
    )
    tokens, weights = (
        jax.ShapeDtypeStruct((rows, config.context), dtype, sharding=NamedSharding(mesh, ROWS))
        for dtype in (jnp.int32, jnp.float32)
    )
    return compile_step(step, state, mesh).lower(state, Batch(tokens, tokens, weights)).compile()


def collectives(compiled: Any) -> dict[str, set[Shape]]:
    """The shapes of what each kind of collective gives, on one device."""
    found: dict[str, set[Shape]] = {}
    for result, kind in COLLECTIVE.findall(compiled.as_text()):
        shapes = (tuple(map(int, dims.split(","))) for dims in re.findall(r"\w\d+\[([\d,]+)\]", result))
        found.setdefault(kind, set()).update(shapes)
    return found


def is_among(kernel: Shape, shapes: set[Shape], shards: int = 1) -> bool:
    """Whether a kernel is there, its axes in any order, whole or split along one of them."""
    forms = [kernel] + [
        (*kernel[:axis], size // shards, *kernel[axis + 1 :]) for axis, size in enumerate(kernel)
    ]
    wanted = [sorted(form) for form in forms]
    return any(sorted(size for size in shape if size > 1) in wanted for shape in shapes)


MESHES = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (1, 1, 4), (4, 1, 2), (1, 4, 2), (2, 2, 2)]
# The others are slow tests.
FAST = [((8, 1, 1), "float32"), ((1, 8, 1), "float32"), ((2, 2, 2), "bfloat16")]


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        pytest.param(sizes, dtype, marks=[] if (sizes, dtype) in FAST else pytest.mark.slow)
        for dtype in ("float32", "bfloat16")
        for sizes in MESHES
    ],
    ids=str,
)
def test_parameters_are_gathered_gradients_reduced_and_sequences_stay(
    sizes: tuple[int, int, int], dtype: str
) -> None:
    data, fsdp, tensor = sizes
    compiled = compiled_step(dataclasses.replace(TOY, compute_dtype=dtype), sizes)
    found = collectives(compiled)
    reduced = found.get("all-reduce", set()) | found.get("reduce-scatter", set())
    kernels = {(D, 3, E // tensor), (E // tensor, D), (D, F // tensor), (F // tensor, D), (V // tensor, D)}
    if fsdp > 1:
        assert [kernel for kernel in kernels if not is_among(kernel, found["all-gather"])] == []
    if data * fsdp > 1:
        assert [kernel for kernel in kernels if not is_among(kernel, reduced, fsdp)] == []
        axes = {size for shapes in found.values() for shape in shapes for size in shape}
        assert not axes & {B, B * T}, "no device sees the sequences of all"
    if tensor > 1:
        rows = B // (data * fsdp)
        assert reduced & {(rows * T, D), (rows, T, D)}, "partial products of a device's own rows are added up"
    shards, held = fsdp * tensor, compiled.memory_analysis().argument_size_in_bytes
    assert STATE / shards < held < 1.5 * STATE / shards, "a device holds its share of the state"


ACCUMULATED = {"accumulate": 4, "rows": 4 * B}
REMADE = {"chunk": 16, "keeps": "nothing"}
UNROLLED = {"blocks": "unrolled", "accumulate": 2, "rows": 2 * B}


@pytest.mark.parametrize(
    ("how", "sizes"),
    [
        (ACCUMULATED, (4, 2, 1)),
        pytest.param(REMADE, (1, 8, 1), marks=pytest.mark.exhaustive),
        pytest.param(UNROLLED, (1, 8, 1), marks=pytest.mark.exhaustive),
        pytest.param(ACCUMULATED, (1, 8, 1), marks=pytest.mark.exhaustive),
        pytest.param(REMADE, (4, 2, 1), marks=pytest.mark.exhaustive),
        pytest.param(UNROLLED, (4, 2, 1), marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_sequences_stay_on_their_devices_however_the_step_is_computed(
    how: dict[str, Any], sizes: tuple[int, int, int]
) -> None:
    """Micro-batches are made of rows of every device's own: their ids are never sent."""
    rows = how.get("rows", B)
    compiled = compiled_step(TOY, sizes, **how)
    found = collectives(compiled)
    axes = {size for shapes in found.values() for shape in shapes for size in shape}
    assert not axes & {B, rows, B * T, rows * T}
    assert found.keys() <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert not re.search(r"= s32\[[\d,]*\d{2,}[\d,]*\]\S* (all-gather|all-to-all)", compiled.as_text())


@pytest.mark.slow
def test_a_device_needs_no_more_memory_for_activations_under_fsdp_than_under_data() -> None:
    config = dataclasses.replace(TOY, vocab=2048, width=128, mlp_width=512, context=64)
    temporaries = {
        sizes: compiled_step(config, sizes, rows=64).memory_analysis().temp_size_in_bytes
        for sizes in ((8, 1, 1), (1, 8, 1))
    }
    assert temporaries[1, 8, 1] <= temporaries[8, 1, 1]
