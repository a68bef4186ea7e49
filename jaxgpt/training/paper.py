"""What a training step needs on GPUs, at least, reckoned on paper: no compiler is asked, and nothing is run.

Parameters, moments and gradients are counted, and what the backward pass must find kept of the forward pass.
What a compiler keeps besides, and what it rounds up, is not known here.
"""

import functools
from typing import Any

from jaxgpt.config import GPTConfig, TrainConfig
from jaxgpt.training.flops import count_parameters
from jaxgpt.training.topology import Topology

# What is kept of a block for the backward pass, in arrays of [tokens, width]. Everything: Korthikanti et al.
# 2022, "Reducing Activation Recomputation in Large Transformer Models", section 4.1, 34 bytes a value in 16
# bits, without its attention scores, which a fused kernel does not keep, and without dropout's masks: 32.
# Products: what goes in, queries, keys, values, attention's result, and the results of the linear layers.
KEPT_ARRAYS = {"auto": 16.0, "all": 16.0, "products": 1 + 3 + 1 + 1 + 4 + 1.0, "nothing": 1.0}


def on_paper(recipe: TrainConfig, topology: Topology) -> dict[str, Any]:
    """The figures that `plan.compiled` gives, for chips that nothing here compiles for.

    Raises ConfigError where the recipe does not suit the slice.
    """
    facts = topology.facts
    assert facts is not None, "the maker states what a GPU has"
    mesh = recipe.mesh.over(topology.size)
    mesh.check_batch(recipe.batch)
    sizes = {"data": mesh.data, "fsdp": mesh.fsdp, "tensor": mesh.tensor}
    _check_division(recipe.model, sizes)
    needs = {"arguments": _state(recipe, sizes), "temporaries": _temporaries(recipe, sizes)}
    total = sum(needs.values())
    missing = max(total - facts.memory, 0.0)
    return {
        "device_kind": topology.device_kind,
        "platform": "gpu",
        "mesh": sizes,
        "on_paper": True,
        "compile_seconds": None,
        "memory": needs
        | {"total": total, "limit": facts.memory, "fits": False if missing else None, "missing": missing}
        | {"at_least": True},
        "collectives": _collectives(recipe, sizes),
        "cycles": None,
        "kernels": None,
        "bytes_accessed": None,
    }


def _check_division(model: GPTConfig, mesh: dict[str, int]) -> None:
    """Raises ConfigError where an axis of the mesh does not divide a parameter that it splits."""
    from jax.sharding import AbstractMesh

    from jaxgpt.parallel import shardings

    shardings(_shapes(model), AbstractMesh(tuple(mesh.values()), tuple(mesh)))


@functools.cache
def _shapes(model: GPTConfig) -> Any:
    """The shapes of the model's parameters."""
    import jax

    from jaxgpt.model.gpt import define

    return jax.eval_shape(lambda: define(model).init(jax.random.key(0)))


def _stored(model: GPTConfig) -> int:
    """The number of parameters that are stored, with the rows that pad the tables."""
    tables = 1 if model.tied_head else 2
    return count_parameters(model) + tables * (model.padded_vocab - model.vocab) * model.width


def _width(model: GPTConfig) -> int:
    """Bytes of a number in the model's computation."""
    return 2 if model.compute_dtype == "bfloat16" else 4


def _state(recipe: TrainConfig, mesh: dict[str, int]) -> float:
    """Bytes of a chip's share of the parameters, of the optimizer's moments and of averaged weights.

    Muon's matrices have one moment only; they are counted as if they had two.
    """
    mean = 2.0 if recipe.optim.moment_dtype == "bfloat16" else 4.0
    each = 4.0 + mean + 4.0 + (4.0 if recipe.optim.ema_decay else 0.0)
    return each * _stored(recipe.model) / (mesh["fsdp"] * mesh["tensor"])


def _temporaries(recipe: TrainConfig, mesh: dict[str, int]) -> float:
    """Bytes of the gradients, of what the backward pass finds kept, and of the logits and their gradient."""
    model, rows = recipe.model, recipe.batch // (mesh["data"] * mesh["fsdp"])
    sums = 2 if recipe.accumulate > 1 else 1
    gradients = 4.0 * sums * _stored(model) / (mesh["fsdp"] * mesh["tensor"])
    of_a_block = rows * model.context * model.width * _width(model) / mesh["tensor"]
    kept = model.layers * KEPT_ARRAYS[recipe.backward_keeps] * of_a_block
    positions = min(recipe.loss_chunk or model.context, model.context)
    logits = 2 * 4.0 * rows * positions * model.padded_vocab / mesh["tensor"]
    return gradients + kept + logits


def _collectives(recipe: TrainConfig, mesh: dict[str, int]) -> list[dict[str, Any]]:
    """What a chip sends in a step, by the theory of a ring: gradients, gathered parameters, activations."""
    model, data, fsdp, tensor = recipe.model, mesh["data"], mesh["fsdp"], mesh["tensor"]
    arrays = float(_width(model) * _stored(model)) / tensor
    tokens = recipe.batch // (data * fsdp) * model.context
    each = [
        ("all-reduce", "data", 1, 2 * arrays / fsdp * (data - 1) / data),
        ("all-gather", "fsdp", 2, 2 * arrays * (fsdp - 1) / fsdp),  # forward, and again backward
        ("reduce-scatter", "fsdp", 1, arrays * (fsdp - 1) / fsdp),
        # After attention and after the MLP, forward and backward (Shoeybi et al. 2019, section 3).
        (
            *("all-reduce", "tensor", 4 * model.layers),
            4 * model.layers * 2.0 * tokens * model.width * _width(model) * (tensor - 1) / tensor,
        ),
    ]
    return [
        {"kind": kind, "axes": axes, "number": number * recipe.accumulate, "sent": sent * recipe.accumulate}
        for kind, axes, number, sent in each
        if mesh[axes] > 1
    ]
