"""Windows with a stride: every token is scored once, and a bigram model's figures come out exactly."""

import math

import jax
import numpy as np
import pytest
from bigrams import bigram_config, bigram_params

from jaxgpt.config import GPTConfig, MeshConfig
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.evaluation import windows as windows_module
from jaxgpt.evaluation.windows import Losses, document_losses, mean_of_batch_means, window_losses, windows_of
from jaxgpt.inference.served import Served
from jaxgpt.model.gpt import Params, define
from jaxgpt.parallel import mesh_of
from jaxgpt.text.shards import TokenStream

CONTEXT, VOCAB = 16, 5
CONFIG = bigram_config(VOCAB, CONTEXT)
TABLE = np.random.default_rng(7).dirichlet(np.full(VOCAB, 0.5), VOCAB) * 0.9 + 0.1 / VOCAB
IDS = np.random.default_rng(8).integers(0, VOCAB, 3 * CONTEXT + 5)


@pytest.fixture(scope="module")
def bigrams() -> Served:
    return Served.of(CONFIG, bigram_params(CONFIG, TABLE))


def nats_by_hand(ids: np.ndarray) -> np.ndarray:
    return -np.log(TABLE[ids[:-1], ids[1:]])


@pytest.mark.parametrize("stride", [1, 5, 8, 15, 16])
@pytest.mark.parametrize("full_last", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 2, 16, 17, 18, 33, 40, 53])
def test_every_token_but_the_first_is_scored_once_with_context_enough(
    tokens: int, stride: int, full_last: bool
) -> None:
    found = list(windows_of(tokens, CONTEXT, stride, full_last=full_last))
    scored = [place for window in found for place in range(window.start, window.stop)]
    assert scored == list(range(1, tokens))
    for number, window in enumerate(found):
        assert 0 <= window.begin < window.start < window.stop <= window.begin + CONTEXT + 1
        if number:
            assert window.start - window.begin >= CONTEXT - stride + 1
    if full_last and tokens > CONTEXT:
        assert found[-1].stop - found[-1].begin == CONTEXT + 1


@pytest.mark.parametrize("stride", [None, 3, 16])
@pytest.mark.parametrize("tokens", [2, 9, 17, 18, 34, 53])
def test_the_perplexity_of_a_bigram_model_comes_out_exactly(
    bigrams: Served, tokens: int, stride: int | None
) -> None:
    ids = IDS[:tokens]
    losses = window_losses(bigrams, TokenStream.of(ids), stride=stride)
    by_hand = nats_by_hand(ids)
    assert losses.tokens == tokens - 1
    assert math.exp(losses.nats / losses.tokens) == pytest.approx(math.exp(by_hand.mean()), rel=2e-6)
    begin = 0
    for nats, count in zip(losses.nats_W, losses.tokens_W, strict=True):
        assert nats == pytest.approx(by_hand[begin : begin + count].sum(), rel=5e-6)
        begin += count


def test_windows_are_read_in_several_batches_with_a_last_one_that_is_not_full(
    bigrams: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows_module, "BATCH_TOKENS", 3 * CONTEXT)
    told: list[tuple[int, int]] = []
    losses = window_losses(bigrams, TokenStream.of(IDS), stride=8, show=lambda *counts: told.append(counts))
    assert len(losses.nats_W) == 6 and told == [(0, 2), (1, 2), (2, 2)]
    assert losses.nats == pytest.approx(nats_by_hand(IDS).sum(), rel=1e-6)


def test_a_smaller_stride_gives_more_context(config: GPTConfig, params: Params) -> None:
    """Each loss is that of a forward pass over exactly the tokens that the window has before it."""
    served, stride, apply = Served.of(config, params), 10, jax.jit(define(config).apply)
    ids = np.random.default_rng(3).integers(0, config.vocab, 2 * config.context + 7)
    expected, start, begin = [], 1, 0
    while start < len(ids):
        stop = min(begin + config.context + 1, len(ids))
        window = np.zeros(config.context, int)
        window[: stop - 1 - begin] = ids[begin : stop - 1]
        logits_TV = np.asarray(apply(params, window[None]), np.float64)[0]
        costs_TV = np.log(np.exp(logits_TV).sum(-1, keepdims=True)) - logits_TV
        expected.append(sum(costs_TV[place - 1 - begin, ids[place]] for place in range(start, stop)))
        start, begin = stop, begin + stride
    found = window_losses(served, TokenStream.of(ids), stride=stride)
    np.testing.assert_allclose(found.nats_W, expected, rtol=1e-5)
    mesh = mesh_of(MeshConfig(data=2), jax.devices()[:2])
    assert windows_module._rows(3, 2 * windows_module.BATCH_TOKENS, 2) == 2  # one would not be split
    split = window_losses(Served.of(config, params, mesh=mesh), TokenStream.of(ids), stride=stride)
    np.testing.assert_allclose(split.nats_W, expected, rtol=1e-5)


@pytest.mark.parametrize("full_last", [False, True])
def test_documents_are_read_alone_whatever_their_length(bigrams: Served, full_last: bool) -> None:
    documents = [IDS[:40].tolist(), [3], IDS[40:45].tolist(), IDS[20:38].tolist()]
    losses = document_losses(bigrams, documents, stride=7, full_last=full_last)
    assert losses.tokens_W.tolist() == [39, 0, 4, 17]
    by_hand = [nats_by_hand(np.array(ids)).sum() for ids in documents]
    np.testing.assert_allclose(losses.nats_W, by_hand, rtol=5e-6, atol=1e-9)


def test_the_standard_error_is_that_of_a_ratio_over_windows() -> None:
    losses = Losses(np.array([8.0, 12.0, 4.0]), np.array([4, 4, 2]))
    mean, error = losses.per(losses.tokens_W)
    # 2.4 nats a token: 8 - 9.6, 12 - 9.6 and 4 - 4.8 apart; squares 2.56 + 5.76 + 0.64 = 8.96
    assert mean == pytest.approx(2.4) and error == pytest.approx(math.sqrt(3 / 2 * 8.96) / 10)
    assert math.isnan(Losses(np.array([8.0]), np.array([4])).per(np.array([4]))[1])


def test_the_books_loss_is_the_mean_of_the_means_of_batches_of_whole_windows() -> None:
    losses = Losses(np.array([16.0, 48.0, 64.0, 5.0]), np.array([16, 16, 16, 9]))
    mean, error, tokens = mean_of_batch_means(losses, 16, 2)
    # Batches of (1, 3) and (4) nats a token: means 2 and 4. The last 9 tokens are no whole window.
    assert (mean, tokens) == (3.0, 48) and error == pytest.approx(1.0)
    with pytest.raises(DataError, match="one needs 17 tokens"):
        mean_of_batch_means(Losses(np.array([5.0]), np.array([9])), 16, 2)


@pytest.mark.parametrize("stride", [0, -1, 17])
def test_a_stride_that_would_leave_tokens_out_is_refused(bigrams: Served, stride: int) -> None:
    with pytest.raises(ConfigError, match=f"stride = {stride}.*context is 16 tokens"):
        window_losses(bigrams, TokenStream.of(IDS), stride=stride)


def test_what_cannot_be_scored_is_refused(bigrams: Served) -> None:
    with pytest.raises(DataError, match="a text of 1 tokens: two are needed"):
        window_losses(bigrams, TokenStream.of(IDS[:1]))
    with pytest.raises(DataError, match="token id 5"):
        window_losses(bigrams, TokenStream.of(np.array([1, 5, 1])))
