"""The loss of direct preference optimization (DPO), from the log-probabilities of pairs of answers."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxgpt.finetuning.preference_batches import PairBatch
from jaxgpt.model.gpt import Model, Params
from jaxgpt.training.loss import Loss, Losses, summed_cross_entropy, token_losses

Answer = Literal["sum", "mean"]
LogProbabilities = Callable[[Params, PairBatch, Array | None], Array]


def answer_log_probabilities(model: Model, *, answer: Answer, chunk: int = 0) -> LogProbabilities:
    """A function that gives the log-probability of each answer of a batch, [B, 2], in nats.

    It is the sum over the tokens of the answer, or with `answer="mean"` the mean over them. All sequences are
    read in one forward pass. `chunk` is that of `next_token_loss`.
    """

    def measure(params: Params, batch: PairBatch, key: Array | None) -> Array:
        B, _, T = batch.sequences.inputs_BT.shape
        flat = jax.tree.map(lambda x_B2T: x_B2T.reshape(2 * B, T), batch.sequences)
        total_B2 = -summed_cross_entropy(model, params, flat, key, chunk=chunk, axis=1).reshape(B, 2)
        if answer == "sum":
            return total_B2
        return total_B2 / jnp.maximum(jnp.sum(batch.sequences.weights_BT, axis=-1), 1)

    return measure


def answer_token_losses(model: Model) -> Losses:
    """The loss of each token of both answers, [B, 2, T]: its negative log-probability, in nats."""
    of_rows = token_losses(model)

    def losses(params: Params, batch: PairBatch, key: Array | None) -> Array:
        B, _, T = batch.sequences.inputs_BT.shape
        flat = jax.tree.map(lambda x_B2T: x_B2T.reshape(2 * B, T), batch.sequences)
        return of_rows(params, flat, key).reshape(B, 2, T)

    return losses


def pair_losses(margin_B: ArrayLike, label_smoothing: float = 0) -> Array:
    """The loss of each pair, [B], of which `preference_loss` is the weighted sum."""
    right_B, wrong_B = jax.nn.log_sigmoid(margin_B), jax.nn.log_sigmoid(-jnp.asarray(margin_B))
    losses_B: Array = -(1 - label_smoothing) * right_B - label_smoothing * wrong_B
    return losses_B


def preference_loss(log_probabilities: LogProbabilities, *, beta: float, label_smoothing: float = 0) -> Loss:
    """The loss of DPO, for each pair -log sigmoid(margin), in nats.

    The reward of an answer is beta times the change of its log-probability since the model began to train,
    and the margin is the reward of the chosen answer minus that of the rejected one. With `label_smoothing`,
    the answers of that share of the pairs are taken to be mixed up.

    It also reports the mean rewards, the mean margin, and the accuracy: the share of pairs with a margin
    above 0. Before the first step all rewards are 0, and the loss is log 2.

    Source: Rafailov et al. 2023, Direct Preference Optimization, equation 7; the smoothing, which is called
    conservative DPO: Mitchell 2023, A note on DPO with noisy preferences and relationship to IPO, equation 3.
    """

    def loss(params: Params, batch: PairBatch, key: Array | None) -> tuple[Array, Array, dict[str, Array]]:
        chosen_B, rejected_B = (beta * (log_probabilities(params, batch, key) - batch.reference_B2)).T
        margin_B = chosen_B - rejected_B
        values = {
            "loss": pair_losses(margin_B, label_smoothing),
            "chosen_reward": chosen_B,
            "rejected_reward": rejected_B,
            "margin": margin_B,
            "accuracy": margin_B > 0,
        }
        sums = {name: jnp.sum(value_B * batch.weight_B) for name, value_B in values.items()}
        return sums.pop("loss"), jnp.sum(batch.weight_B), sums

    return loss
