"""Bodies become calls, or errors that name the field and not its value; tokens become text and logprobs."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.inference.prompts import CHAT_STOP, chat_prompt
from jaxgpt.inference.requests import NewToken
from jaxgpt.inference.sampling import Sampling
from jaxgpt.inference.templates import Instruction, Own
from jaxgpt.serving.answers import Answer, Choice, Piece
from jaxgpt.serving.api import Reader
from jaxgpt.serving.call import Call, Limits, Prompt
from jaxgpt.serving.fields import ApiError, parse_object
from jaxgpt.serving.job import Look
from jaxgpt.text.chat_template import ChatTemplate
from jaxgpt.text.tokenizer import RankTokenizer

BYTES = RankTokenizer({bytes([byte]): byte for byte in range(256)})
END = BYTES.end_of_text
READER = Reader("tiny", BYTES, 256, Limits(choices=8, tokens=100), Instruction(BYTES))
SECRET = "SECRET7351"
TURN = {"role": "user", "content": "Hi"}


def completion(**fields: Any) -> Call:
    return READER.completion(json.dumps(fields).encode())


def chat(**fields: Any) -> Call:
    return READER.chat(json.dumps({"messages": [TURN]} | fields).encode())


def refused(read: Any, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(**fields)
    assert SECRET not in json.dumps(caught.value.body())
    return caught.value


def look(**fields: Any) -> Look:
    return READER.look(json.dumps(fields).encode(), 3)


# --- what is asked


def test_defaults_are_openais() -> None:
    call = completion(model="tiny", prompt="ab")
    assert call.prompts == (Prompt((97, 98), "ab"),) and call.sampling == Sampling(temperature=1.0)
    assert (call.n, call.max_tokens, call.stop, call.logprobs) == (1, 16, (), None)
    assert not (call.echo or call.stream or call.usage or call.chat)
    assert completion(prompt="a").seed != completion(prompt="a").seed  # drawn where none is given


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("ab", [[97, 98]]),
        (["a", "b"], [[97], [98]]),
        ([97, 256], [[97, 256]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        ("", [[END]]),
        (None, [[END]]),
        (["a", [7]], [[97], [7]]),
    ],
)
def test_a_prompt_is_text_or_ids_one_or_several(prompt: Any, ids: list[list[int]]) -> None:
    assert [list(each.ids) for each in completion(prompt=prompt).prompts] == ids


def test_what_is_looked_into_is_a_text_ids_or_a_conversation() -> None:
    assert look(prompt="ab") == Look((97, 98), None) == look(prompt=[97, 98], model="tiny")
    assert look(layer=2) == Look((END,), 2)
    turns = [{"role": "user", "content": ""}]
    reader = dataclasses.replace(READER, limits=Limits(looked_at=200))  # the template alone has 140 tokens
    found = reader.look(json.dumps({"messages": turns, "layer": 0}).encode(), 3)
    assert found == Look(chat(messages=turns).prompts[0].ids, 0)
    assert len(look(prompt="a" * 128).ids) == 128


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "a" * 129}, "prompt"),
        ({"messages": [TURN | {"content": "a" * 60}]}, "messages"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [SECRET]}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [257]}, "prompt"),
        ({"prompt": "a", "layer": 3}, "layer"),
        ({"prompt": "a", "layer": -1}, "layer"),
        ({"prompt": "a", "temperature": 1}, "temperature"),
        ({"prompt": "a", "messages": [TURN]}, "prompt"),
    ],
)
def test_what_cannot_be_looked_into_is_refused(fields: dict[str, Any], param: str) -> None:
    error = refused(look, **fields)
    assert (error.status, error.param) == (400, param)


def test_a_text_that_is_too_long_to_look_into_says_how_long_it_may_be() -> None:
    error = refused(look, prompt="a" * 130)
    assert "at most 128 tokens to be looked into; it has 130" in error.message
    longer = refused(look, prompt="a" * 5000)  # than the context, too
    assert "at most 128 tokens to be looked into; it has more" in longer.message
    assert error.code == "context_length_exceeded"


def test_choices_of_a_prompt_draw_with_seeds_in_a_row_and_never_slide() -> None:
    requests = completion(prompt=["a", "b"], n=3, seed=2**32 - 2, top_k=5, min_p=0.1, logprobs=2).requests()
    assert [request.seed for request in requests] == [2**32 - 2, 2**32 - 1, 2**32] * 2
    assert [request.prompt for request in requests] == [(97,)] * 3 + [(98,)] * 3
    assert {(r.slide, r.logprobs, r.sampling.top_k, r.sampling.min_p) for r in requests} == {
        (False, 2, 5, 0.1)
    }
    assert completion(prompt="a", max_tokens=0, echo=True).requests() == []


def test_chat_is_the_instruction_template() -> None:
    parts = [{"type": "text", "text": "Hi"}]
    turns = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    call = chat(messages=turns, max_completion_tokens=7, stop="x", logprobs=True, top_logprobs=3)
    text = chat_prompt([("system", "Be brief."), ("user", "Hi")])
    assert BYTES.decode(call.prompts[0].ids) == text
    assert (call.max_tokens, call.stop, call.logprobs, call.chat) == (7, (*CHAT_STOP, "x"), 3, True)
    assert chat().max_tokens == 100 and chat().logprobs is None and chat(logprobs=True).logprobs == 0


def test_chat_is_the_models_template_and_a_model_without_one_says_so() -> None:
    source = "{{ raise_exception('one turn') if messages | length > 1 }}{{ messages[0].content + eos_token }}"
    own = Own(BYTES, ChatTemplate(source, BYTES.special_tokens))
    reader = dataclasses.replace(READER, template=own)
    call = reader.chat(json.dumps({"messages": [TURN], "stop": "x"}).encode())
    assert call.prompts[0].ids == (*b"Hi", END) and call.stop == ("x",)
    for template, turns, said in (
        (own, 2, "refuses these messages: one turn"),
        (None, 1, "no chat template"),
    ):
        reader = dataclasses.replace(READER, template=template)
        with pytest.raises(ApiError, match=said) as caught:
            reader.chat(json.dumps({"messages": [TURN] * turns}).encode())
        assert caught.value.status == 400 and caught.value.param == "messages"


def test_fields_without_effect_are_let_through_and_null_is_absent() -> None:
    ignored = {"user": SECRET, "metadata": {"a": SECRET}, "store": True, "service_tier": "auto"}
    assert completion(prompt="a", seed=1, suffix=None, stop=None, **ignored) == completion(prompt="a", seed=1)
    neutral = {"logit_bias": {}, "tools": [], "tool_choice": "none", "suffix": "", "min_tokens": 0}
    neutral |= {"response_format": {"type": "text"}, "stop_token_ids": [], "modalities": ["text"]}
    assert completion(prompt="a", seed=1, **neutral) == completion(prompt="a", seed=1)
    call = completion(prompt="a", best_of=2, n=2, stream=True, stream_options={"include_usage": True})
    assert (call.n, call.stream, call.usage) == (2, True, True)


def test_what_the_engine_can_do_is_asked_of_it() -> None:
    asked = {"logit_bias": {"97": -100, "5": 1.5}, "stop_token_ids": [3, 4], "ignore_eos": True}
    (request,) = completion(prompt="a", min_tokens=7, seed=-(2**63), top_k=-1, top_p=0, **asked).requests()
    assert (request.bias, request.stop_ids) == (((5, 1.5), (97, -100.0)), {3, 4})
    assert (request.ignore_end, request.least_new_tokens, request.seed) == (True, 7, -(2**63))
    assert (request.sampling.top_k, request.sampling.top_p) == (0, 0)
    assert completion(prompt="a", temperature=1e-6).sampling.temperature == 1e-6
    assert len(completion(prompt="a", stop=[str(n) for n in range(50)]).stop) == 50
    seeds = [request.seed for request in completion(prompt="a", seed=2**63 - 1, n=2).requests()]
    assert seeds == [2**63 - 1, -(2**63)]


LOGPROBS = [(-3, -3), (-1, -4, -1), (-1, -1), (-9,), (-8,), (-7,)]


def test_best_of_writes_more_and_ranks_them_by_the_probability_of_their_tokens() -> None:
    call = completion(prompt=["a", "b"], n=2, best_of=3)
    assert [request.logprobs for request in call.requests()] == [0] * 6 and call.logprobs is None
    assert completion(prompt="a", n=2, best_of=2).requests()[0].logprobs is None
    answer = Answer(call, "tiny", BYTES)
    choices = answer.choices()
    for choice, logprobs in zip(choices, LOGPROBS, strict=True):
        choice.add([NewToken(1, 97, logprob, (), None) for logprob in logprobs])
    assert answer.best(choices) == [2, 1, 5, 4]
    all_of_them = dataclasses.replace(answer, call=completion(prompt=["a", "b"], n=3))
    assert all_of_them.best(choices) == [0, 1, 2, 3, 4, 5]


def test_an_answer_may_not_have_too_many_log_probabilities() -> None:
    reader = dataclasses.replace(READER, limits=Limits(choices=8, tokens=100, reported=660))

    def read(**fields: Any) -> Call:
        return reader.completion(json.dumps({"prompt": ["abcde", "a"], "n": 2} | fields).encode())

    read(max_tokens=24, logprobs=5, echo=True), read(max_tokens=100)
    assert refused(read, max_tokens=25, logprobs=5, echo=True).param == "logprobs"
    whole = {"messages": [TURN], "n": 2, "max_tokens": 70, "logprobs": True, "top_logprobs": 4}
    with pytest.raises(ApiError) as caught:
        reader.chat(json.dumps(whole).encode())
    assert caught.value.param == "top_logprobs"


def test_what_stands_beside_a_messages_content_is_passed_over_if_it_says_nothing() -> None:
    more = {"name": SECRET, "refusal": None, "annotations": [], "tool_calls": [], SECRET: {"a": 1}}
    assert chat(messages=[TURN | more], seed=1) == chat(seed=1)


WRONG = [
    *[
        (name, value)
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty")
        for value in (SECRET, [1], True, -3, 1e9, 10**400, {"a": 1})
    ],
    ("temperature", 1e-40),
    ("top_p", 1.1),
    ("repetition_penalty", 0),
    *[
        (name, value)
        for name in ("n", "max_tokens", "logprobs", "seed", "top_k", "min_tokens", "best_of")
        for value in (SECRET, 1.5, True, -(2**70), 2**70, [])
    ],
    ("n", 0),
    ("n", 9),
    ("max_tokens", 101),
    ("logprobs", 21),
    ("best_of", 0),
    ("best_of", 9),
    ("top_k", -2),
    ("min_tokens", 17),
    ("seed", 2**63),
    *[("stop_token_ids", value) for value in (5, SECRET, [257], [-1], [True], [1.0], list(range(65)))],
    *[("logit_bias", value) for value in (5, [[1, 2]], {"257": 1}, {"-1": 1}, {SECRET: 1}, {"1": SECRET})],
    *[("logit_bias", {"1": value}) for value in (101, -101, True, None)],
    *[("ignore_eos", value) for value in (1, SECRET)],
    ("suffix", [""]),
    ("mirostat", False),
    ("echo", 0),
    *[(name, value) for name in ("echo", "stream") for value in (SECRET, 1, [])],
    *[("stop", value) for value in (1, [SECRET] * 65, [1], "", [""], "a" * 257, {SECRET: 1})],
    *[
        ("prompt", value)
        for value in (
            1.5,
            {},
            [],
            [[]],
            [SECRET, 1.5],
            [257],
            [-1],
            [True],
            [2**80],
            [[1], "a", None],
            "\ud800",
            SECRET * 26,
            [1] * 257,
            ["a"] * 9,
            SECRET * 10_000,
        )
    ],
    ("model", 5),
    ("model", SECRET),
    ("suffix", SECRET),
    ("tools", [1]),
    ("stream_options", {"include_usage": True}),
    ("stream_options", SECRET),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{n}-{str(v)[:12]!a}" for n, v in WRONG])
def test_what_is_wrong_is_refused_by_the_name_of_its_field(name: str, value: Any) -> None:
    error = refused(completion, **({"prompt": "a"} | {name: value}))
    assert error.status == (404 if (name, value) == ("model", SECRET) else 400)
    assert error.param == name and (name in error.message or name == "model")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [SECRET]}, "messages"),
        ({"messages": [TURN | {"role": SECRET}]}, "messages.role"),
        ({"messages": [TURN | {"role": [1]}]}, "messages.role"),
        (
            {"messages": [TURN | {"content": [{"type": "image_url", "image_url": SECRET}]}]},
            "messages.content",
        ),
        ({"messages": [TURN | {"content": 5}]}, "messages.content"),
        ({"messages": [TURN | {"tool_calls": [SECRET]}]}, "messages.tool_calls"),
        ({"messages": [TURN, {"role": "tool", "content": SECRET}]}, "messages.role"),
        ({"messages": [TURN | {"content": SECRET * 30}]}, "messages"),
        ({"messages": [TURN | {"content": "\udfff"}]}, "messages"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 2}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stream": True, "stream_options": {"x": SECRET}}, "stream_options.x"),
        ({"echo": True}, "echo"),
    ],
)
def test_what_is_wrong_in_a_chat_is_refused_by_the_name_of_its_field(
    fields: dict[str, Any], param: str
) -> None:
    error = refused(chat, **fields)
    assert (error.status, error.param) == (400, param)


def test_the_context_counts_tokens_and_what_cannot_fit_is_not_even_encoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merged = RankTokenizer(BYTES.ranks | {b"aa": 256, b"aaaa": 257})
    reader = Reader("tiny", merged, 4, Limits())
    assert reader.completion(b'{"prompt": "%s"}' % (b"a" * 16)).prompts[0].ids == (257,) * 4
    for text in ("aaaaab" * 2, "b" * 5):
        assert (
            refused(lambda text=text: reader.completion(json.dumps({"prompt": text}).encode())).param
            == "prompt"
        )
    monkeypatch.setattr(RankTokenizer, "encode", lambda *_: pytest.fail("it was encoded"))
    assert refused(lambda: reader.completion(b'{"prompt": "%s"}' % (b"a" * 17))).param == "prompt"


def test_only_what_can_be_a_field_is_repeated_as_a_fields_name() -> None:
    assert refused(completion, prompt="a", **{f"<b>{SECRET}": 1}).param is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"a"',
        b"null",
        b"\xff\xfe{}",
        b'{"n": NaN}',
        b'{"n": Infinity}',
        b'{"n": 1, "n": 1}',
        b'{"a": ' + b"[" * 100_000,
        b'{"n": ' + b"9" * 5000 + b"}",
        "{}".encode("utf-16"),
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse_object(body)
    assert caught.value.status == 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [
        "prompt",
        "messages",
        "n",
        "max_tokens",
        "temperature",
        "top_p",
        "stop",
        "logprobs",
        "echo",
        "stream",
        "seed",
    ]
)


@given(st.dictionaries(NAMES | st.text(max_size=5), JSON))
def test_any_json_is_a_call_or_an_api_error(fields: dict[str, Any]) -> None:
    body = json.dumps(fields).encode()
    for read in (READER.completion, READER.chat):
        assert status_of(read, body) in (200, *range(400, 500))


def status_of(read: Callable[[bytes], Call], body: bytes) -> int:
    """The status of the answer that a body would get."""
    try:
        call = read(body)
    except ApiError as error:
        return error.status
    assert len(call.requests()) <= 8
    return 200


# --- what is answered


def news(ids: list[int], finish: str = "length") -> list[NewToken]:
    pairs = [NewToken(1, token, -0.5, ((token, -0.5), (7, -1.0)), None) for token in ids]
    return [*pairs[:-1], pairs[-1]._replace(finish=finish)]


def grown(
    ids: list[int], stop: list[str], at_a_time: int = 1, finish: str = "length"
) -> tuple[Choice, list[Piece]]:
    choice, events = Choice(BYTES, stop, reports=True), news(ids, finish)
    return choice, [choice.add(events[i : i + at_a_time]) for i in range(0, len(events), at_a_time)]


@given(
    st.lists(st.integers(0, 255), min_size=1, max_size=30)
    | st.text(min_size=1).map(lambda s: list(s.encode())),
    st.lists(st.sampled_from(["a", "bc", "é", "\n\n"]), max_size=2),
    st.integers(1, 5),
)
def test_pieces_join_to_the_text_before_the_first_stop_string(
    ids: list[int], stop: list[str], at_a_time: int
) -> None:
    whole = BYTES.decode(ids)
    cut = min((place for text in stop if (place := whole.find(text)) >= 0), default=None)
    choice, pieces = grown(ids, stop, at_a_time)
    assert "".join(piece.text for piece in pieces) == whole[:cut]
    assert choice.finish == ("length" if cut is None else "stop")
    tokens = [token for piece in pieces for token in piece.tokens]
    assert [token.token for token in tokens] == ids[: len(tokens)]
    silent, events = Choice(BYTES, stop, reports=False), news(ids)
    unreported = [silent.add(events[i : i + at_a_time]) for i in range(0, len(events), at_a_time)]
    assert unreported == [piece._replace(tokens=()) for piece in pieces] and silent.finish == choice.finish
    if cut is None:
        assert len(tokens) == len(ids)
    assert all(token.offset < (len(whole) if cut is None else cut) for token in tokens)
    at = 0  # no token is reported before its text begins to be given out, or later than that
    for piece in pieces:
        assert all(token.offset < at + len(piece.text) for token in piece.tokens)
        at += len(piece.text)


def whole(answer: Answer, pieces: list[list[Piece]], written: int) -> Any:
    return json.loads(b"".join(answer.whole(pieces, written)))


def test_offsets_and_names_of_tokens_within_a_character() -> None:
    _, pieces = grown([97, *"€".encode(), 98], [])
    tokens = [token for piece in pieces for token in piece.tokens]
    assert [token.offset for token in tokens] == [0, 1, 1, 1, 2]
    answer = Answer(completion(prompt="x", logprobs=1), "tiny", BYTES)
    logprobs = whole(answer, [pieces], 5)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", "b"]
    assert logprobs["text_offset"] == [0, 1, 1, 1, 2] and logprobs["token_logprobs"] == [-0.5] * 5
    assert logprobs["top_logprobs"][0] == {"a": -0.5, "\x07": -1.0}


def test_the_end_of_a_text_is_reported_without_text() -> None:
    choice, pieces = grown([97, END], [], finish="end")
    assert "".join(piece.text for piece in pieces) == "a" and choice.finish == "stop" and choice.written == 2
    assert [token.token for piece in pieces for token in piece.tokens] == [97, END]


def test_what_comes_after_a_stop_string_is_not_counted() -> None:
    choice, pieces = grown(list(b"ab!cd"), ["!"], at_a_time=5)
    assert [(piece.text, len(piece.tokens), piece.finish) for piece in pieces] == [("ab", 2, "stop")]
    assert choice.written == 3


def test_the_chosen_token_is_always_among_the_alternatives() -> None:
    piece = Choice(BYTES, [], reports=True).add([NewToken(1, 99, -4.0, ((97, -0.1), (98, -3.0)), "length")])
    logprobs = Answer(completion(prompt="x", logprobs=2), "tiny", BYTES).chunk(0, piece)["choices"][0][
        "logprobs"
    ]
    assert logprobs["top_logprobs"] == [{"a": -0.1, "b": -3.0, "c": -4.0}]


def test_chat_has_its_own_shapes() -> None:
    call = chat(logprobs=True, top_logprobs=1, stream=True, stream_options={"include_usage": True})
    answer, (_, pieces) = Answer(call, "tiny", BYTES), grown(list(b"ok"), [])
    found = whole(answer, [pieces], 2)
    assert found["object"] == "chat.completion" and found["id"].startswith("chatcmpl-")
    assert found["choices"][0]["message"] == {"role": "assistant", "content": "ok", "refusal": None}
    entry = found["choices"][0]["logprobs"]["content"][0]
    assert (entry["token"], entry["bytes"], entry["logprob"]) == ("o", [111], -0.5)
    read = len(call.prompts[0].ids)
    assert found["usage"] == {"prompt_tokens": read, "completion_tokens": 2, "total_tokens": read + 2}
    assert answer.opening(0)["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    chunk = answer.chunk(0, pieces[1])
    assert (
        chunk["choices"][0]["delta"] == {"content": "k"} and chunk["choices"][0]["finish_reason"] == "length"
    )
    closing = answer.closing(2)
    assert chunk["usage"] is None and closing["choices"] == [] and closing["usage"] == found["usage"]


def test_an_echo_stands_in_front_with_none_for_its_first_token() -> None:
    call = completion(prompt="é!", echo=True, logprobs=1)
    scores = [NewToken(0, token, None if i == 0 else -1.0, (), None) for i, token in enumerate("é!".encode())]
    choice = Choice(BYTES, [], reports=True)
    pieces = [choice.echo(call.prompts[0], scores), choice.add(news([97]))]
    found = whole(Answer(call, "tiny", BYTES), [pieces], 1)["choices"][0]
    assert found["text"] == "é!a" and found["logprobs"]["text_offset"] == [0, 0, 1, 2]
    assert found["logprobs"]["token_logprobs"] == [None, -1.0, -1.0, -0.5]
    assert found["logprobs"]["top_logprobs"][0] is None
