"""Tasks on a bigram model made by hand, whose every figure can be computed from its table."""

import dataclasses
import http.server
import io
import json
import math
import re
import tarfile
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from bigrams import bigram_config, bigram_params
from command_line import exit_code

import jaxgpt
from jaxgpt.config import GPTConfig
from jaxgpt.errors import ConfigError, DataError, MissingError
from jaxgpt.evaluation.figures import Figure
from jaxgpt.evaluation.tasks import cbt, enwik8, hellaswag, lambada, lm1b, ptb, sources, wikitext
from jaxgpt.evaluation.tasks.scorer import Scorer
from jaxgpt.evaluation.tasks.table import TASKS, chosen, open_tasks
from jaxgpt.evaluation.tasks.task import Task, figures_of
from jaxgpt.evaluation.windows import Losses
from jaxgpt.inference.served import Served
from jaxgpt.language_model import LanguageModel
from jaxgpt.model.gpt import define
from jaxgpt.text.tokenizer import RankTokenizer, gpt2_tokenizer

# Bytes, and one token more: a stop word with its space.
TOKENIZER = RankTokenizer({bytes([byte]): byte for byte in range(256)} | {b" a": 256})
END = TOKENIZER.beginning
CONFIG = bigram_config(TOKENIZER.vocab, 64)


def _table() -> np.ndarray:
    """Most likely, " cat" follows a space, and the stop word " a" comes before a space after "b"."""
    table_VV = np.random.default_rng(0).dirichlet(np.full(CONFIG.vocab, 0.3), CONFIG.vocab) + 1e-3
    for before, after in (" c", "ca", "at", "e "):
        table_VV[ord(before), ord(after)] += 3
    table_VV[ord("b"), 256] += 4
    table_VV[ord("b"), ord(" ")] += 3
    return table_VV / table_VV.sum(-1, keepdims=True)


TABLE = _table()


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel(CONFIG, bigram_params(CONFIG, TABLE), TOKENIZER)


@pytest.fixture(scope="module")
def scorer(lm: LanguageModel) -> Scorer:
    return Scorer(lm.served, TOKENIZER)


def logprob(ids: Sequence[int], start: int = 1) -> float:
    """Of the ids from `start` on, each after the one before it."""
    return float(np.log(TABLE[ids[start - 1 : -1], ids[start:]]).sum())


def greedy(ids: Sequence[int], start: int, barred: Sequence[int] = ()) -> bool:
    """Whether each id from `start` on is the most probable one, without the barred ones for the first."""
    best = []
    for place in range(start, len(ids)):
        row = TABLE[ids[place - 1]].copy()
        row[list(barred) if place == start else []] = 0
        best.append(row.argmax())
    return best == list(ids[start:])


def measured(
    task: Task, protocol: str, scorer: Scorer, documents: Any, config: GPTConfig = CONFIG
) -> dict[str, Figure]:
    figures = figures_of(task, protocol, scorer, documents, config)
    names = tuple(figure.name.partition("/")[2] for figure in figures)
    assert names == task.protocols[protocol].figures
    return {figure.name.partition("/")[2]: figure for figure in figures}


def ratio_error(nats: Sequence[float], counts: Sequence[int]) -> float:
    """The standard error of the nats of a unit: of a ratio of two sums over so many windows or documents."""
    mean, n = sum(nats) / sum(counts), len(nats)
    squares = sum((each - mean * count) ** 2 for each, count in zip(nats, counts, strict=True))
    return math.sqrt(n / (n - 1) * squares) / sum(counts)


# LAMBADA

PASSAGES = ["We see a b cat", "She has the cat", "He sees the dog", "\u201cOh\u201d, said a b cat"]


def _last_words(texts: Sequence[str], barred: Sequence[int]) -> tuple[list[bool], list[float]]:
    right, logprobs = [], []
    for text in texts:
        ids = TOKENIZER.encode(text)
        start = len(TOKENIZER.encode(text.rsplit(" ", 1)[0]))
        right.append(greedy(ids, start, barred))
        logprobs.append(logprob(ids, start))
    return right, logprobs


@pytest.mark.parametrize(("protocol", "expected"), [("harness", 1), ("paper", 3)])
def test_lambada_scores_the_last_word_after_all_before_it(
    scorer: Scorer, protocol: str, expected: int
) -> None:
    texts = PASSAGES if protocol == "harness" else [lambada.detokenized(text) for text in PASSAGES]
    right, logprobs = _last_words(texts, [256] if protocol == "paper" else [])
    assert sum(right) == expected  # the stop word " a" takes the place of " cat" after "b"
    found = measured(lambada.TASK, protocol, scorer, PASSAGES)
    assert found["accuracy"].value == expected / 4
    assert found["accuracy"].standard_error == pytest.approx(np.std(right, ddof=1) / 2)
    value = math.exp(-np.mean(logprobs))
    assert found["perplexity"].value == pytest.approx(value, rel=1e-5)
    assert found["perplexity"].standard_error == pytest.approx(value * np.std(logprobs, ddof=1) / 2, rel=1e-4)


def test_lambadas_last_token_is_scored_after_all_tokens_before_it(scorer: Scorer) -> None:
    found = measured(lambada.TASK, "last-token", scorer, PASSAGES)
    assert found["accuracy"].value == 3 / 4  # the t of cat, but not the g of dog
    last = [logprob(TOKENIZER.encode(text)[-2:]) for text in PASSAGES]
    assert found["perplexity"].value == pytest.approx(math.exp(-np.mean(last)), rel=1e-5)


def test_lambadas_last_word_is_that_of_the_detokenized_text(scorer: Scorer) -> None:
    texts = ["She saw a b \u201ccat\u201d", "We see a cat "]
    right, logprobs = _last_words([lambada.detokenized(text) for text in texts], [256])
    found = measured(lambada.TASK, "paper", scorer, texts)
    assert found["accuracy"].value == np.mean(right)
    assert found["perplexity"].value == pytest.approx(math.exp(-np.mean(logprobs)), rel=1e-5)


@pytest.mark.parametrize("protocol", lambada.TASK.protocols)
def test_a_limit_leaves_the_first_passages(scorer: Scorer, protocol: str) -> None:
    found = measured(lambada.TASK, protocol, dataclasses.replace(scorer, limit=2), PASSAGES)
    first = measured(lambada.TASK, protocol, scorer, PASSAGES[:2])
    assert [figure.value for figure in found.values()] == [figure.value for figure in first.values()]
    assert found["perplexity"].value != measured(lambada.TASK, protocol, scorer, PASSAGES)["perplexity"].value


def test_of_gpt2s_tokens_149_are_stop_words() -> None:
    gpt2 = gpt2_tokenizer()
    barred = lambada.barred_ids(gpt2)
    assert len(set(barred)) == 149
    assert gpt2.encode(" the")[0] in barred and gpt2.encode(" cat")[0] not in barred
    assert lambada.barred_ids(TOKENIZER) == [256]


def test_lambada_is_detokenized() -> None:
    assert lambada.detokenized(" \u201cOh\u201d, he said. ") == '\n"Oh", he said.'


# The Children's Book Test


def _cbt_file(queries: Sequence[tuple[str, str, str]]) -> bytes:
    lines = []
    for query, answer, words in queries:
        lines += [f"{number} It was cold ." for number in range(1, 21)]
        lines += [f"21 {query}\t{answer}\t\t{words}", ""]
    return "\n".join(lines).encode()


QUERIES = [
    ("He saw a XXXXX , `` he said ''", "cat", "cat|dog|sea"),
    ("The XXXXX ca n't run .", "door", "door|cat|bird"),
    ("XXXXX 's at sea", "Tom", "Ann|Tom"),
]


def test_cbt_takes_the_word_that_makes_the_rest_of_the_sentence_likely(scorer: Scorer) -> None:
    questions = cbt.read(_cbt_file(QUERIES))
    assert [question.label for question in questions] == [0, 0, 1] and len(questions[0].sentences) == 20
    before = "It was cold. " * 20
    texts = ['He saw a XXXXX, "he said"', "The XXXXX can't run.", "XXXXX's at sea"]
    chosen_words = []
    for text, question in zip(texts, questions, strict=True):
        start = len(TOKENIZER.encode(before + text.split("XXXXX")[0].rstrip()))
        costs = [
            logprob(TOKENIZER.encode(before + text.replace("XXXXX", word)), start) for word in question.words
        ]
        chosen_words.append(int(np.argmax(costs)))
    right = [word == question.label for word, question in zip(chosen_words, questions, strict=True)]
    assert 0 < sum(right) < 3
    assert measured(cbt.CN, "paper", scorer, questions)["accuracy"].value == pytest.approx(sum(right) / 3)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("`` Oh , '' said he .", '"Oh," said he.'),
        ("`` It 's mine ! ''", '"It\'s mine!"'),
        ("She did n't know we 'd come ; we 'll go .", "She didn't know we'd come; we'll go."),
        ("the boys ' house -LRB- old -RRB- fell", "the boys' house (old) fell"),
        ("a XXXXX -- is it ?", "a XXXXX -- is it?"),
        ("` Go ' , he said : now", "'Go', he said: now"),
    ],
)
def test_cbt_is_detokenized(given: str, written: str) -> None:
    assert cbt.detokenized(given) == written


def test_damaged_questions_are_named_by_their_lines() -> None:
    content = _cbt_file([QUERIES[0], ("no blank", "cat", "cat|dog"), ("XXXXX", "cow", "cat|dog")])
    with pytest.raises(DataError, match=r"line 43: no question.*line 65: no question"):
        cbt.read(content)
    with pytest.raises(DataError, match="it has no items"):
        cbt.read(b"\n")


# WikiText

WIKI = (
    b" \n = Robert = \n \n Robert 's cat , a b @-@ cat , sat . \n \n"
    b' = = Life = = \n \n It was " cold " . \n \n = The Sea = \n \n The sea ( cold ) @,@ deep . \n'
)


def test_wikitext_is_split_into_articles_at_headings_of_the_first_level() -> None:
    pages = wikitext.articles_of(wikitext.read(WIKI))
    assert [page.split("\n")[0] for page in pages] == [" = Robert = ", " = The Sea = "]
    assert " = = Life = = " in pages[0]


def test_wikitext_by_article_divides_by_the_words_of_the_original(scorer: Scorer) -> None:
    pages = wikitext.articles_of(wikitext.read(WIKI))
    nats = [-logprob([END, *TOKENIZER.encode(wikitext.detokenized(page))]) for page in pages]
    words = [len(re.split(r"\s+", page)) for page in pages]
    lines = wikitext.read(WIKI)
    for task, protocol in (("wikitext-2", "harness"), ("wikitext-103", "harness"), ("wikitext-103", "paper")):
        found = measured(TASKS[task], protocol, scorer, lines)
        assert found["word_perplexity"].value == pytest.approx(math.exp(sum(nats) / sum(words)), rel=1e-5)
        size = sum(len(page.encode()) for page in pages)
        assert found["bits_per_byte"].value == pytest.approx(sum(nats) / math.log(2) / size, rel=1e-5)
    one = measured(TASKS["wikitext-2"], "harness", dataclasses.replace(scorer, limit=1), lines)
    assert one["word_perplexity"].value == pytest.approx(math.exp(nats[0] / words[0]), rel=1e-5)
    assert "windows of 64, stride 64" in one["word_perplexity"].protocol
    assert "only the first 1" in one["word_perplexity"].protocol


def test_wikitext_2_of_the_paper_is_the_raw_text_for_each_token(scorer: Scorer) -> None:
    rows = [f"{line}\n" if line.strip() else "" for line in WIKI.decode().split("\n")[:-1]]
    ids = TOKENIZER.encode("\n\n".join(rows))
    found = measured(TASKS["wikitext-2"], "paper", scorer, wikitext.read(WIKI))["perplexity"]
    assert found.value == pytest.approx(math.exp(-logprob(ids) / (len(ids) - 1)), rel=1e-5)
    strided = measured(
        TASKS["wikitext-2"], "paper", dataclasses.replace(scorer, stride=16), wikitext.read(WIKI)
    )["perplexity"]
    assert strided.value == pytest.approx(found.value, rel=1e-5) and "stride 16" in strided.protocol
    first = measured(TASKS["wikitext-2"], "paper", dataclasses.replace(scorer, limit=2), wikitext.read(WIKI))
    assert first["perplexity"].value == pytest.approx(math.exp(-logprob(ids[:129]) / 128), rel=1e-5)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("the boys ' hats", "the boys' hats"),
        ("a 3 @-@ year 1 @,@ 500 @.@ 5 line", "a 3-year 1,500.5 line"),
        ("a : b ; c . d ! e ? f , g", "a: b; c. d! e? f, g"),
        ("( a b ) [ c ] { d } \" e \" ' f '", "(a b) [c] {d} \"e\" 'f'"),
        (" = = = = A = = = = ", " ==== A ==== "),
        (" = = = A = = = \n = = B = = ", " === A ===\n== B == "),
        ("5 ° N and N it 's", "5°N and 1 it's"),
    ],
)
def test_wikitext_is_detokenized(given: str, written: str) -> None:
    assert wikitext.detokenized(given) == written


# Penn Treebank, One Billion Word, enwik8


def test_ptb_is_scored_for_each_word_of_the_original(scorer: Scorer) -> None:
    text = " no it was n't a cat \n the cat 's at sea <unk> N N \n"
    ids = [END, *TOKENIZER.encode(" no it wasn't a cat\nthe cat's at sea ? 1 1 \n")]
    found = measured(ptb.TASK, "paper", scorer, ptb.read(text.encode()))["word_perplexity"]
    assert found.value == pytest.approx(math.exp(-logprob(ids) / 14), rel=1e-5)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (" the fund 's boys ' do n't \n go \n", " the fund's boys' don't\ngo \n"),
        ("a\\/b paid $ N or # N N N N to <unk> N ", "a/b paid $1 or #1 1 1 1 to ? 1 "),
    ],
)
def test_ptb_is_detokenized(given: str, written: str) -> None:
    assert ptb.detokenized(given) == written


def test_sentences_of_1bw_are_scored_alone_for_each_word_of_the_original(scorer: Scorer) -> None:
    sentences = lm1b.read(b" The cat sat , he said . \n\nIs it cold ?\n")
    assert sentences == ["The cat sat , he said .", "Is it cold ?"]
    nats = [-logprob([END, *TOKENIZER.encode(text)]) for text in ("The cat sat, he said.", "Is it cold?")]
    found = measured(lm1b.TASK, "paper", scorer, sentences)["word_perplexity"]
    assert found.value == pytest.approx(math.exp(sum(nats) / 11), rel=1e-5)
    error = ratio_error(nats, [7, 4]) * found.value
    assert found.standard_error == pytest.approx(error, rel=1e-4)
    one = measured(lm1b.TASK, "paper", dataclasses.replace(scorer, limit=1), sentences)["word_perplexity"]
    assert one.value == pytest.approx(math.exp(nats[0] / 7), rel=1e-5)


@pytest.mark.parametrize(("task", "protocol"), [("1bw", "paper"), ("wikitext-103", "harness")])
def test_the_last_window_of_a_long_document_is_full(task: str, protocol: str) -> None:
    seen: list[bool] = []

    def documents(texts: Sequence[str], *, full_last: bool) -> Losses:
        seen.append(full_last)
        return Losses(np.ones(len(texts)), np.ones(len(texts), int))

    scorer: Any = SimpleNamespace(limit=None, documents=documents)
    TASKS[task].protocols[protocol].measure(scorer, [" = A = ", "It is cold ."])
    assert seen == [True]


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("See http : / / a.b / c or https : / / d", "See http://a.b/c or https://d"),
        (
            "It 's Mr . Smith , who ? Yes ! Now : go ; he left .",
            "It's Mr. Smith, who? Yes! Now: go; he left.",
        ),
        ("Is it ?", "Is it?"),
        ("He said ' no way ' here", "He said 'no way' here"),
        ("Go !", "Go!"),
        ('He said " no way " ( to us ) [ sic ]', 'He said "no way" (to us) [sic]'),
        ("It costs $ 5 or £ 4 and / or", "It costs $5 or £4 and/or"),
    ],
)
def test_1bw_is_detokenized(given: str, written: str) -> None:
    assert lm1b.detokenized(given) == written


def test_enwik8_is_scored_for_each_byte_of_its_last_bytes(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert enwik8.TEST_BYTES == 5_000_000
    assert [TASKS[name].source.file for name in ("enwik8", "text8")] == ["enwik8", "text8"]
    monkeypatch.setattr(enwik8, "TEST_BYTES", 201)
    content = ("é" * 200 + "<page>A cat sat at the sea. Sätze</page>\n" * 2).encode()
    text = enwik8.read(content)
    assert len(text.encode()) == 200 and text.startswith("é")  # a cut character is left out
    ids = [END, *TOKENIZER.encode(text)]
    found = measured(enwik8.WIKI, "paper", scorer, text)["bits_per_byte"]
    assert found.value == pytest.approx(-logprob(ids) / math.log(2) / 200, rel=1e-5)
    assert "windows of 64, stride 64" in found.protocol  # 512 does not fit
    windows = [range(begin, min(begin + 64, len(ids) - 1)) for begin in range(0, len(ids) - 1, 64)]
    nats = [-logprob(ids[window.start : window.stop + 1]) for window in windows]
    error = ratio_error(nats, list(map(len, windows))) * (len(ids) - 1) / math.log(2) / 200
    assert found.standard_error == pytest.approx(error, rel=1e-4)
    assert [TASKS[name].protocols["paper"].stride for name in ("enwik8", "text8", "ptb")] == [512, 512, None]
    strided = measured(enwik8.WIKI, "paper", dataclasses.replace(scorer, stride=16), text)["bits_per_byte"]
    assert "windows of 64, stride 16" in strided.protocol
    first = measured(enwik8.WIKI, "paper", dataclasses.replace(scorer, limit=1), text)["bits_per_byte"]
    size = len(TOKENIZER.decode_bytes(ids[1:65]))
    assert first.value == pytest.approx(-logprob(ids[:65]) / math.log(2) / size, rel=1e-5)
    with pytest.raises(DataError, match="it has 201 bytes, and its last 201 are the test split"):
        enwik8.read(content[:201])
    for name in ("enwik8", "text8"):
        with pytest.raises(DataError, match=rf"a task's file \({name}\)"):
            TASKS[name].read(content[:201])


# HellaSwag

ROWS = [
    (
        "Sea",
        "A cat sat.",
        "the cat",
        ["is at sea. [step] It sat", "ran", "saw a [title] man  and a dog", "x"],
        3,
    ),
    ("Run", "He runs.", "", ["to the cat at the sea at the end", "a b", "no", "cat"], 3),
    ("Go", "We go.", "then we", ["cat", "go at once", "see the cat at the table", "stop"], 0),
]


def _row(row: tuple[str, str, str, list[str], int]) -> dict[str, Any]:
    activity, first, second, endings, label = row
    whole = f"{first} {second}".strip()
    return {
        "activity_label": activity, "ctx_a": first, "ctx_b": second, "ctx": whole, "endings": endings,
        "label": label, "ind": 3, "split": "val",
    }  # fmt: skip


def _expected(protocol: str) -> tuple[list[int], list[int]]:
    """Which ending has the largest sum, and which the largest mean."""
    whole, mean = [], []
    for row in map(_row, ROWS):
        sums, sizes = [], []
        for ending in row["endings"]:
            if protocol == "harness":
                ctx = hellaswag.cleaned(
                    f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
                )
                ending = hellaswag.cleaned(ending)
            else:
                ctx = row["ctx"]
            before, after = TOKENIZER.encode(ctx), TOKENIZER.encode(f" {ending}")
            sums.append(logprob([*before, *after], len(before)))
            sizes.append(len(ending) if protocol == "harness" else len(after))
        whole.append(int(np.argmax(sums)))
        mean.append(int(np.argmax(np.array(sums) / sizes)))
    return whole, mean


@pytest.mark.parametrize("protocol", ["harness", "llm.c"])
def test_hellaswag_takes_the_likely_ending_by_its_sum_and_by_its_mean(scorer: Scorer, protocol: str) -> None:
    items = hellaswag.read("\n".join(json.dumps(_row(row)) for row in ROWS).encode())
    labels = [item.label for item in items]
    whole, mean = _expected(protocol)
    right = [
        np.mean([one == other for one, other in zip(found, labels, strict=True)]) for found in (whole, mean)
    ]
    assert right == pytest.approx([1, 2 / 3])
    found = measured(hellaswag.TASK, protocol, scorer, items)
    assert [found["accuracy"].value, found["accuracy_norm"].value] == pytest.approx(right)


def test_hellaswag_is_cleaned() -> None:
    assert hellaswag.cleaned(" How to go [title] Now  [step] run. ") == "How to go. Now  run."
    [item] = hellaswag.read(json.dumps(_row(ROWS[2]) | {"ctx_b": "then WE [x] "}).encode())
    assert hellaswag.query_of(item) == "Go: We go. Then we "


def test_damaged_items_are_named_by_their_lines() -> None:
    rows = [json.dumps(_row(ROWS[0])), "", '{"label": 1}', json.dumps(_row(ROWS[0]) | {"label": 4})]
    with pytest.raises(DataError, match=r"line 3: KeyError.*line 4: .*label 4 of 4 endings"):
        hellaswag.read("\n".join(rows).encode())
    with pytest.raises(DataError, match="line 1: ValueError"):
        lambada.read(b'{"text": "one"}')
    with pytest.raises(DataError, match="not UTF-8"):
        lambada.read(b"\xff")


# What a task reads, and what is shown


def test_white_space_before_a_continuation_belongs_to_it(scorer: Scorer) -> None:
    """And both are tokenized together: " a" is one token although the text ends in a space."""
    assert scorer.pair("see ", "a") == (TOKENIZER.encode("see"), [256])
    assert scorer.pair("", "at") == ([END], TOKENIZER.encode("at"))


def test_a_text_that_does_not_fit_is_cut_at_its_beginning() -> None:
    """A model that sees positions: the result is that of the last 65 ids."""
    config = GPTConfig(vocab=CONFIG.vocab, context=64, layers=1, heads=2, width=8, vocab_multiple=1)
    params = jax.tree.map(lambda leaf: 5 * leaf, jax.jit(define(config).init)(jax.random.key(1)))
    other = Scorer(Served.of(config, params), TOKENIZER)
    before = np.random.default_rng(2).integers(0, 256, 80).tolist()
    after = [3, 4]
    [whole], [cut] = other.continuations([(before, after)]), other.continuations([(before[-63:], after)])
    [shorter] = other.continuations([(before[-62:], after)])
    assert whole == cut and whole.logprob != pytest.approx(shorter.logprob, rel=1e-6)


def test_what_was_published_of_that_size_stands_beside_a_figure(scorer: Scorer) -> None:
    gpt2 = GPTConfig()
    assert (gpt2.layers, gpt2.width) == (12, 768)
    found = measured(lambada.TASK, "harness", scorer, PASSAGES, gpt2)
    assert (found["accuracy"].published, found["perplexity"].published) == (0.3256, 40.06)
    assert found["accuracy"].source.startswith("lm-evaluation-harness issue 2159")
    assert measured(lambada.TASK, "harness", scorer, PASSAGES)["accuracy"].published is None
    last = measured(lambada.TASK, "last-token", scorer, PASSAGES, gpt2)["perplexity"]
    assert last.published is None and last.source == ""


def test_every_protocol_tells_its_error_and_every_task_its_source() -> None:
    assert list(TASKS) == [
        "lambada", "cbt-cn", "cbt-ne", "wikitext-2", "wikitext-103", "hellaswag", "ptb", "enwik8",
        "text8", "1bw",
    ]  # fmt: skip
    for task in TASKS.values():
        for protocol in task.protocols.values():
            assert "\u00b1 is the standard error over" in protocol.says.format(windows="")
            for known in protocol.published.values():
                assert known.source and set(known.values) <= {"124M", "355M", "774M", "1558M"}


def test_tasks_are_chosen_by_name_and_protocol() -> None:
    assert [(task.name, protocol) for task, protocol in chosen(["cbt-cn", "lambada", "lambada:paper"])] == [
        ("cbt-cn", "paper"), ("lambada", "harness"), ("lambada", "paper"), ("lambada", "last-token"),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"no task lambda: .*did you mean lambada\?"):
        chosen(["lambda"])
    with pytest.raises(ConfigError, match=r"no protocol harnes of lambada: .*did you mean harness\?"):
        chosen(["lambada:harnes"])


def _zip(path: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("else.txt", b"no")
        archive.writestr(f"folder/{name}", content)


def _tgz(path: Path, name: str, content: bytes) -> None:
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(f"CBTest/data/{name}")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


def test_files_of_tasks_are_found_in_a_folder_by_name_or_in_their_archives(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "lambada_test.jsonl").write_text('{"text": "a cat"}\n')
    _zip(tmp_path / "wikitext-2-raw-v1.zip", "wiki.test.raw", WIKI)
    _tgz(tmp_path / "CBTest.tgz", "cbtest_NE_valid_2000ex.txt", _cbt_file(QUERIES))
    asked = open_tasks(["lambada:harness", "wikitext-103:paper", "cbt-ne"], tmp_path)
    assert asked[0].documents == ["a cat"] and len(asked[2].documents) == 3
    assert asked[1].documents == wikitext.read(WIKI)
    with pytest.raises(DataError, match=r"it has no cbtest_CN_valid_2000ex\.txt"):
        open_tasks(["cbt-cn"], tmp_path)
    (tmp_path / "CBTest.tgz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="a damaged archive"):
        open_tasks(["cbt-ne"], tmp_path)


def test_all_files_that_are_wanted_and_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        MissingError,
        match=r"3 of 3 task files .*no lambada_test.jsonl, no wiki.test.raw or wikitext-2-raw-v1.zip, "
        r"no enwik8 or enwik8.zip; put them there",
    ):
        open_tasks(["lambada", "wikitext-2", "wikitext-103", "enwik8"], tmp_path)
    with pytest.raises(MissingError, match="there is no such folder"):
        open_tasks(["lambada"], tmp_path / "none")


def test_without_a_folder_files_are_downloaded_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    _zip(tmp_path / "made.zip", "wiki.test.raw", WIKI)
    asked: list[str] = []
    content = (tmp_path / "made.zip").read_bytes()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    address = f"http://127.0.0.1:{server.server_port}/wiki.zip"
    download = dataclasses.replace(sources.WIKITEXT.download, address=address)
    task = TASKS["wikitext-2"]
    monkeypatch.setitem(TASKS, "wikitext-2", task._replace(source=task.source._replace(download=download)))
    try:
        for _ in range(2):
            assert open_tasks(["wikitext-2:paper"], None)[0].documents == wikitext.read(WIKI)
    finally:
        server.shutdown()
        server.server_close()
    assert asked == ["/wiki.zip"]
    kept = tmp_path / "cache" / "jaxgpt" / "wikitext-2-raw-v1.zip"
    kept.unlink()
    with pytest.raises(
        MissingError,
        match=r"the task file wiki.test.raw: cannot download .*put the file at .*raw-v1.zip by hand; "
        r"or name a folder that has wiki.test.raw or wikitext-2-raw-v1.zip with --data-dir",
    ):
        open_tasks(["wikitext-2"], None)


def test_the_command_and_python_measure_tasks_and_compare(
    lm: LanguageModel, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "lambada_test.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in PASSAGES)
    )
    lm.save(tmp_path / "model", format="jaxgpt")
    argv = [
        "--tasks",
        "lambada:paper, lambada:last-token",
        "--data-dir",
        tmp_path,
        "--json",
        tmp_path / "a.json",
    ]
    assert exit_code("evaluate", tmp_path / "model", *argv) == 0
    found, out = json.loads((tmp_path / "a.json").read_text()), capsys.readouterr().out
    assert found["lambada:paper/accuracy"] == found["lambada:last-token/accuracy"] == 0.75
    assert found["published"]["lambada:paper/accuracy"] == {
        "value": None, "source": "Radford et al. 2019, table 3; no public reproduction of it is known",
    }  # fmt: skip
    assert "published" in out and "lambada:paper, the last word of the de-tokenized text" in out
    assert "no public protocol gives it" in out
    in_python = jaxgpt.evaluate(lm, tasks=["lambada:paper"], data_dir=tmp_path, limit=3)
    assert in_python["lambada:paper/accuracy"].value == pytest.approx(2 / 3)
    for wrong in ({"limit": 0}, {"stride": 65}):
        with pytest.raises(ConfigError, match=r"limit = 0|stride = 65"):
            jaxgpt.evaluate(lm, tasks=["lambada:paper"], data_dir=tmp_path, **wrong)
    assert exit_code("evaluate", tmp_path / "model", "--tasks", "lambda") == 2
    assert "did you mean lambada?" in capsys.readouterr().err
