"""Instruction tuning through the command line: from dialogues to answers, stopped, resumed, and talked to."""

import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from command_line import exit_code
from small_runs import logged

import jaxgpt
from jaxgpt.cli import main
from jaxgpt.config import InstructConfig, load_recipe, read_config
from jaxgpt.log import read_rows
from jaxgpt.runs import task_for
from jaxgpt.training.stop import Stop

LETTERS = "abcdefgh"
ROWS = [
    {"instruction": f"Double {a}{b}", "input": "", "output": f"{a}{b}{a}{b}"}
    for a in LETTERS
    for b in LETTERS
]
SHORT = ["--batch", "8", "--eval-every", "20", "--log-every", "5", "--optim.learning-rate", "0.01"]
TEMPLATE = (
    "{% for message in messages %}{{ message.role[0] + ':' + message.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "dialogues.json"
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    return path


def finetune(bytes_base: Path, dialogues: Path, out: Path, *more: object, code: int = 0) -> None:
    given = ["--from", bytes_base, "--data.path", dialogues, "--out-dir", out, *SHORT, *more]
    assert exit_code("finetune", "instruct", *given) == code


@pytest.fixture(scope="module")
def run(bytes_base: Path, dialogues: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    finetune(bytes_base, dialogues, out, "--template", "phi3", "--steps", "60")
    return out


def test_a_run_learns_to_answer_and_keeps_its_test_dialogues(run: Path) -> None:
    rows = read_rows(run / "metrics.jsonl")
    losses = [row["val_loss"] for row in rows if "val_loss" in row]
    assert losses[0] > 5 > 2.5 > losses[-1]
    samples = [row["sample"] for row in rows if "sample" in row]
    assert len(samples) == 4 and all(each.startswith("<|user|>\nDouble ") for each in samples)
    config = read_config(run)
    assert isinstance(config, InstructConfig) and (config.template, config.model.width) == ("phi3", 32)
    kept = [json.loads(line) for line in (run / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(kept) == 6 and all(row in ROWS for row in kept)
    report = (run / "report.md").read_text()
    assert "| rows | 480 (8 a step) |" in report and "nats per token" in report and "Double" in report


def test_the_model_is_talked_to_as_it_was_tuned(run: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Double ab\n"))
    main(["chat", f"{run}@60", "--temperature", "0", "--max-new-tokens", "8"])
    said = capsys.readouterr()
    assert "phi3" in said.err
    lm = jaxgpt.load(run)
    expected = lm.generate("<|user|>\nDouble ab\n\n<|assistant|>\n", max_new_tokens=8, temperature=0)
    assert expected.strip() and expected.strip() in said.out


def test_answers_stand_beside_the_right_ones(run: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "answers.json"
    main(["answer", f"{run}@best", "--out", str(out), "--max-new-tokens", "8"])
    rows, kept = json.loads(out.read_text()), (run / "test.jsonl").read_text().splitlines()
    assert [{k: v for k, v in row.items() if k != "model_response"} for row in rows] == [
        *map(json.loads, kept)
    ]
    lm = jaxgpt.load(f"{run}@best")
    for row in rows[:2]:
        prompt = f"<|user|>\n{row['instruction']}\n\n<|assistant|>\n"
        assert row["model_response"] == lm.generate(prompt, max_new_tokens=8, temperature=0).strip()
    assert f"judge {out}" in capsys.readouterr().err
    main(
        [
            "answer",
            f"{run}@best",
            "--out",
            str(tmp_path / "long.json"),
            "--max-new-tokens",
            str(lm.config.context),
        ]
    )
    long = json.loads((tmp_path / "long.json").read_text())  # questions stay whole where answers may be long
    assert "without their beginnings" not in capsys.readouterr().err
    assert [row["model_response"][:4] for row in long] == [row["model_response"][:4] for row in rows]
    with pytest.raises(SystemExit) as done:
        main(["answer", str(run), "--out", str(out)])
    assert done.value.code == 74 and "something is there already" in capsys.readouterr().err


def test_the_sample_answers_the_first_validation_question_that_fits(
    bytes_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those before it are longer than the context. Where none fits, there is no sample."""
    asked: list[str] = []

    def sampler(*_: Any, shown: str, **__: Any) -> Any:
        asked.append(shown)

    monkeypatch.setattr("jaxgpt.finetuning.dialogue_task.sampler", sampler)
    questions = ["a", "b", "c" * 50, "d" * 39, "e" * 38, "f"]
    for kept, expected in (
        (questions, ["<|user|>\n" + "e" * 38 + "\n\n<|assistant|>\n"]),
        (questions[:4], []),
    ):
        rows = [{"instruction": text, "output": "x"} for text in kept]
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        settings = {
            "init_from": str(bytes_base),
            "data.path": str(tmp_path / "rows.json"),
            "template": "phi3",
        }
        settings |= {"data.shuffle": False, "data.val_fraction": 1 - 2 / len(kept), "data.test_fraction": 0.0}
        _, task = task_for(load_recipe("instruct", settings), tell=lambda _: None)
        events = task.open_data(tmp_path, Stop()).events
        assert asked == expected and [event.name for event in events] == [
            "val_loss",
            *(["sample"] * len(expected)),
        ]
        asked.clear()


@pytest.mark.slow  # test_classify has the same of a classifier, and test_resume of pretraining
def test_a_run_that_goes_on_equals_one_that_went_through(
    run: Path, bytes_base: Path, dialogues: Path, tmp_path: Path
) -> None:
    out = tmp_path / "parts"
    for steps in (25, 60):
        finetune(bytes_base, dialogues, out, "--template", "phi3", "--steps", steps)
    assert logged(run) == logged(out)
    for a, b in zip(*(jax.tree.leaves(jaxgpt.load(each).params) for each in (run, out)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_packed_rows_with_a_template_from_a_file(
    bytes_base: Path, dialogues: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    """Each dialogue has 19 predictions, so that three share a row of 64."""
    template, out = tmp_path / "mine.jinja", tmp_path / "packed"
    template.write_text(TEMPLATE)
    finetune(
        bytes_base, dialogues, out, "--template", template, "--pack", "--epochs", "2", "--eval-every", "0"
    )
    told = capsys.readouterr().err
    assert "packed: 18 rows of 64 tokens hold the 54 dialogues" in told
    config = read_config(out)
    assert config.steps == 4  # twice 18 rows, 8 a step
    template.unlink()  # the run has its own copy
    monkeypatch.setattr("sys.stdin", io.StringIO("Double ab\n"))
    main(["chat", str(out), "--temperature", "0", "--max-new-tokens", "4"])
    said = capsys.readouterr().out
    expected = jaxgpt.load(out).generate("u:Double ab\na:", max_new_tokens=4, temperature=0)
    assert expected.strip() in said


def test_what_cannot_be_trained_on_is_refused_before_anything_is_written(
    bytes_base: Path, dialogues: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    finetune(bytes_base, dialogues, out, code=65)  # the instruction template alone is longer than 64 bytes
    said = capsys.readouterr().err
    assert "nothing to train on" in said and "64 tokens" in said
    finetune(bytes_base, dialogues, out, "--trains", "head", "--template", "phi3", code=2)
    assert "nothing would train" in capsys.readouterr().err
    finetune(bytes_base, tmp_path / "none.json", out, code=66)
    finetune(bytes_base, dialogues, out, "--template", tmp_path / "none.jinja", code=66)
    assert not out.exists()
