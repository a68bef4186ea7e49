"""AdamW and Muon, their learning rate schedules, and a moving average of the weights."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax import Array

from jaxgpt.config import OptimConfig
from jaxgpt.parallel import path_of

# Both are chosen by name and not by rank: the blocks are stacked, so that a bias has rank 2 like a matrix.
MUONS = r"h/.*/kernel"  # the parameters that Muon updates, where it is asked for
ADAMS_RMS = 0.2  # the root mean square that an update of AdamW usually has, before the learning rate
DECAYED = ("kernel", "embedding", "lora_A", "lora_B")


def learning_rate(config: OptimConfig, steps: int) -> Callable[[Array], Array]:
    """The schedule: a function from the step, counted from 0, to the learning rate.

    The rate first rises linearly. With `initial_fraction` it begins with that share of its peak, and the step
    after the warm-up has the peak, as with PyTorch's LinearLR and in the book's appendix D. Then `cosine`
    (Loshchilov & Hutter 2017, SGDR, equation 5) and `linear` let it fall at once, and `constant` keeps it.
    `wsd` (warm-up, stable, decay: Hu et al. 2024, MiniCPM, section 4.2) keeps it too, and lets it fall
    linearly at the end. A rate that falls reaches `final_fraction` of its peak at the last of `steps`.
    """
    last = steps - 1
    decay_start = {"wsd": last - round(config.decay_fraction * steps)}.get(
        config.schedule, config.warmup_steps
    )
    decay_start = max(decay_start, config.warmup_steps)

    def rate(step: Array) -> Array:
        done = jnp.clip((step - decay_start) / max(last - decay_start, 1), 0, 1)
        if config.schedule == "constant":
            shape: Array | float = 1.0
        elif config.schedule == "cosine":
            shape = 0.5 * (1 + jnp.cos(jnp.pi * done))
        else:
            shape = 1 - done
        decayed = config.final_fraction + (1 - config.final_fraction) * shape
        return config.learning_rate * _warm_up(config, step) * decayed

    return rate


def _warm_up(config: OptimConfig, step: Array) -> Array:
    """The share of its peak that the rate has risen to, before it falls."""
    length, start = max(config.warmup_steps, 1), config.initial_fraction
    if start is None:
        return jnp.minimum((step + 1) / length, 1)
    return jnp.where(step < config.warmup_steps, start + (1 - start) * step / length, 1)


def decay_mask(params: Any) -> Any:
    """True for the leaves that weight decay applies to: matrices, embeddings and adapters."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path_of(path).rpartition("/")[2] in DECAYED, params
    )


def optimizer_of(config: OptimConfig, schedule: Callable[[Array], Array]) -> optax.GradientTransformation:
    """Gradient clipping, then AdamW (Loshchilov & Hutter 2019) or Muon, then an average of the weights.

    Gradients are clipped by their global norm. Weight decay applies as `decay_mask` says, or with `decay_all`
    to everything. Clipping and the average are left out where the settings for them are 0.
    """
    adamw = optax.adamw(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        mu_dtype=config.moment_dtype,
        weight_decay=config.weight_decay,
        mask=None if config.decay_all else decay_mask,
    )
    if config.optimizer == "muon":
        adamw = optax.partition({"muon": _muon(config, schedule), "adamw": adamw}, _kinds)
    return optax.chain(
        _clipping(config), adamw, track_average(config.ema_decay) if config.ema_decay else optax.identity()
    )


def _muon(config: OptimConfig, schedule: Callable[[Array], Array]) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the kernels of the blocks: the running mean of the gradients, made
    orthogonal.

    An update is scaled as in Liu et al. 2025 (Muon is Scalable for LLM Training, equation 4), so that AdamW's
    learning rate and weight decay suit it.
    """
    return optax.chain(
        optax.contrib.scale_by_muon(
            beta=config.momentum, mu_dtype=config.moment_dtype, weight_dimension_numbers=_matrices
        ),
        optax.stateless(lambda updates, _: jax.tree.map(_as_large_as_adams, updates)),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(schedule),
    )


def _kinds(params: Any) -> Any:
    """Which optimizer each leaf has where the blocks have Muon."""

    def kind(path: Any, _: Any) -> str:
        return "muon" if re.fullmatch(MUONS, path_of(path)) else "adamw"

    return jax.tree_util.tree_map_with_path(kind, params)


def _matrices(kernels: Any) -> Any:
    """The axes of each kernel that are a matrix, in and out.

    Layers are matrices of their own, and so are queries, keys and values.
    """
    return jax.tree.map(
        lambda kernel: optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=kernel.ndim - 1),
        kernels,
    )


def _as_large_as_adams(update: Array) -> Array:
    """An orthogonal update with the root mean square that AdamW's usually has."""
    return ADAMS_RMS * math.sqrt(max(update.shape[1], update.shape[-1])) * update


def _clipping(config: OptimConfig) -> optax.GradientTransformation:
    """The clipping of gradients, which begins after `clip_after` steps."""
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    if not config.clip_after:
        return clip
    return optax.conditionally_transform(clip, lambda step: step >= config.clip_after)


class AverageState(NamedTuple):
    """An exponential moving average of the parameters, a tree like theirs."""

    average: Any


def track_average(decay: float) -> optax.GradientTransformation:
    """Keep an exponential moving average of the parameters, which begins with the initial ones.

    At each step, average = decay * average + (1 - decay) * new parameters. The updates are not changed. This
    must be the last transformation in a chain, because it adds the updates it receives to the parameters.
    """

    def update(updates: Any, state: AverageState, params: Any = None) -> tuple[Any, AverageState]:
        new = optax.apply_updates(params, updates)
        return updates, AverageState(optax.incremental_update(new, state.average, 1 - decay))

    return optax.GradientTransformation(lambda params: AverageState(jax.tree.map(jnp.copy, params)), update)


def averaged(opt_state: Any) -> Any | None:
    """The moving average of the weights in an optimizer state; None where it keeps no average."""
    found = [leaf for leaf in jax.tree.leaves(opt_state, is_leaf=_is_average) if _is_average(leaf)]
    return found[0].average if found else None


def _is_average(node: Any) -> bool:
    return isinstance(node, AverageState)
