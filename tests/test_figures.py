"""Figures of models and data whose tokenizers do and do not belong together, against the model's logits."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from command_line import exit_code

import jaxgpt
from jaxgpt.config import GPTConfig
from jaxgpt.errors import ConfigError
from jaxgpt.evaluation import figures as figures_module
from jaxgpt.evaluation.data import open_validation
from jaxgpt.evaluation.figures import bytes_of, text_figures, words_of
from jaxgpt.language_model import LanguageModel
from jaxgpt.model.gpt import define
from jaxgpt.text.prepare import prepare
from jaxgpt.text.shards import TokenStream, open_split
from jaxgpt.text.tokenizer import RankTokenizer, Tokenizer
from jaxgpt.text.tokenizer_files import load_tokenizer

BYTES = load_tokenizer("bytes")
TEXT = "The figures of a model are worth what their protocol is worth. " * 12 + "Ça va ? "


def model_of(vocab: int, tokenizer: Tokenizer | None) -> LanguageModel:
    """A model whose logits differ by about one."""
    config = GPTConfig(vocab=vocab, context=16, layers=1, heads=1, width=4, vocab_multiple=1)
    params = jax.tree.map(lambda leaf: leaf * 5, jax.jit(define(config).init)(jax.random.key(0)))
    return LanguageModel(config, params, tokenizer)


def data_of(tokenizer: str | Path, folder: Path) -> Path:
    folder.mkdir()
    (folder / "text.txt").write_text(TEXT)
    prepare([str(folder / "text.txt")], folder / "data", tokenizer=str(tokenizer), val_fraction=0.3)
    return folder / "data"


def loss_by_hand(lm: LanguageModel, ids: np.ndarray, vocab: int) -> float:
    """Mean nats of all ids but the first, window by window, among the first `vocab` ids alone."""
    losses: list[float] = []
    for start in range(0, len(ids) - 1, 16):
        window = ids[start : start + 17].astype(int)
        logits_TV = np.asarray(lm.logits(window[None, :-1]), np.float64)[0, :, :vocab]
        logprobs_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
        losses += (-logprobs_TV[np.arange(len(window) - 1), window[1:]]).tolist()
    return float(np.mean(losses))


@pytest.mark.slow
def test_a_nanogpt_model_of_50304_rows_is_scored_on_text_of_gpt2s_tokenizer(tmp_path: Path) -> None:
    """The 47 ids that are no tokens take no part, as when the model writes text."""
    data = data_of("gpt2", tmp_path / "text")
    model_of(50304, None).save(tmp_path / "model", format="nanogpt")
    figures_file = tmp_path / "figures.json"
    assert exit_code("evaluate", tmp_path / "model", "--data", data, "--json", figures_file) == 0
    figures: dict[str, Any] = json.loads((tmp_path / "figures.json").read_text())
    lm, stream = jaxgpt.load(tmp_path / "model"), open_split(data, "val")
    ids = stream.read(0, len(stream))
    assert lm.config.vocab == 50304
    assert figures["val_loss"] == pytest.approx(loss_by_hand(lm, ids, 50257), rel=1e-5)
    assert figures["val_loss"] < loss_by_hand(lm, ids, 50304) - 1e-4
    assert "without the 47 ids that stand for no text" in figures["protocols"]["val_loss"]


def test_ids_beyond_the_tokenizer_take_no_part(tmp_path: Path) -> None:
    data, lm = data_of("bytes", tmp_path / "text"), model_of(300, BYTES)
    stream = open_split(data, "val")
    loss, perplexity, *_ = text_figures(lm.served, open_validation(data, BYTES, lm.text_config), left_out=43)
    assert loss.value == pytest.approx(loss_by_hand(lm, stream.read(0, len(stream)), 257), rel=1e-5)
    assert perplexity.value == math.exp(loss.value)
    assert "without the 43 ids" in loss.protocol


def test_of_two_tokenizers_of_one_size_only_the_models_own_will_do(tmp_path: Path) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    mine, other = RankTokenizer(ranks | {b"th": 256}), RankTokenizer(ranks | {b"ht": 256})
    mine.save(tmp_path / "mine.tiktoken")
    data, lm = data_of(tmp_path / "mine.tiktoken", tmp_path / "text"), model_of(258, mine)
    assert open_validation(data, mine, lm.text_config).tokenizer.sha256 == mine.sha256
    with pytest.raises(
        ConfigError, match=f"its tokens are {mine.name}'s.*the model's tokenizer is {other.name}"
    ):
        open_validation(data, other, lm.text_config)


@pytest.mark.parametrize(("vocab", "fits"), [(257, True), (256, False), (258, False)])
def test_of_a_model_without_a_tokenizer_the_number_of_ids_must_agree(
    vocab: int, fits: bool, tmp_path: Path
) -> None:
    data, lm = data_of("bytes", tmp_path / "text"), model_of(vocab, None)
    if fits:
        assert open_validation(data, None, lm.text_config)
    else:
        with pytest.raises(ConfigError, match=f"of 257 ids; the model's tokenizer is one of {vocab}"):
            open_validation(data, None, lm.text_config)


def test_bytes_are_counted_without_the_first_token_and_the_ends_of_texts(tmp_path: Path) -> None:
    data = data_of("bytes", tmp_path / "text")
    stream = open_split(data, "val")
    text = stream.read(0, len(stream))
    assert bytes_of(stream, BYTES) == len(text) - 1 - int((text[1:] == 256).sum())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"xone two", 2),
        (b"x  one\ttwo\n\nthree ", 3),
        (b"x", 0),
        ("xÇa va\u3000l\u00e0".encode(), 3),
        (b"x \xff one", 2),  # a byte that is no UTF-8 is read as a character
    ],
)
def test_words_are_counted_between_white_space_in_pieces_of_any_length(
    text: bytes, words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for piece in (1, 2, 3, 100):
        monkeypatch.setattr(figures_module, "COUNTED", piece)
        assert words_of(TokenStream.of(np.frombuffer(text, np.uint8)), BYTES) == words


def test_an_end_of_text_parts_words_and_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.array([256, *b"one", 256, *b"two\xc3", 256, 256, *b"three four", 256])
    for piece in (1, 4, 100):
        monkeypatch.setattr(figures_module, "COUNTED", piece)
        assert words_of(TokenStream.of(ids), BYTES) == 4
