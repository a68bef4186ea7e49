"""The head of a classifier: which state of a text it reads, its loss, and its predictions for many texts."""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding

from jaxgpt.evaluation.validation import Between
from jaxgpt.finetuning.class_batches import Encoded, Rows, TextBatch
from jaxgpt.model.gpt import Model, Params
from jaxgpt.parallel import P, place_rows
from jaxgpt.training.loss import Loss, Losses, cross_entropy

Reads = Literal["last", "first", "mean", "end"]
ROWS = 32  # texts that are classified together at most


def pooled(x_BTD: Array, length_B: Array, reads: Reads) -> Array:
    """The state [B, D] of each text that the head reads.

    `last` is the text's last token, wherever padding begins, and `first` its first. `mean` is the mean over
    its tokens. `end` is the last position of the row, padding or not, so it depends on how much padding there
    is. The others do not, as no token sees what stands behind it.
    """
    if reads == "first":
        return x_BTD[:, 0]
    if reads == "end":
        return x_BTD[:, -1]
    if reads == "last":
        return jnp.take_along_axis(x_BTD, (length_B - 1)[:, None, None], axis=1)[:, 0]
    inside_BT1 = (jnp.arange(x_BTD.shape[1])[None, :] < length_B[:, None])[..., None]
    total_BD = jnp.sum(x_BTD.astype(jnp.float32) * inside_BT1, axis=1)
    return total_BD / length_B[:, None].astype(jnp.float32)


def class_logits(
    model: Model, params: Params, batch: TextBatch, reads: Reads, key: Array | None = None
) -> Array:
    """The float32 logits [B, C] of the classes of each text. `key` turns dropout on."""
    x_BTD, _ = model.hidden(params, batch.inputs_BT, key=key)
    return model.score(params, pooled(x_BTD, batch.length_B, reads))


def class_loss(model: Model, reads: Reads) -> Loss:
    """The training loss: the cross-entropy of the true class in nats, and the accuracy beside it."""

    def loss(params: Params, batch: TextBatch, key: Array | None) -> tuple[Array, Array, dict[str, Array]]:
        logits_BC = class_logits(model, params, batch, reads, key)
        right_B = jnp.argmax(logits_BC, axis=-1) == batch.label_B
        total = jnp.sum(cross_entropy(logits_BC, batch.label_B) * batch.weight_B)
        return total, jnp.sum(batch.weight_B), {"accuracy": jnp.sum(right_B * batch.weight_B)}

    return loss


def class_losses(model: Model, reads: Reads) -> Losses:
    """The loss of each text [B], of which `class_loss` is the weighted sum."""

    def losses(params: Params, batch: TextBatch, key: Array | None) -> Array:
        return cross_entropy(class_logits(model, params, batch, reads, key), batch.label_B)

    return losses


def predictor(model: Model, mesh: Mesh, reads: Reads, form: Rows) -> Callable[..., np.ndarray]:
    """A function `predict(params, data, between)` that returns the logits [N, C] of texts, in their order.

    Texts of similar lengths are read together. `between` is called before the first batch, and after each.
    """
    whole = mesh.shape["data"] * mesh.shape["fsdp"]
    jitted = jax.jit(
        lambda params, batch: class_logits(model, params, batch, reads),
        out_shardings=NamedSharding(mesh, P()),
    )

    def predict(params: Params, data: Encoded, between: Between = lambda *_: None) -> np.ndarray:
        order = sorted(range(len(data.ids)), key=lambda number: len(data.ids[number]))
        rows = -(-min(ROWS, 1 << (len(order) - 1).bit_length()) // whole) * whole
        logits_NC = None
        between(0, len(order))
        for begin in range(0, len(order), rows):
            numbers = order[begin : begin + rows]
            batch = _placed(data, numbers + [-1] * (rows - len(numbers)), form, mesh)
            found = np.asarray(jitted(params, batch))[: len(numbers)]
            if logits_NC is None:
                logits_NC = np.zeros((len(order), found.shape[1]), np.float32)
            logits_NC[numbers] = found
            between(min(begin + rows, len(order)), len(order))
        assert logits_NC is not None, "there are texts"
        return logits_NC

    return predict


def _placed(data: Encoded, numbers: Sequence[int], form: Rows, mesh: Mesh) -> TextBatch:
    """A batch of these texts, its rows on the devices that compute them."""
    length = form.length_for(data, numbers)
    placed: TextBatch = place_rows(
        lambda start, stop: form.batch(data, numbers[start:stop], length), len(numbers), mesh
    )
    return placed


def probabilities(logits_NC: np.ndarray) -> np.ndarray:
    """The probabilities of the classes, float64 [N, C]."""
    logits_NC = logits_NC.astype(np.float64)
    weights_NC = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    found_NC: np.ndarray = weights_NC / weights_NC.sum(axis=1, keepdims=True)
    return found_NC


def mean_loss(logits_NC: np.ndarray, labels: Sequence[int]) -> float:
    """The mean cross-entropy of the true classes, in nats."""
    return float(jnp.mean(cross_entropy(jnp.asarray(logits_NC), jnp.asarray(labels))))
