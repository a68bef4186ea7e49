"""What the verbs that write text share: how the model is laid out, and the token that ends its texts."""

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxgpt.inference.engine import Engine
from jaxgpt.inference.sampling import Sampling
from jaxgpt.inference.served import Served
from jaxgpt.language_model import LanguageModel
from jaxgpt.serving.page import HTML
from jaxgpt.verbs import answer, chat, evaluate, generate, serve
from jaxgpt.verbs.flags import EngineFlags, SamplingFlags


class Built(Exception):
    """An engine was made; nothing more is of interest."""


def _generate(folder: Path, examples: Path) -> None:
    generate.run(generate.GenerateArgs(model=str(folder), prompts=("a",)))


def _chat(folder: Path, examples: Path) -> None:
    chat.run(chat.ChatArgs(model=str(folder)))


def _serve(folder: Path, examples: Path) -> None:
    serve.run(serve.ServeArgs(model=str(folder), port=0))


def _evaluate(folder: Path, examples: Path) -> None:
    evaluate.run(evaluate.EvaluateArgs(model=str(folder), examples=examples, shots=0))


def _answer(folder: Path, examples: Path) -> None:
    questions = examples.with_name("questions.jsonl")
    questions.write_text('{"instruction": "a", "output": "b"}\n')
    answer.run(answer.AnswerArgs(model=str(folder), file=questions, out=examples.with_name("answers.json")))


@pytest.mark.parametrize("verb", [_generate, _chat, _serve, _evaluate, _answer])
def test_every_verb_that_writes_text_ends_it_where_the_tokenizer_says(
    verb: Callable[[Path, Path], None],
    lm: LanguageModel,
    lm_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "a.jsonl").write_text('{"input": "a", "output": "b"}\n')
    given: list[Any] = []

    def build(self: Engine, served: Served, **settings: Any) -> None:
        given.append(settings.get("ends"))
        raise Built

    monkeypatch.setattr(Engine, "__init__", build)
    with pytest.raises(Built):
        verb(lm_folder, tmp_path / "a.jsonl")
    assert given == [lm.ends] == [{256}]


def test_text_is_drawn_alike_in_python_on_the_command_line_and_on_the_page() -> None:
    python = {
        name: parameter.default
        for name, parameter in inspect.signature(LanguageModel.generate).parameters.items()
        if parameter.default is not parameter.empty
    }
    flags = dataclasses.asdict(SamplingFlags())
    assert {name: flags[name] for name in python} == python
    neutral = dataclasses.asdict(Sampling())  # of what Python does not offer
    assert {name: flags[name] for name in neutral.keys() - python.keys()} == {
        name: neutral[name] for name in neutral.keys() - python.keys()
    }
    for name in ("temperature", "top-k"):
        [field] = re.findall(rf'<input id="{name}" [^>]*>', HTML)
        assert f'value="{flags[name.replace("-", "_")]}"' in field


def test_a_stop_string_can_hold_what_cannot_be_typed() -> None:
    typed = (r"\n\n", r"a\tb", r"c\\n", "d\n", r"\x")
    assert SamplingFlags(stop=typed).stop_strings == ("\n\n", "a\tb", r"c\n", "d\n", r"\x")


@pytest.mark.parametrize(("flags", "told"), [({}, True), ({"seed": 3}, False), ({"temperature": 0.0}, False)])
def test_a_seed_that_was_not_given_is_told_if_anything_is_drawn(
    flags: dict[str, Any], told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = {SamplingFlags(**flags).first_seed() for _ in range(3)}
    assert len(seeds) == (1 if "seed" in flags else 3)
    assert [
        f"seed {seed} (--seed {seed} writes" in capsys.readouterr().err for seed in sorted(seeds)[:1]
    ] == [told]


def test_the_flags_decide_how_the_model_is_laid_out(lm_folder: Path) -> None:
    flags = EngineFlags(int8=True, compute_dtype="bfloat16", tensor=2)
    served = flags.served(flags.load(str(lm_folder)))
    assert served.layers.int8 and not EngineFlags().served(EngineFlags().load(str(lm_folder))).layers.int8
    assert served.config.compute_dtype == "bfloat16" and served.mesh.shape["tensor"] == 2
