"""The validation loss: NumPy's mean cross-entropy over all tokens, on any mesh."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxgpt.config import GPTConfig, MeshConfig
from jaxgpt.evaluation.validation import validation_loss
from jaxgpt.model.gpt import Params, define
from jaxgpt.parallel import mesh_of, shardings
from jaxgpt.text.batches import ValidationBatches
from jaxgpt.text.shards import ShardWriter, TokenStream
from jaxgpt.training.loss import next_token_loss

TOKENS = 2 * 8 * 32 + 3 * 32 + 9  # two whole batches of 8 windows of 32, three windows more and a piece


@pytest.fixture(scope="module")
def stream(config: GPTConfig, tmp_path_factory: pytest.TempPathFactory) -> TokenStream:
    folder = tmp_path_factory.mktemp("tokens")
    writer = ShardWriter(folder, "val", "uint16", shard_tokens=100)
    writer.append(np.random.default_rng(0).integers(0, config.vocab, TOKENS))
    return TokenStream([folder / shard.file for shard in writer.finish()])


def evaluate(
    config: GPTConfig, params: Params, stream: TokenStream, mesh: Any = None, **settings: Any
) -> float:
    mesh = mesh or mesh_of(MeshConfig(data=1), jax.devices()[:1])
    batches = ValidationBatches(stream, context=config.context, sequences=8, vocab=config.vocab)
    assert len(batches) == 3
    placed = jax.device_put(params, shardings(params, mesh))
    return validation_loss(next_token_loss(define(config)), batches, mesh, **settings)(placed)


@pytest.fixture(scope="module")
def losses(config: GPTConfig, params: Params, stream: TokenStream) -> np.ndarray:
    """The cost of each prediction in float64, a window at a time, without padding."""
    tokens, apply, costs = stream.read(0, TOKENS), jax.jit(define(config).apply), []
    for begin in range(0, TOKENS - 1, config.context):
        window = tokens[begin : begin + config.context + 1]
        logits_TV = np.asarray(apply(params, window[None, :-1]), np.float64)[0]
        costs.append(np.log(np.exp(logits_TV).sum(-1)) - logits_TV[np.arange(len(window) - 1), window[1:]])
    return np.concatenate(costs)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (8, 1, 1), (2, 2, 2)])
def test_the_validation_loss_is_the_mean_over_all_predictions(
    config: GPTConfig, params: Params, stream: TokenStream, losses: np.ndarray, sizes: tuple[int, int, int]
) -> None:
    data, fsdp, tensor = sizes
    mesh = mesh_of(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])
    assert len(losses) == TOKENS - 1
    assert evaluate(config, params, stream, mesh) == pytest.approx(losses.mean(), rel=1e-6)


@pytest.mark.parametrize(("limit", "windows"), [(1, 8), (2, 16), (3, 20), (100, 20), (0, 20)])
def test_a_limit_takes_the_first_batches(
    config: GPTConfig, params: Params, stream: TokenStream, losses: np.ndarray, limit: int, windows: int
) -> None:
    expected = losses[: windows * config.context].mean()
    assert evaluate(config, params, stream, limit=limit) == pytest.approx(expected, rel=1e-6)


def test_it_can_be_stopped_between_batches(config: GPTConfig, params: Params, stream: TokenStream) -> None:
    class Stopped(Exception):
        pass

    told = []

    def between(done: int, total: int) -> None:
        told.append((done, total))
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        evaluate(config, params, stream, between=between)
    assert told == [(0, 3), (1, 3), (2, 3)]
