"""`jaxgpt generate`: its flags reach the engine; text alone goes to stdout; answers stand alone."""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from command_line import exit_code
from rounding import rounded_to_int8

from jaxgpt.config import GPTConfig
from jaxgpt.inference.beam import beam_search
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.prompts import FEW_SHOT_STOP, few_shot_prompt
from jaxgpt.inference.sampling import Sampling
from jaxgpt.inference.served import Served
from jaxgpt.language_model import LanguageModel
from jaxgpt.model.gpt import define
from jaxgpt.text.tokenizer import RankTokenizer
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.verbs.flags import SamplingFlags

BYTES = load_tokenizer("bytes")


@pytest.fixture
def generate(lm_folder: Path, capfdbinary: Any) -> Any:
    """Run the verb; what it wrote to stdout and to stderr."""

    def run(*argv: Any, model: Path = lm_folder, code: int = 0) -> tuple[str, str]:
        assert exit_code("generate", model, *argv) == code
        out, err = capfdbinary.readouterr()
        return out.decode(), err.decode()

    return run


def test_ids_that_the_tokenizer_lacks_are_not_drawn(generate: Any, tmp_path: Path) -> None:
    config = GPTConfig(vocab=300, context=64, layers=1, heads=1, width=8)
    LanguageModel(config, jax.jit(define(config).init)(jax.random.key(3)), BYTES).save(tmp_path / "larger")
    out, _ = generate(
        "ab", "--temperature", 100, "--max-new-tokens", 200, "--seed", 1, model=tmp_path / "larger"
    )
    assert len(out) > 2


def test_every_setting_of_sampling_has_its_flag(generate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given values other than the defaults, each reaches the engine."""
    seen: list[Any] = []
    monkeypatch.setattr(Engine, "run", lambda self, requests: seen.extend(requests) or (_ for _ in ()))
    wanted = Sampling(
        temperature=0.5,
        top_k=7,
        top_p=0.8,
        min_p=0.1,
        repetition_penalty=1.5,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
    )
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in dataclasses.asdict(wanted).items()]
    generate("a", *flags, "--seed", "5", "--max-new-tokens", "3", "--logprobs", "2")
    (request,) = seen
    assert request.sampling == wanted
    assert (request.seed, request.max_new_tokens, request.logprobs, request.prompt) == (5, 3, 2, (97,))
    defaults = {field.name for field in dataclasses.fields(SamplingFlags)}
    assert defaults >= {field.name for field in dataclasses.fields(Sampling)}


def test_streamed_or_together_each_prompt_gets_its_text(lm: LanguageModel, generate: Any) -> None:
    prompts = ["ab", "c", "d <|endoftext|> é"]
    texts = lm.generate(prompts, max_new_tokens=30, seed=1)
    expected = "\n".join(
        f"==> prompt {number}, seed {number} <==\n{prompt}{text}\n"
        for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True), 1)
    )
    for way in ("--stream", "--no-stream"):
        assert generate(*prompts, way, "--max-new-tokens", 30, "--seed", 1) == (expected, "")


def test_text_ends_before_any_of_the_stop_strings(lm: LanguageModel, generate: Any) -> None:
    (whole,) = lm.generate(["ab"], max_new_tokens=30, temperature=0)
    late, early = whole[20:22], whole[8:11]
    end = min(whole.index(late), whole.index(early))
    for way in ("--stream", "--no-stream"):
        out, _ = generate(
            "ab", "--temperature", 0, "--max-new-tokens", 30, way, "--stop", late, "--stop", early
        )
        assert out == "ab" + whole[:end] + "\n"


def test_an_answer_to_a_query_is_written_alone(lm: LanguageModel, generate: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"input": "1", "output": "2"}\n{"input": "3", "output": "4"}\n')
    prompts = [few_shot_prompt(q, instruction="Add", examples=[("1", "2"), ("3", "4")]) for q in ("5", "6")]
    texts = lm.generate(prompts, max_new_tokens=9, temperature=0, stop=FEW_SHOT_STOP)
    flags = (
        "--examples",
        tmp_path / "a.jsonl",
        "--instruction",
        "Add",
        "--temperature",
        0,
        "--max-new-tokens",
        9,
    )
    for way in ("--stream", "--no-stream"):
        out, _ = generate("5", "6", *flags, way)
        answers = [text.removeprefix(" ") for text in texts]
        assert out == f"==> prompt 1 <==\n{answers[0]}\n\n==> prompt 2 <==\n{answers[1]}\n"
    (zero_shot,) = lm.generate(
        [few_shot_prompt("5", instruction="Add")], max_new_tokens=9, temperature=0, stop=FEW_SHOT_STOP
    )
    assert generate("5", "--instruction", "Add", *flags[4:])[0] == zero_shot.removeprefix(" ") + "\n"


class Scripted:
    """An engine that writes a text, whatever it is asked."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, *args: Any, **settings: Any) -> "Scripted":
        return self

    def run(self, requests: Any) -> Any:
        from jaxgpt.inference.requests import NewToken

        for token in BYTES.encode(self.text):
            yield 0, NewToken(1, token, None, (), None)

    def cancel(self, number: int) -> None:
        pass


@pytest.mark.parametrize(
    ("written", "answer"), [(" 4\n\nInput: 5", "4"), ("4", "4"), ("  4\nInput:", " 4"), (" é  ", "é  ")]
)
def test_an_answer_ends_with_its_block_and_loses_the_space_of_the_layout(
    written: str, answer: str, generate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxgpt.inference.engine.Engine", Scripted(written))
    assert generate("2 + 2", "--instruction", "Add.", "--seed", 0) == (answer + "\n", "")


def test_log_probabilities_are_those_of_the_text(lm: LanguageModel, generate: Any) -> None:
    out, err = generate("ab", "c", "--logprobs", 3, "--temperature", 0, "--max-new-tokens", 5)
    lines = [json.loads(line) for line in out.splitlines()]
    assert err == "" and [line["prompt"] for line in lines] == [0] * 5 + [1] * 5
    ids = [*BYTES.encode("ab"), *(line["token"] for line in lines[:5])]
    logprobs_TV = np.asarray(jax.nn.log_softmax(lm.logits(np.array([ids])), axis=-1))[0]
    for place, line in enumerate(lines[:5]):
        assert set(line) == {"prompt", "sample", "token", "text", "logprob", "alternatives"}
        assert line["text"] == BYTES.decode([line["token"]])
        expected_V = logprobs_TV[1 + place]
        assert line["logprob"] == pytest.approx(expected_V[line["token"]], abs=1e-4)
        assert [token for token, _ in line["alternatives"]] == np.argsort(-expected_V)[:3].tolist()
        assert line["alternatives"][0] == [line["token"], line["logprob"]]  # greedy


@pytest.mark.parametrize("way", ["--stream", "--no-stream"])
def test_lines_end_with_the_token_that_completes_a_stop_string(
    lm: LanguageModel, generate: Any, way: str
) -> None:
    flags = ("--logprobs", 0, "--temperature", 0, "--max-new-tokens", 30, way)
    whole, _ = generate("ab", *flags)
    text = "".join(json.loads(line)["text"] for line in whole.splitlines())
    stop = next(text[at : at + 2] for at in range(3, 28) if text[at : at + 2].isascii())
    out, _ = generate("ab", *flags, "--stop", stop)
    assert len(out.splitlines()) == text.index(stop) + 2
    assert whole.startswith(out)


def test_int8_writes_what_an_int8_engine_does(lm: LanguageModel, generate: Any) -> None:
    engine = Engine(Served.of(lm.config, lm.params, int8=True), slots=1, ends={256})
    request = lm.request("ab", max_new_tokens=5, sampling=Sampling(temperature=0))
    request = dataclasses.replace(request, logprobs=0)
    expected = [(new.token, new.logprob) for _, new in engine.run([request])]
    out, _ = generate("ab", "--int8", "--logprobs", 0, "--temperature", 0, "--max-new-tokens", 5)
    assert [(line["token"], line["logprob"]) for line in map(json.loads, out.splitlines())] == expected
    plain, _ = generate("ab", "--logprobs", 0, "--temperature", 0, "--max-new-tokens", 5)
    assert plain != out


@pytest.mark.parametrize(
    ("flags", "code", "why"),
    [
        (["--max-new-tokens", "-1"], 2, "error: --max-new-tokens = -1"),
        (["--seed", str(2**63)], 2, f"seed = {2**63}"),
        (["-n", "0"], 2, "error: -n = 0"),
        (["--logprobs", "21"], 2, "logprobs = 21"),
        (["--min-p", "2"], 2, "error: --min-p = 2.0"),
        (["--examples", "nothing.jsonl"], 66, "nothing.jsonl"),
        (["--beams", "-1", "--max-new-tokens", "9"], 2, "beams = -1"),
        (["--beams", "2", "--int8"], 2, "--beams with --int8"),
        (["--beams", "2", "--draft", "gpt2"], 2, "--beams with --draft"),
        (["--draft", "gpt2", "--logprobs", "1"], 2, "--draft with --logprobs"),
        (
            ["b" * 60, "--beams", "2", "--max-new-tokens", "9"],
            2,
            "after 60 tokens of prompt 2: the context has 64 tokens",
        ),
    ],
)
@pytest.mark.parametrize("way", ["--stream", "--no-stream"])
def test_what_cannot_be_is_refused_before_anything_is_written(
    flags: list[str], code: int, why: str, way: str, generate: Any
) -> None:
    out, err = generate("a", *flags, way, code=code)
    assert out == "" and why in err


def test_beams_find_the_text_that_beam_search_finds(lm: LanguageModel, generate: Any, tmp_path: Path) -> None:
    params = jax.tree.map(
        lambda leaf: leaf / 5, lm.params
    )  # logits that differ less: greedy text is not the best
    LanguageModel(lm.config, params, BYTES).save(tmp_path / "soft")
    soft = Served.of(lm.config, params)
    search = {"beams": 4, "max_new_tokens": 12, "length_penalty": 0.5, "ends": {256}}
    a, q = (BYTES.decode(beam_search(soft, BYTES.encode(p), **search)[0].tokens) for p in ("ab", "q"))
    flags = ("--beams", 4, "--length-penalty", 0.5, "--max-new-tokens", 12)
    for way in ("--stream", "--no-stream"):
        out, _ = generate("ab", "q", *flags, way, model=tmp_path / "soft")
        assert out == f"==> prompt 1 <==\nab{a}\n\n==> prompt 2 <==\nq{q}\n"
    greedy, _ = generate("ab", "q", "--temperature", 0, "--max-new-tokens", 12, model=tmp_path / "soft")
    assert greedy != out
    assert generate("ab", *flags, "--max-new-tokens", 0)[0] == "ab\n"


def test_a_draft_leaves_greedy_text_as_it_is(
    lm: LanguageModel, lm_folder: Path, generate: Any, tmp_path: Path
) -> None:
    other = jax.jit(define(lm.config).init)(jax.random.key(9))
    LanguageModel(lm.config, other, BYTES).save(tmp_path / "other")
    flags = ("ab", "q", "--temperature", 0, "--max-new-tokens", 30)
    plain, _ = generate(*flags)
    for draft, accepted in (
        (lm_folder, "100% of its tokens were accepted; the model ran 0.2"),
        (tmp_path / "other", "draft: "),
    ):
        text, told = generate(*flags, "--draft", draft)
        assert text == plain and told.count(accepted) == 1
    stop = plain.splitlines()[1][4:6]
    text, told = generate("ab", *flags[2:], "--draft", lm_folder, "--stop", stop)
    assert text == generate("ab", *flags[2:], "--stop", stop)[0] and "accepted" in told


def test_a_draft_needs_the_same_tokenizer_and_no_penalties(
    lm_folder: Path, generate: Any, tmp_path: Path
) -> None:
    config = GPTConfig(vocab=258, context=64, layers=1, heads=1, width=8)
    pairs = RankTokenizer({**BYTES.ranks, b"ab": 256})
    LanguageModel(config, jax.jit(define(config).init)(jax.random.key(3)), pairs).save(tmp_path / "pairs")
    out, err = generate("ab", "--draft", tmp_path / "pairs", "--max-new-tokens", 5, code=2)
    assert not out and "it has another tokenizer" in err
    out, err = generate("ab", "--draft", lm_folder, "--max-new-tokens", 5, "--presence-penalty", 1, code=2)
    assert not out and "penalties" in err and "accepted" not in err


def test_no_new_tokens_are_no_new_text(generate: Any) -> None:
    assert generate("a", "--max-new-tokens", 0, "--temperature", 0) == ("a\n", "")


def test_samples_of_a_prompt_differ_and_can_be_made_again(lm: LanguageModel, generate: Any) -> None:
    flags = ("--temperature", 10, "--top-k", 0, "--max-new-tokens", 20)  # hot: 300 seeds wrote 300 texts
    out, err = generate("a", "b", "-n", 2, *flags)
    seed = int(err.split()[1])
    assert err == f"seed {seed} (--seed {seed} writes the same again)\n"
    seeds = [seed + number for number in range(4)]
    heads = [f"prompt {prompt}, sample {sample}" for prompt in (1, 2) for sample in (1, 2)]
    assert [line for line in out.split("\n") if line.startswith("==>")] == [
        f"==> {head}, seed {own} <==" for head, own in zip(heads, seeds, strict=True)
    ]
    assert generate("a", "b", "--n", 2, "--no-stream", *flags, "--seed", seed) == (out, "")
    assert generate("b", *flags, "--seed", seeds[2])[0].rstrip("\n") in out
    (one, other) = (lm.generate("a", temperature=10, top_k=0, max_new_tokens=20, seed=s) for s in seeds[:2])
    assert one in out and other in out
    drawn = Sampling(temperature=10, top_k=0)  # other ids, though all of them may be no whole characters
    first, second = (list(lm.stream("a", max_new_tokens=20, sampling=drawn, seed=s)) for s in seeds[:2])
    assert first != second
    assert generate("a", *flags)[1] != err


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """Something that stands in standard input, which is a pipe."""
    with contextlib.ExitStack() as stack:

        def typed(content: bytes) -> None:
            reader, writer = os.pipe()
            with os.fdopen(writer, "wb") as file:
                file.write(content)
            monkeypatch.setattr(sys, "stdin", stack.enter_context(os.fdopen(reader, encoding="ascii")))

        yield typed


def test_a_pipe_and_a_dash_are_prompts(generate: Any, typed: Callable[[bytes], None]) -> None:
    flags = ("--max-new-tokens", 0, "--temperature", 0)
    for words, text in (
        ((), "é b"),
        (("-",), "é b"),
        (("a", "-"), "==> prompt 1 <==\na\n\n==> prompt 2 <==\né b"),
    ):
        typed("é b\n".encode())
        assert generate(*words, *flags)[0] == text + "\n"
    typed(b"c\r\n")
    assert generate("a", *flags)[0] == "a\n"  # a prompt is given: the pipe is somebody else's
    assert sys.stdin.read() == "c\n"
    typed(b"\xff")
    assert "input is not UTF-8" in generate("-", *flags, code=65)[1]
    with open(os.devnull) as nothing, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", nothing)
        assert generate(*flags)[0] == "\n"


def test_a_prompt_longer_than_the_context_is_told(generate: Any) -> None:
    out, err = generate("a" * 70, "--max-new-tokens", 1, "--seed", 1)
    assert out.startswith("a" * 70) and err.startswith("a prompt has 70 tokens: only the last 64")
    assert generate("a" * 64, "--max-new-tokens", 1, "--seed", 1)[1] == ""


def test_beams_lay_the_parameters_out_once_for_all_prompts(
    generate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts: list[Served] = []
    real = Served.of
    monkeypatch.setattr(
        Served, "of", lambda *args, **more: layouts.append(real(*args, **more)) or layouts[-1]
    )
    generate("ab", "q", "xyz", "--beams", 2, "--max-new-tokens", 3)
    assert len(layouts) == 1


@pytest.fixture(scope="module")
def mild() -> LanguageModel:
    """A model of small numbers, which rounding moves little, with heads that divide over two devices."""
    config = GPTConfig(vocab=257, context=64, layers=2, heads=2, width=16)
    params = jax.jit(define(config).init)(jax.random.key(3))
    return LanguageModel(config, jax.tree.map(lambda leaf: leaf * 4, params), BYTES)


@pytest.mark.parametrize(
    ("flags", "changed", "tolerance"),
    [
        # In float32, sums in another order differ by about 1e-6 nats here.
        (("--tensor", "2"), lambda lm: lm, 1e-5),
        (("--int8",), lambda lm: LanguageModel(lm.config, rounded_to_int8(lm.params), BYTES), 1e-5),
        # In bfloat16 a number has 8 bits. Two orders of the same sums differ by about 0.01 nats here, nearly
        # as much as each of them does from float32: a closer comparison would test the order of the sums.
        (
            ("--compute-dtype", "bfloat16"),
            lambda lm: LanguageModel(
                dataclasses.replace(lm.config, compute_dtype="bfloat16"), lm.params, BYTES
            ),
            0.05,
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_another_layout_has_the_log_probabilities_of_the_model_it_stands_for(
    mild: LanguageModel,
    generate: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    changed: Callable[[LanguageModel], LanguageModel],
    tolerance: float,
) -> None:
    mild.save(tmp_path / "mild")
    ran: list[Served] = []
    build = Engine.__init__
    monkeypatch.setattr(
        Engine, "__init__", lambda self, served, **more: ran.append(served) or build(self, served, **more)
    )
    out, _ = generate(
        "Hello", "--max-new-tokens", 8, "--logprobs", 1, "--temperature", 0, *flags, model=tmp_path / "mild"
    )
    lines = [json.loads(line) for line in out.splitlines()]
    ids = BYTES.encode("Hello") + [line["token"] for line in lines]

    def logprobs_of(model: LanguageModel) -> np.ndarray:
        logprobs_TV = np.asarray(jax.nn.log_softmax(model.logits(np.array([ids])), axis=-1))[0, 4:-1]
        return np.take_along_axis(logprobs_TV, np.array(ids[5:])[:, None], axis=1)[:, 0]

    found = np.array([line["logprob"] for line in lines])
    np.testing.assert_allclose(found, logprobs_of(changed(mild)), rtol=0, atol=tolerance)
    (served,) = ran
    assert served.mesh.shape["tensor"] == (2 if "--tensor" in flags else 1)
    if "--tensor" not in flags:  # the others change the numbers by more than the rounding of float32
        assert np.abs(found - logprobs_of(mild)).max() > 1e-3


def test_more_devices_than_there_are_are_refused(generate: Any) -> None:
    out, err = generate("Hello", "--tensor", "9", code=2)
    assert not out and "tensor = 9: there are 8 devices" in err
