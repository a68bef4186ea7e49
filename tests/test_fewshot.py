"""Few-shot scores: against answers that are known, and against the model's logits."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import pytest

from jaxgpt.config import GPTConfig
from jaxgpt.errors import ConfigError
from jaxgpt.evaluation import fewshot
from jaxgpt.evaluation.fewshot import labels_of, score_examples, shots_of
from jaxgpt.inference.prompts import few_shot_prompt
from jaxgpt.inference.requests import NewToken, Request
from jaxgpt.inference.scoring import SpanScore
from jaxgpt.language_model import LanguageModel
from jaxgpt.model.gpt import define
from jaxgpt.text.tokenizer_files import load_tokenizer

BYTES = load_tokenizer("bytes")
EXAMPLES = [(str(n), "even" if n % 2 == 0 else "odd") for n in range(6)]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    config = GPTConfig(vocab=257, context=128, layers=1, heads=1, width=8)
    params = jax.jit(define(config).init)(jax.random.key(3))
    return LanguageModel(config, jax.tree.map(lambda leaf: leaf * 20, params), BYTES)


class Scripted:
    """An engine that answers the last input of a prompt from a table."""

    served = None

    def __init__(self, answers: dict[str, str], context: int = 128) -> None:
        self.config, self.answers, self.asked = GPTConfig(context=context), answers, []

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, NewToken]]:
        for place, request in enumerate(requests):
            prompt = BYTES.decode(request.prompt)
            self.asked.append(prompt)
            answer = self.answers[prompt.rpartition("Input: ")[2].removesuffix("\nOutput:")]
            for token in BYTES.encode(answer)[: request.max_new_tokens]:
                yield place, NewToken(place, token, None, (), None)

    def cancel(self, number: int) -> None:
        pass


@pytest.fixture
def alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tokens have a log-probability of -1."""
    score_as(monkeypatch, lambda token: -1.0)


def score_as(monkeypatch: pytest.MonkeyPatch, logprob: Callable[[int], float]) -> None:
    """Score every token by a function of it alone."""

    def scores(
        served: Any, spans: Sequence[tuple[Sequence[int], int]], *, show: Callable[[int, int], None]
    ) -> list[SpanScore]:
        show(len(spans), len(spans))
        return [
            SpanScore(np.array([logprob(token) for token in ids[start:]]), None, None) for ids, start in spans
        ]

    monkeypatch.setattr(fewshot, "score_spans", scores)


@pytest.mark.usefixtures("alike")
def test_an_answer_counts_only_when_it_is_the_output_and_then_stops() -> None:
    answers = {
        "0": " even\n\nInput: 7",
        "1": " odd",
        "2": "even \nInput:",
        "3": " oddly\n\n",
        "4": " evenly",
        "5": "",
    }
    told: list[tuple[str, int, int | None]] = []
    scores = score_examples(
        Scripted(answers),  # type: ignore[arg-type]
        BYTES,
        EXAMPLES,
        shots=2,
        show=lambda *given: told.append(given),
    )
    assert scores.exact_match == pytest.approx(3 / 6)
    assert told[0] == ("answering", 0, 6) and ("answering", 6, 6) in told
    assert told[-1] == ("scoring outputs", 12, 12), "two labels of each"
    assert scores.output_logprob == -1


@pytest.mark.usefixtures("alike")
def test_the_prompt_holds_the_shots_and_the_instruction() -> None:
    engine: Any = Scripted({given: "" for given, _ in EXAMPLES})
    score_examples(engine, BYTES, EXAMPLES, shots=2, instruction="Parity?", seed=9)
    expected = [
        few_shot_prompt(given, instruction="Parity?", examples=shots_of(n, EXAMPLES, 2, 9))
        for n, (given, _) in enumerate(EXAMPLES)
    ]
    assert engine.asked == expected and len(set(expected)) == 6


def test_shots_are_others_all_different_and_a_matter_of_the_seed() -> None:
    drawn = {seed: [shots_of(n, EXAMPLES, 4, seed) for n in range(6)] for seed in (0, 1)}
    assert drawn[0] == [shots_of(n, EXAMPLES, 4, 0) for n in range(6)] != drawn[1]
    for n, shots in enumerate(drawn[0]):
        assert EXAMPLES[n] not in shots and len(set(shots)) == 4 and set(shots) < set(EXAMPLES)
    assert shots_of(0, EXAMPLES, 0, 0) == []


@pytest.mark.parametrize("shots", [pytest.param(0, marks=pytest.mark.exhaustive), 2])
def test_scores_are_those_of_the_models_logits(lm: LanguageModel, shots: int) -> None:
    def logprobs(prompt: str, output: str) -> np.ndarray:
        ids = BYTES.encode(prompt + " " + output)
        rows_TV = np.asarray(jax.nn.log_softmax(lm.logits(np.array([ids])), axis=-1))[0]
        return np.array([rows_TV[at - 1, ids[at]] for at in range(len(BYTES.encode(prompt)), len(ids))])

    scores = score_examples(lm.engine(slots=2), BYTES, EXAMPLES, shots=shots, seed=4)
    prompts = [
        few_shot_prompt(g, examples=shots_of(n, EXAMPLES, shots, 4)) for n, (g, _) in enumerate(EXAMPLES)
    ]
    true = np.concatenate([logprobs(p, output) for p, (_, output) in zip(prompts, EXAMPLES, strict=True)])
    assert scores.output_logprob == pytest.approx(true.mean(), abs=1e-4)
    assert scores.labels == ("even", "odd")
    chosen = [max(scores.labels, key=lambda label: logprobs(p, label).sum()) for p in prompts]
    assert scores.label_accuracy == np.mean(
        [c == output for c, (_, output) in zip(chosen, EXAMPLES, strict=True)]
    )


def test_the_most_probable_label_decides_not_the_shorter_by_habit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scorer that finds only the bytes of `odd` probable is right for the odd half."""
    score_as(monkeypatch, lambda token: -0.1 if chr(token) in " od" else -9.0)
    engine: Any = Scripted({given: "" for given, _ in EXAMPLES})
    scores = score_examples(engine, BYTES, EXAMPLES, shots=1)
    assert scores.label_accuracy == 0.5
    assert scores.output_logprob == pytest.approx((3 * 4 * -0.1 + 3 * (-0.1 + 4 * -9)) / (3 * 4 + 3 * 5))


def test_all_texts_are_scored_together(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each true output once and each other label once, in one call that batches them."""
    calls: list[list[Any]] = []
    real = fewshot.score_spans
    monkeypatch.setattr(
        fewshot,
        "score_spans",
        lambda served, spans, **more: calls.append(list(spans)) or real(served, spans, **more),
    )
    score_examples(lm.engine(slots=2), BYTES, EXAMPLES, shots=1)
    (spans,) = calls
    assert len(spans) == len(set(spans)) == 2 * len(EXAMPLES)


def test_outputs_are_labels_where_few_of_them_repeat() -> None:
    assert labels_of(["b", "a ", "a", "b"]) == ("a", "b")
    assert labels_of(["a", "a", "a"]) == ()  # nothing to choose
    assert labels_of(["a", "b", "c", "a"]) == ()  # mostly different
    assert labels_of([str(n) for n in range(20)] * 2) == tuple(sorted(str(n) for n in range(20)))
    assert labels_of([str(n) for n in range(21)] * 2) == ()


@pytest.mark.usefixtures("alike")
def test_free_outputs_have_no_label_accuracy() -> None:
    examples = [("a", "b"), ("c", "d")]
    scores = score_examples(Scripted({"a": " b", "c": ""}), BYTES, examples, shots=1)  # type: ignore[arg-type]
    assert (scores.exact_match, scores.label_accuracy, scores.labels) == (0.5, None, ())


@pytest.mark.parametrize("shots", [-1, 6])
def test_more_shots_than_others_are_refused(shots: int) -> None:
    with pytest.raises(ConfigError, match=rf"shots = {shots}: with 6 examples there are 0 to 5 others"):
        score_examples(Scripted({}), BYTES, EXAMPLES, shots=shots)  # type: ignore[arg-type]


@pytest.mark.usefixtures("alike")
def test_prompts_that_do_not_fit_are_counted_and_refused() -> None:
    longest = len("Input: 0\nOutput: even")
    answers = {given: "" for given, _ in EXAMPLES}
    score_examples(Scripted(answers, context=longest), BYTES, EXAMPLES, shots=0)  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=rf"6 of 6 prompts do not fit .* {longest - 1} .*the longest has {longest}\)"
    ):
        score_examples(Scripted({}, context=longest - 1), BYTES, EXAMPLES, shots=0)  # type: ignore[arg-type]
