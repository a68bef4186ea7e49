"""The loss of a language model: cross-entropy of the next token, in nats.

A loss is a function `loss(params, batch, key) -> (sum, weight, metrics)`. It returns the weighted sum over
the batch's predictions, the sum of their weights, and further weighted sums by name. These are sums and not
means, so that the results of micro-batches can be added up. The mean is the sum divided by the weight.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jaxgpt.model.gpt import Model, Params
from jaxgpt.model.seq2seq import Seq2Seq
from jaxgpt.text.batch import Batch
from jaxgpt.text.sequences import Pairs

Loss = Callable[[Params, Any, Array | None], tuple[Array, Array, dict[str, Array]]]
Losses = Callable[[Params, Any, Array | None], Array]
"""`losses(params, batch, key)` is the loss of each prediction: [B, T] of tokens, or [B] of whole texts."""

NORMALISER = "normaliser"  # what softmax divides by, and the logit that it subtracts before


@jax.custom_vjp
def cross_entropy(logits_V: Array, targets: Array) -> Array:
    """-log softmax(logits)[target] in nats, of shape [...], from float32 logits [..., V] and ids [...].

    The gradient, softmax(logits) - onehot(target), is made in one pass over the logits, from the largest one
    and the sum of exponentials, which the forward pass keeps. JAX's own adds up two arrays of that size.
    """
    return _cross_entropy_forward(logits_V, targets)[0]


def _cross_entropy_forward(logits_V: Array, targets: Array) -> tuple[Array, tuple[Array, ...]]:
    chosen = jnp.take_along_axis(logits_V, targets[..., None], axis=-1)[..., 0]
    largest = checkpoint_name(jnp.max(logits_V, axis=-1), NORMALISER)
    total = checkpoint_name(jnp.sum(jnp.exp(logits_V - largest[..., None]), axis=-1), NORMALISER)
    return jnp.log(total) + (largest - chosen), (logits_V, targets, largest, total)


def _cross_entropy_backward(kept: tuple[Array, ...], grad: Array) -> tuple[Array, None]:
    logits_V, targets, largest, total = kept
    ids_V = jax.lax.broadcasted_iota(targets.dtype, logits_V.shape, logits_V.ndim - 1)
    softmax_V = jnp.exp(logits_V - largest[..., None]) * (grad / total)[..., None]
    return jnp.where(ids_V == targets[..., None], softmax_V - grad[..., None], softmax_V), None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def next_token_loss(model: Model, *, chunk: int = 0) -> Loss:
    """The training loss of a language model.

    With `chunk`, the logits of only that many positions of each sequence exist at one time: [B, chunk, V]
    floats rather than [B, T, V]. The backward pass computes the logits again.
    """

    def loss(params: Params, batch: Batch, key: Array | None) -> tuple[Array, Array, dict[str, Array]]:
        total = summed_cross_entropy(model, params, batch, key, chunk=chunk, axis=None)
        return total, jnp.sum(batch.weights_BT), {}

    return loss


def summed_cross_entropy(
    model: Model, params: Params, batch: Batch, key: Array | None, *, chunk: int, axis: int | None
) -> Array:
    """The weighted cross-entropies of a batch's targets, in nats, added up.

    An `axis` of None gives one sum, and 1 gives the sum of each sequence, [B], which is the negative
    log-probability of its targets. `chunk` is that of `next_token_loss`.
    """
    x_BTD, _ = model.hidden(
        params, batch.inputs_BT, positions_BT=batch.positions_BT, segments_BT=batch.segments_BT, key=key
    )

    def summed(x_BTD: Array, targets_BT: Array, weights_BT: Array) -> Array:
        return jnp.sum(cross_entropy(model.unembed(params, x_BTD), targets_BT) * weights_BT, axis=axis)

    with jax.named_scope("loss"):
        return _by_chunks(summed, chunk, x_BTD, batch.targets_BT, batch.weights_BT)


def translation_loss(model: Seq2Seq) -> Loss:
    """The training loss of a model that makes a sequence from a sequence, on batches of `Pairs`."""

    def loss(params: Params, batch: Pairs, key: Array | None) -> tuple[Array, Array, dict[str, Array]]:
        memory = model.encode(params, batch.source_BS, key=key)
        logits_BTV = model.decode(params, batch.inputs_BT, memory, key=key)
        total = jnp.sum(cross_entropy(logits_BTV, batch.targets_BT) * batch.weights_BT)
        return total, jnp.sum(batch.weights_BT), {}

    return loss


def token_losses(model: Model) -> Losses:
    """The loss of each token [B, T], of which `next_token_loss` is the weighted sum. A row at a time."""

    def losses(params: Params, batch: Batch, key: Array | None) -> Array:
        x_BTD, _ = model.hidden(
            params, batch.inputs_BT, positions_BT=batch.positions_BT, segments_BT=batch.segments_BT, key=key
        )

        def of_row(row: tuple[Array, Array]) -> Array:
            return cross_entropy(model.unembed(params, row[0]), row[1])

        losses_BT: Array = jax.lax.map(of_row, (x_BTD, batch.targets_BT))
        return losses_BT

    return losses


def _by_chunks(summed: Callable[..., Array], chunk: int, *arrays_BT: Array) -> Array:
    """The sum of `summed` over pieces of the second axis. The last piece may be shorter."""
    T = arrays_BT[0].shape[1]
    if chunk == 0 or chunk >= T:
        return summed(*arrays_BT)
    whole = T // chunk * chunk

    def pieces(x_BT: Array) -> Array:
        x_BNC = x_BT[:, :whole].reshape(x_BT.shape[0], whole // chunk, chunk, *x_BT.shape[2:])
        return jnp.moveaxis(x_BNC, 1, 0)

    again = jax.checkpoint(
        summed, policy=jax.checkpoint_policies.save_only_these_names(NORMALISER), prevent_cse=False
    )
    total, _ = jax.lax.scan(
        lambda total, piece: (total + again(*piece), None),
        jnp.zeros(jax.eval_shape(summed, *arrays_BT).shape, jnp.float32),
        tuple(pieces(x_BT) for x_BT in arrays_BT),
    )
    return total + again(*(x_BT[:, whole:] for x_BT in arrays_BT)) if whole < T else total
