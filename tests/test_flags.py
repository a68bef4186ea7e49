"""What the verbs that write text share: how the model is laid out, and the token that ends its texts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxgpt.inference.engine import Engine
from jaxgpt.inference.served import Served
from jaxgpt.language_model import LanguageModel
from jaxgpt.verbs import chat, evaluate, generate, serve
from jaxgpt.verbs.flags import EngineFlags


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


@pytest.mark.parametrize("verb", [_generate, _chat, _serve, _evaluate])
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
        given.append(settings.get("end"))
        raise Built

    monkeypatch.setattr(Engine, "__init__", build)
    with pytest.raises(Built):
        verb(lm_folder, tmp_path / "a.jsonl")
    assert given == [lm.tokenizer.end_of_text] == [256]


def test_the_flags_decide_how_the_model_is_laid_out(lm_folder: Path) -> None:
    flags = EngineFlags(int8=True, compute_dtype="bfloat16", tensor=2)
    served = flags.served(flags.load(str(lm_folder)))
    assert served.layers.int8 and not EngineFlags().served(EngineFlags().load(str(lm_folder))).layers.int8
    assert served.config.compute_dtype == "bfloat16" and served.mesh.shape["tensor"] == 2
