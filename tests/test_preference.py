"""Preference tuning through the command line: from pairs to a preference, resumed and refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from command_line import exit_code
from small_runs import logged

import jaxgpt
from jaxgpt.config import EvaluationConfig, LoraConfig, PreferenceConfig, read_config, with_settings
from jaxgpt.log import read_rows
from jaxgpt.parallel import by_path
from jaxgpt.training import run as training_run
from jaxgpt.training.flops import count_parameters
from jaxgpt.training.state import TrainState
from jaxgpt.weights.adapted import open_adapter

LETTERS = "abcdefgh"
ROWS = [
    {"instruction": f"Say {a}{b}", "input": "", "output": "", "chosen": f"{a}{b}", "rejected": f"no {b}"}
    for a in LETTERS
    for b in LETTERS
]
SHORT = ["--batch", "8", "--eval-every", "10", "--log-every", "5", "--optim.learning-rate", "0.003"]
FIGURES = ("loss", "chosen_reward", "rejected_reward", "margin", "accuracy")


@pytest.fixture(scope="module")
def base(bytes_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of bytes that says that it was tuned with Phi-3's template."""
    path = shutil.copytree(bytes_base, tmp_path_factory.mktemp("models") / "base")
    (path / "chat.json").write_text('{"chat": "phi3"}')
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "preferences.json"
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    return path


def dpo(base: Path | None, pairs: Path, out: Path, *more: object, code: int = 0) -> None:
    given = [*(["--from", base] if base else []), "--data.path", pairs, "--out-dir", out, *SHORT, *more]
    assert exit_code("finetune", "dpo", *given) == code


@pytest.fixture(scope="module")
def run(base: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    dpo(base, pairs, out, "--steps", "20", "--sample-tokens", "8")
    return out


def test_a_run_begins_at_log_two_and_learns_which_answers_are_preferred(run: Path) -> None:
    rows = read_rows(run / "metrics.jsonl")
    measured = [{name: row[f"val_{name}"] for name in FIGURES} for row in rows if "val_loss" in row]
    assert measured[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert all(abs(measured[0][name]) < 1e-4 for name in FIGURES[1:4])
    assert measured[-1]["loss"] < 0.3 and measured[-1]["margin"] > 1 and measured[-1]["accuracy"] == 1
    trained = [row for row in rows if "loss" in row]
    assert all(name in row for row in trained for name in FIGURES)
    assert trained[0]["loss"] == pytest.approx(np.log(2), abs=1e-5) and trained[-1]["accuracy"] == 1
    assert trained[-1]["margin"] == pytest.approx(
        trained[-1]["chosen_reward"] - trained[-1]["rejected_reward"], rel=1e-4
    )


def test_the_run_keeps_template_and_questions_and_reports(run: Path) -> None:
    config = read_config(run)
    assert isinstance(config, PreferenceConfig) and (config.template, config.model.width) == ("auto", 32)
    assert json.loads((run / "chat.json").read_text()) == {"chat": "phi3"}
    kept = [json.loads(line) for line in (run / "test.jsonl").read_text().splitlines()]
    assert len(kept) == 6 and all(row["output"] == row["instruction"][4:] for row in kept)
    report = (run / "report.md").read_text()
    assert "nats per pair" in report and "| pairs | 160 (8 a step) |" in report
    assert "## Preferences" in report and "<|user|>\nSay " in report


@pytest.mark.slow
def test_a_run_that_goes_on_needs_no_base_and_equals_one_that_went_through(
    run: Path, base: Path, pairs: Path, tmp_path: Path
) -> None:
    own, out = tmp_path / "base", tmp_path / "parts"
    shutil.copytree(base, own)
    dpo(own, pairs, out, "--steps", "9", "--sample-tokens", "8")
    shutil.rmtree(own)
    dpo(None, pairs, out, "--steps", "20", "--sample-tokens", "8")
    assert logged(run).items() <= logged(out).items()
    for a, b in zip(*(jax.tree.leaves(jaxgpt.load(each).params) for each in (run, out)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_reference_that_is_lost_or_damaged_is_told(
    run: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    kept = out / "data" / "reference.npz"
    whole = kept.read_bytes()
    for content in (whole[:-30], None):
        kept.unlink() if content is None else kept.write_bytes(content)
        dpo(None, pairs, out, "--steps", "30", code=66 if content is None else 65)
        assert "the run has lost its reference" in capsys.readouterr().err
    assert read_rows(out / "metrics.jsonl") == read_rows(run / "metrics.jsonl")


def test_what_cannot_be_trained_on_is_refused_before_anything_is_written(
    base: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "out", tmp_path / "other.jsonl"
    dpo(None, pairs, out, code=2)
    assert "no model to begin with" in capsys.readouterr().err
    dpo(base, tmp_path / "none.json", out, code=66)
    dpo(base, pairs, out, "--beta", "0", code=2)
    dpo(base, pairs, out, "--label-smoothing", "0.5", code=2)
    assert "less than 0.5" in capsys.readouterr().err
    other.write_text('{"prompt": "Hi", "chosen": "Ho"}\n')
    dpo(base, other, out, code=65)
    assert "line 1: it has no rejected" in capsys.readouterr().err
    dpo(base, pairs, out, "--template", "instruction", code=65)  # longer than 64 bytes
    said = capsys.readouterr().err
    assert "54 train pairs are left out" in said and "nothing to train on" in said
    assert not out.exists()


@pytest.mark.slow
def test_adapters_are_trained_from_log_two_on_and_the_base_stays_bitwise_what_it_is_and_the_reference(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[SimpleNamespace] = []
    kept = training_run.save_state

    def save(checkpoints: Any, fingerprint: str, state: TrainState, step: int, **more: Any) -> None:
        parts = {"frozen": state.frozen, "trainable": state.trainable}
        states.append(SimpleNamespace(**jax.tree.map(np.asarray, parts)))
        kept(checkpoints, fingerprint, state, step, **more)

    monkeypatch.setattr(training_run, "save_state", save)
    files = {path: path.read_bytes() for path in base.iterdir()}
    (tmp_path / "text.txt").write_text("Say ab and say no. " * 5)
    changed = {"init_from": str(base), "data.path": str(pairs), "out_dir": str(tmp_path / "run")}
    changed |= {
        "data.shuffle": False,
        "optim.learning_rate": 0.05,
        "evaluation.data": str(tmp_path / "text.txt"),
    }
    recipe = PreferenceConfig(
        trains="lora",
        lora=LoraConfig(rank=2),
        batch=8,
        steps=3,
        eval_every=0,
        evaluation=EvaluationConfig(every=3),
    )
    run = jaxgpt.train(with_settings(recipe, changed | {"log_every": 1}), progress=False)
    losses = [row["loss"] for row in run.metrics if "loss" in row]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-6) and losses[2] < losses[1] < losses[0]
    lm = jaxgpt.load(base)
    jax.tree.map(np.testing.assert_array_equal, states[-1].frozen, jax.tree.map(np.asarray, lm.params))
    assert {path: path.read_bytes() for path in base.iterdir()} == files
    assert all("lora_" in path for path in by_path(states[-1].trainable))
    adapter = open_adapter(run.directory)
    assert all(np.any(leaf) for leaf in adapter.leaves.values()) and adapter.score is None
    reference = np.load(run.directory / "data" / "reference.npz")["train"]
    for place, answer in enumerate(("chosen", "rejected")):
        prompt = [*f"<|user|>\n{ROWS[0]['instruction']}\n\n<|assistant|>\n".encode()]
        ids = np.array([*prompt, *ROWS[0][answer].encode(), 256])
        logprobs_TV = np.asarray(jax.nn.log_softmax(lm.logits(ids[None, :-1])))[0]
        scored = logprobs_TV[np.arange(len(prompt) - 1, len(ids) - 1), ids[len(prompt) :]]
        assert reference[0, place] == pytest.approx(scored.sum(), rel=1e-5)
    report = (run.directory / "report.md").read_text()
    trained = sum(leaf.size for leaf in jax.tree.leaves(states[-1].trainable))
    assert trained == sum(leaf.size for leaf in adapter.leaves.values())
    assert f"| parameters | {count_parameters(lm.config):,}, without the adapters |" in report
    assert f"| parameters that train | {trained:,} |" in report
    measured = [row["text:tokens/loss"] for row in run.metrics if "text:tokens/loss" in row]
    again = jaxgpt.evaluate(run.model, data=tmp_path / "text.txt")["val_loss"].value
    assert len(measured) == 2 and measured[1] == pytest.approx(again, rel=1e-5) != pytest.approx(measured[0])


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--accumulate", "2", "--answer", "mean", "--label-smoothing", "0.1")])
def test_a_step_of_pairs_is_trained_again_and_shown(
    base: Path, pairs: Path, tmp_path: Path, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "run", tmp_path / "step.json"
    short = ["--steps", "4", "--log-every", "1", "--eval-every", "0", "--sample-tokens", "0"]
    dpo(base, pairs, out, *short, *more)
    assert exit_code("replay", out, "--step", 3, "--json", file) == 0
    assert "To the bit as in the log are steps 1, 2, 3." in capsys.readouterr().out
    found, row = json.loads(file.read_text()), read_rows(out / "metrics.jsonl")[3]
    assert row["step"] == 3 and len(found["texts"]) == 2 * 8 * (2 if more else 1)
    losses = [text["loss"] for text in found["texts"]]
    assert losses[::2] == losses[1::2] and np.mean(losses) == pytest.approx(row["loss"], rel=1e-5)
    for text, name in zip(found["texts"], ("chosen", "rejected") * 99, strict=False):
        said = "".join(token for token, _ in text["tokens"])
        [of] = [each for each in ROWS if f"{each['instruction']}\n" in said]
        assert f", {name} answer, " in text["title"] and said.endswith(
            f"<|assistant|>\n{of[name]}<|endoftext|>"
        )
        scored = [loss for _, loss in text["tokens"] if loss is not None]
        assert len(scored) == len(of[name]) + 1
        logprob = -np.mean(scored) if more else -np.sum(scored)
        assert f"log-probability {logprob:.4f} (" in text["title"]


@pytest.mark.slow
def test_from_python_with_only_some_layers_and_the_mean(base: Path, pairs: Path, tmp_path: Path) -> None:
    recipe = PreferenceConfig(trains="last-block", answer="mean", batch=8, steps=2, eval_every=0)
    changed = {"init_from": str(base), "data.path": str(pairs), "out_dir": str(tmp_path / "run")}
    run = jaxgpt.train(recipe, changed, progress=False)
    before, after = jaxgpt.load(base).params, run.model.params
    np.testing.assert_array_equal(before["wte"]["embedding"], after["wte"]["embedding"])
    assert (before["ln_f"]["scale"] != after["ln_f"]["scale"]).any()
    kept = np.load(run.directory / "data" / "reference.npz")["train"]
    assert (abs(kept + np.log(257)) < 0.5).all()  # a token of a random model, and not a whole answer
