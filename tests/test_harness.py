"""lm-evaluation-harness's requests on a bigram model made by hand, and the harness itself where it is."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bigrams import bigram_config, bigram_params
from command_line import exit_code

import jaxgpt
from jaxgpt.errors import ConfigError
from jaxgpt.evaluation import harness
from jaxgpt.evaluation.harness import Requests
from jaxgpt.evaluation.tasks.scorer import Scorer
from jaxgpt.language_model import LanguageModel
from jaxgpt.text.tokenizer_files import load_tokenizer

BYTES = load_tokenizer("bytes")
CONFIG = bigram_config(257, 32)
LETTERS = "abcdefgh. "


def _table() -> np.ndarray:
    """Each of LETTERS is most likely followed by the next of them; nothing ends a text."""
    table_VV = np.random.default_rng(0).dirichlet(np.full(257, 0.3), 257) + 1e-3
    for before, after in zip(LETTERS, LETTERS[1:] + LETTERS[:1], strict=True):
        table_VV[ord(before), ord(after)] += 3
    return table_VV / table_VV.sum(-1, keepdims=True)


TABLE = _table()


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel(CONFIG, bigram_params(CONFIG, TABLE), BYTES)


@pytest.fixture(scope="module")
def requests(lm: LanguageModel) -> Requests:
    return Requests(Scorer(lm.served, BYTES), lm.engine(4))


def logprob(text: str, start: int) -> float:
    ids = [256, *text.encode()] if start == 0 else list(text.encode())
    start = max(start, 1)
    return float(np.log(TABLE[ids[start - 1 : -1], ids[start:]]).sum())


def test_a_continuation_is_scored_after_its_text_and_told_whether_it_is_greedy(requests: Requests) -> None:
    found = requests.loglikelihood([("abc", "def"), ("abc ", "d"), ("", "ab"), ("x" * 40, "def")])
    expected = [
        logprob("abcdef", 3), logprob("abc d", 3), logprob("ab", 0), logprob("xdef", 1),
    ]  # fmt: skip
    assert [value for value, _ in found] == pytest.approx(expected, rel=1e-5)
    assert [greedy for _, greedy in found] == [True, False, False, False]


def test_a_whole_text_is_scored_in_windows_whatever_its_length(requests: Requests) -> None:
    texts = ["a", "abcd" * 20, "", "efgh" * 8]
    found = requests.rolling(texts)
    assert found == pytest.approx([logprob(text, 0) if text else 0.0 for text in texts], rel=1e-5)


def test_answers_end_at_their_own_stop_strings_or_lengths(requests: Requests) -> None:
    found = requests.generate(
        [
            ("ab", {"until": ["."], "max_gen_toks": 20}),
            ("ab", {"until": "fg", "max_gen_toks": 20}),
            ("c", {"max_gen_toks": 4, "do_sample": False, "temperature": 0.7}),
            ("x" * 40 + "ab", {"until": ["."], "max_gen_toks": 20}),  # its beginning is cut
        ]
    )
    assert found == ["cdefgh", "cde", "defg", "cdefgh"]


def test_settings_that_are_not_understood_or_leave_no_room_are_refused(requests: Requests) -> None:
    with pytest.raises(ConfigError, match=r"the task's settings beams, penalty: "):
        requests.generate([("a", {"penalty": 1, "beams": 2})])
    with pytest.raises(ConfigError, match="max_gen_toks = 256: the model's context is 32"):
        requests.generate([("a", {})])


def test_the_harnesss_results_become_figures() -> None:
    results = {
        "alias": "mine", "acc,none": 0.5, "acc_stderr,none": 0.1, "acc,strict": 1, "ppl,none": 3.5,
        "ppl_stderr,none": "N/A", "name": "x",
    }  # fmt: skip
    found = harness._figures("mine", results, 2, "0.4", 7)
    assert [(figure.name, figure.value, figure.standard_error) for figure in found] == [
        ("lm-eval:mine/acc", 0.5, 0.1), ("lm-eval:mine/acc,strict", 1.0, None),
        ("lm-eval:mine/ppl", 3.5, None),
    ]  # fmt: skip
    assert "lm-evaluation-harness 0.4, 2 shots; only the first 7" in found[0].protocol


def test_without_the_harness_it_says_what_to_install(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'jaxgpt\[eval\]'"):
        jaxgpt.evaluate(lm, tasks=["lm-eval:arc_easy"])
    assert exit_code("evaluate", "no-model", "--tasks", "lm-eval:arc_easy") == 2  # before a model is read
    assert "pip install 'jaxgpt[eval]'" in capsys.readouterr().err


CHOICES = """
task: letters
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_target: "{{label}}"
doc_to_choice: "{{choices}}"
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
TEXTS = """
task: letters_text
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]
"""
ANSWERS = """
task: letters_answer
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["."], max_gen_toks: 8}
metric_list: [{metric: exact_match}]
"""
ITEMS = [
    {"text": "ab", "choices": ["cd", "xy", "dc"], "label": 0, "answer": "cdefgh"},
    {"text": "ef", "choices": ["hg", "gh.", "q"], "label": 0, "answer": "gh"},
    {"text": "a", "choices": ["b", "z"], "label": 0, "answer": "no"},
]


@pytest.mark.filterwarnings("ignore")
def test_the_harness_runs_tasks_of_ones_own_on_a_model(lm: LanguageModel, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    (tmp_path / "items.json").write_text("\n".join(map(json.dumps, ITEMS)))
    for number, task in enumerate((CHOICES, TEXTS, ANSWERS)):
        text = task.replace("FILE", str(tmp_path / "items.json"))
        (tmp_path / f"{number}.yaml").write_text(text)
    tasks = ["lm-eval:letters", "lm-eval:letters_text", "lm-eval:letters_answer"]
    found = jaxgpt.evaluate(lm, tasks=tasks, data_dir=tmp_path)
    assert found["lm-eval:letters/acc"].value == pytest.approx(2 / 3)
    assert found["lm-eval:letters/acc"].standard_error == pytest.approx(1 / 3)
    assert found["lm-eval:letters_answer/exact_match"].value == pytest.approx(2 / 3)
    nats = -sum(logprob(str(item["text"]), 0) for item in ITEMS)
    value = found["lm-eval:letters_text/word_perplexity"].value
    assert value == pytest.approx(math.exp(nats / 3), rel=1e-5)
    with pytest.raises(ConfigError, match="no lm-eval task lettres"):
        jaxgpt.evaluate(lm, tasks=["lm-eval:lettres"], data_dir=tmp_path)
