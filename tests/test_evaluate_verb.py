"""`jaxgpt evaluate`: figures of the whole validation split and of examples, each with its protocol."""

import io
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from command_line import exit_code
from rounding import rounded_to_int8

import jaxgpt
from jaxgpt.config import GPTConfig, TrainConfig, save_config
from jaxgpt.errors import ConfigError
from jaxgpt.language_model import LanguageModel
from jaxgpt.model.gpt import define
from jaxgpt.text.shards import open_split
from jaxgpt.text.tokenizer import TOKENIZER_FILE
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.weights.checkpoint import CHECKPOINTS, Checkpoints

BYTES = load_tokenizer("bytes")
TEXTS = ["".join(f"{a} + {b} = {a + b}\n" for a in range(20)) for b in range(12)]
EXAMPLES = [{"input": str(n), "output": "even" if n % 2 == 0 else "odd"} for n in range(6)]


def verb(*argv: Any, code: int = 0) -> None:
    assert exit_code(*argv) == code


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with data of its own: several documents, so that ends of texts are among its tokens."""
    folder = tmp_path_factory.mktemp("run")
    config = GPTConfig(vocab=257, context=32, layers=2, heads=2, width=16)
    params = jax.tree.map(lambda leaf: leaf * 5, jax.jit(define(config).init)(jax.random.key(0)))
    save_config(TrainConfig(model=config), folder)
    BYTES.save(folder / TOKENIZER_FILE)
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        checkpoints.save(1, {"params": params}, {})
    (folder / "texts").mkdir()
    for number, text in enumerate(TEXTS):
        (folder / "texts" / f"{number}.txt").write_text(text + "é")
    verb(
        "prepare", folder / "texts", "--out", folder / "data", "--tokenizer", "bytes", "--val-fraction", "0.3"
    )
    return folder


@pytest.fixture(scope="module")
def lm(run: Path) -> LanguageModel:
    return jaxgpt.load(run)


@pytest.fixture(scope="module")
def figures(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("json") / "a.json"
    verb("evaluate", run, "--data", run / "data", "--int8", "--json", file)
    return json.loads(file.read_text())


def mean_loss(lm: LanguageModel, tokens: np.ndarray) -> float:
    """Cross-entropy in nats of all tokens but the first, windows side by side, one at a time."""
    losses = []
    for start in range(0, len(tokens) - 1, lm.config.context):
        window = tokens[start : start + lm.config.context + 1]
        logprobs_TV = np.asarray(jax.nn.log_softmax(lm.logits(window[None, :-1]), axis=-1))[0]
        losses += (-logprobs_TV[np.arange(len(window) - 1), window[1:]]).tolist()
    return float(np.mean(losses))


def test_the_loss_is_that_of_the_whole_split_window_by_window(
    figures: dict[str, Any], lm: LanguageModel, run: Path
) -> None:
    stream = open_split(run / "data", "val")
    assert figures["val_loss"] == pytest.approx(mean_loss(lm, stream.read(0, len(stream))), rel=1e-5)
    assert figures["perplexity"] == math.exp(figures["val_loss"])
    assert f"{len(stream) - 1:,} predictions in windows of 32" in figures["protocols"]["val_loss"]


def test_bits_per_byte_count_the_bytes_of_the_text_alone(figures: dict[str, Any], run: Path) -> None:
    """An end of text is predicted, and paid for, but is no byte; the first token is not predicted."""
    stream = open_split(run / "data", "val")
    ids = stream.read(0, len(stream))
    assert (ids == 256).sum() > 1
    count = int((ids[1:] < 256).sum())
    assert figures["bits_per_byte"] == pytest.approx(
        figures["val_loss"] * (len(ids) - 1) / math.log(2) / count
    )
    assert f"over {count:,} bytes" in figures["protocols"]["bits_per_byte"]


def test_int8_figures_are_those_of_weights_rounded_by_hand(
    figures: dict[str, Any], lm: LanguageModel, run: Path
) -> None:
    stream = open_split(run / "data", "val")
    by_hand = mean_loss(
        LanguageModel(lm.config, rounded_to_int8(lm.params), BYTES), stream.read(0, len(stream))
    )
    assert figures["int8_val_loss"] == pytest.approx(by_hand, rel=1e-5) != figures["val_loss"]
    assert figures["int8_perplexity"] == pytest.approx(math.exp(by_hand), rel=1e-4)
    ratio = figures["int8_perplexity"] / figures["perplexity"]
    assert figures["int8_perplexity_ratio"] == pytest.approx(ratio) and abs(ratio - 1) < 0.01


def test_every_figure_has_its_protocol(figures: dict[str, Any]) -> None:
    assert set(figures["protocols"]) == set(figures) - {"model", "protocols", "standard_errors", "published"}
    assert set(figures["standard_errors"]) == set(figures["protocols"]) - {"int8_perplexity_ratio"}
    assert all("validation split" in protocol for protocol in figures["protocols"].values())


def test_data_of_a_run_directory_is_found_in_it(
    figures: dict[str, Any], run: Path, tmp_path: Path, capsys: Any
) -> None:
    verb("evaluate", run, "--data", run, "--json", tmp_path / "a.json")
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["val_loss"] == figures["val_loss"] and not any("int8" in name for name in found)
    assert f"{found['val_loss']:.4f}" in capsys.readouterr().out


def test_a_text_is_scored_as_it_is_by_the_models_own_tokenizer(
    lm: LanguageModel, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, found = "Twenty-three ändern zwei.\n" * 3, tmp_path / "a.json"
    (tmp_path / "a text.txt").write_text(text)
    verb("evaluate", run, "--data", tmp_path / "a text.txt", "--json", found)
    whole = json.loads(found.read_text())
    ids = np.frombuffer(text.encode(), np.uint8).astype(int)
    assert whole["val_loss"] == pytest.approx(mean_loss(lm, ids), rel=1e-5)
    assert whole["bits_per_byte"] == pytest.approx(whole["val_loss"] / math.log(2))
    assert f"all of {tmp_path}/a text.txt, {len(ids) - 1} predictions" in whole["protocols"]["val_loss"]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    verb("evaluate", run, "--data", "-", "--json", found)
    assert json.loads(found.read_text())["val_loss"] == whole["val_loss"]


def test_between_the_documents_of_one_file_stands_the_end_of_a_text(
    lm: LanguageModel, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "and two"}\n')
    verb("evaluate", run, "--data", tmp_path / "a.jsonl", "--json", tmp_path / "a.json")
    ids = np.array([*b"one", 256, *b"and two"])
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["val_loss"] == pytest.approx(mean_loss(lm, ids), rel=1e-5)


def test_python_measures_what_the_command_does_with_a_stride_and_by_the_books_protocol(
    lm: LanguageModel, run: Path, figures: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    text, found = "Twenty-three ändern zwei.\n" * 4, tmp_path / "a.json"
    (tmp_path / "a.txt").write_text(text)
    ids = np.frombuffer(text.encode(), np.uint8).astype(int)
    verb("evaluate", run, "--data", tmp_path / "a.txt", "--stride", "8", "--json", found)
    strided = json.loads(found.read_text())
    errors = strided.pop("standard_errors")
    in_python = jaxgpt.evaluate(run, data=tmp_path / "a.txt", stride=8)
    assert {name: figure.value for name, figure in in_python.items()} == {
        name: strided[name] for name in strided["protocols"]
    }
    assert {name: figure.standard_error for name, figure in in_python.items()} == errors
    windows = -(-(len(ids) - 1 - 32) // 8) + 1
    assert (
        f"in windows of 32, stride 8; ± is the standard error over {windows} windows"
        in (strided["protocols"]["val_loss"])
    )
    assert strided["val_loss"] != pytest.approx(mean_loss(lm, ids), rel=1e-5)
    assert strided["bits_per_word"] == pytest.approx(
        strided["val_loss"] * (len(ids) - 1) / math.log(2) / (4 * 3)
    )
    assert f"± {errors['val_loss']:.4f}" in capsys.readouterr().out
    book = jaxgpt.evaluate(lm, data=str(tmp_path / "a.txt"), protocol="book")
    means = [mean_loss(lm, ids[begin : begin + 33]) for begin in (0, 32, 64)]
    assert list(book) == ["val_loss", "perplexity"]
    assert book["val_loss"].value == pytest.approx((np.mean(means[:2]) + means[2]) / 2, rel=1e-5)
    assert "96 predictions" in book["val_loss"].protocol and "batches of 2" in book["val_loss"].protocol
    assert jaxgpt.evaluate(lm, data=tmp_path / "a.txt", protocol="book", batch=3)[
        "val_loss"
    ].value == pytest.approx(np.mean(means), rel=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stride": 33}, "stride = 33: the model's context is 32"),
        ({"stride": 8, "protocol": "book"}, "stride = 8: the protocol `book` has its windows side by side"),
        ({"protocol": "book", "batch": 0}, "batch = 0"),
    ],
)
def test_settings_of_a_protocol_that_do_not_go_together_are_refused(
    lm: LanguageModel, run: Path, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        jaxgpt.evaluate(lm, data=run, **given)
    with pytest.raises(ConfigError, match="nothing to score on"):
        jaxgpt.evaluate(lm)


def test_a_file_for_the_figures_that_cannot_be_written_is_refused_before_a_model_is_read(
    tmp_path: Path, capsys: Any
) -> None:
    verb("evaluate", tmp_path / "no-model", "--data", tmp_path, "--json", tmp_path / "none" / "a", code=2)
    assert f"there is no folder {tmp_path / 'none'}" in capsys.readouterr().err


def test_data_that_is_not_there_is_missing_before_a_model_is_read(tmp_path: Path, capsys: Any) -> None:
    verb("evaluate", tmp_path / "no-model", "--data", tmp_path / "no-text.txt", code=66)
    assert "no-text.txt): there is no such file or folder" in capsys.readouterr().err


def test_data_of_another_tokenizer_is_refused(run: Path, tmp_path: Path, capsys: Any) -> None:
    verb("prepare", run / "texts", "--out", tmp_path / "data", "--tokenizer", "gpt2")
    verb("evaluate", run, "--data", tmp_path / "data", code=2)
    out, err = capsys.readouterr()
    assert not out and "its tokens are gpt2's, of 50257 ids; the model's tokenizer is bytes of 257" in err


def test_the_scores_of_examples_are_written_with_how_they_were_asked(
    run: Path, tmp_path: Path, capsys: Any
) -> None:
    from jaxgpt.evaluation.fewshot import score_examples

    (tmp_path / "a.jsonl").write_text("".join(json.dumps(example) + "\n" for example in EXAMPLES))
    verb(
        "evaluate",
        run,
        "--examples",
        tmp_path / "a.jsonl",
        "--shots",
        "0",
        "--instruction",
        "Hm?",
        "--seed",
        "3",
        "--json",
        tmp_path / "a.json",
    )
    found, lm = json.loads((tmp_path / "a.json").read_text()), jaxgpt.load(run)
    pairs = [(example["input"], example["output"]) for example in EXAMPLES]
    scores = score_examples(lm.engine(8), BYTES, pairs, shots=0, instruction="Hm?", seed=3)
    protocols = found.pop("protocols")
    assert not found.pop("standard_errors") and not found.pop("published")
    assert found == {
        "model": str(run),
        "few_shot_exact_match": scores.exact_match,
        "few_shot_output_logprob": pytest.approx(scores.output_logprob, rel=1e-5),
        "few_shot_label_accuracy": scores.label_accuracy,
    }
    assert all("zero-shot, 6 examples" in protocol for protocol in protocols.values())
    assert "most probable of 2 labels" in capsys.readouterr().out


def test_without_anything_to_score_on_it_says_what_to_give(run: Path, capsys: Any) -> None:
    verb("evaluate", run, code=2)
    assert "give --data (a text, a folder" in capsys.readouterr().err


def test_what_is_not_there_is_missing(run: Path, tmp_path: Path, capsys: Any) -> None:
    verb("evaluate", run, "--data", tmp_path, code=66)
    verb("evaluate", run, "--examples", tmp_path / "a.jsonl", code=66)
    assert capsys.readouterr().out == ""


def test_a_model_without_a_tokenizer_is_scored_on_text_of_its_vocabulary(
    figures: dict[str, Any], lm: LanguageModel, run: Path, tmp_path: Path
) -> None:
    LanguageModel(lm.config, lm.params, None).save(tmp_path / "bare")
    verb("evaluate", tmp_path / "bare", "--data", run, "--json", tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["val_loss"] == pytest.approx(
        figures["val_loss"], rel=1e-6
    )
    (tmp_path / "a.jsonl").write_text(json.dumps(EXAMPLES[0]) + "\n" + json.dumps(EXAMPLES[1]))
    verb("evaluate", tmp_path / "bare", "--examples", tmp_path / "a.jsonl", "--shots", "0", code=65)
    verb("evaluate", tmp_path / "bare", "--data", tmp_path / "a.jsonl", code=65)
