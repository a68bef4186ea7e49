"""What a client asks for: bodies of /v1/completions and /v1/chat/completions become a `Call`, those of
/v1/inside a `Look`.

Besides OpenAI's fields there are top_k, min_p, repetition_penalty, min_tokens, stop_token_ids and ignore_eos.
A prompt longer than the context is refused, and an answer ends with `length` when the context is full: no
part of a text is ever forgotten. A field that is not supported is refused by name, unless its value asks for
nothing (`parameters`).
"""

from dataclasses import dataclass
from typing import Any

from jaxgpt.errors import ConfigError, JaxgptError
from jaxgpt.inference.defaults import random_seed
from jaxgpt.inference.programs import MOST_LOGPROBS
from jaxgpt.inference.prompts import ROLES
from jaxgpt.inference.sampling import Sampling
from jaxgpt.inference.templates import Template
from jaxgpt.serving.call import Call, Limits, Prompt
from jaxgpt.serving.fields import ApiError, Fields, parse_object
from jaxgpt.serving.job import Look
from jaxgpt.serving.parameters import SPEAKING, changes_nothing
from jaxgpt.text.tokenizer import Tokenizer

DEFAULT_TOKENS = 16  # OpenAI's default in /v1/completions
MOST_STOPS, LONGEST_STOP = 64, 256
TOO_LONG = "context_length_exceeded"
MOST_STOP_IDS, MOST_BIASES = 64, 1024
# With smaller values than these, float32 arithmetic on logits overflows.
LEAST_TEMPERATURE, LEAST_PENALTY = 1e-6, 0.01


@dataclass(frozen=True)
class Reader:
    """Reads bodies for one model, of which it knows the name, the tokenizer, the context and the limits."""

    model: str
    tokenizer: Tokenizer
    context: int
    limits: Limits
    template: Template | None = None
    """What makes a prompt of a conversation; None where the model has no template."""

    def completion(self, body: bytes) -> Call:
        """Return the call in a body of /v1/completions.

        Raises ApiError, which names the field that is wrong.
        """
        fields = Fields(parse_object(body))
        self._check_model(fields)
        echo = fields.flag("echo")
        prompts = self._prompts(fields)
        n = self._n(fields, len(prompts))
        logprobs = fields.integer("logprobs", None, 0, MOST_LOGPROBS)
        max_tokens = fields.integer(
            "max_tokens", min(DEFAULT_TOKENS, self.limits.tokens), 0, self.limits.tokens
        )
        best_of = fields.integer("best_of", n, n, self.limits.choices // len(prompts))
        return self._call(
            fields,
            prompts=prompts,
            n=n,
            best_of=best_of,
            max_tokens=max_tokens,
            logprobs=logprobs,
            echo=echo,
            chat=False,
            stop=fields.strings("stop", MOST_STOPS, LONGEST_STOP),
        )

    def chat(self, body: bytes) -> Call:
        """Return the call in a body of /v1/chat/completions.

        Raises ApiError, which names the field that is wrong.
        """
        fields = Fields(parse_object(body))
        self._check_model(fields)
        template, prompt = self._conversation(fields)
        n = self._n(fields, 1)
        most = self.limits.tokens
        older = fields.integer("max_tokens", most, 1, most)
        max_tokens = fields.integer("max_completion_tokens", older, 1, most)
        reports = fields.flag("logprobs")
        alternatives = fields.integer("top_logprobs", None, 0, MOST_LOGPROBS)
        if alternatives is not None and not reports:
            raise fields.wrong("top_logprobs", "absent unless logprobs is true")
        return self._call(
            fields,
            prompts=(prompt,),
            n=n,
            best_of=fields.integer("best_of", n, n, self.limits.choices),
            max_tokens=max_tokens,
            logprobs=alternatives or 0 if reports else None,
            echo=False,
            chat=True,
            stop=(*template.stop, *fields.strings("stop", MOST_STOPS, LONGEST_STOP)),
        )

    def look(self, body: bytes, layers: int) -> Look:
        """Return what a body of /v1/inside asks for, of a model with so many layers.

        Raises ApiError, which names the field that is wrong.
        """
        fields = Fields(parse_object(body))
        self._check_model(fields)
        layer = fields.integer("layer", None, 0, layers - 1)
        name = "messages" if fields.has("messages") else "prompt"
        try:
            if name == "messages":
                ids = self._conversation(fields)[1].ids
            else:
                given = fields.take("prompt")
                ids = self._prompt("" if given is None else given).ids
        except ApiError as error:
            if error.code == TOO_LONG and self.limits.looked_at < self.context:
                raise self._too_long_to_look(name, "it has more") from error
            raise
        fields.close()
        if len(ids) > self.limits.looked_at:
            raise self._too_long_to_look(name, f"it has {len(ids)}")
        return Look(ids, layer)

    def _too_long_to_look(self, name: str, has: str) -> ApiError:
        rule = f"{name} must have at most {self.limits.looked_at} tokens to be looked into"
        return ApiError(400, f"{rule}; {has}: choose a part of it", name, code=TOO_LONG)

    def _call(self, fields: Fields, **known: Any) -> Call:
        """Return the call, after reading the fields that both routes have."""
        seed = fields.integer("seed", None, -(2**63), 2**63 - 1)
        stream, usage = fields.flag("stream"), _usage(fields)
        if usage is not None and not stream:
            raise fields.wrong("stream_options", "absent unless stream is true")
        if stream and known["best_of"] > known["n"]:
            raise fields.wrong("best_of", "the same as n where stream is true")
        call = Call(
            sampling=self._sampling(fields),
            seed=random_seed() if seed is None else seed,
            stream=stream,
            usage=bool(usage),
            stop_ids=fields.ids("stop_token_ids", MOST_STOP_IDS, self.tokenizer.vocab),
            ignore_end=fields.flag("ignore_eos"),
            least_tokens=fields.integer("min_tokens", 0, 0, known["max_tokens"]),
            bias=fields.biases("logit_bias", MOST_BIASES, self.tokenizer.vocab),
            **known,
        )
        fields.close(changes_nothing)
        call.check_size(self.limits)
        return call

    def _sampling(self, fields: Fields) -> Sampling:
        return Sampling(
            temperature=fields.number("temperature", 1.0, LEAST_TEMPERATURE, 2.0, or_zero=True),
            top_p=fields.number("top_p", 1.0, 0.0, 1.0),
            top_k=max(0, fields.integer("top_k", 0, -1, 2**31 - 1)),
            min_p=fields.number("min_p", 0.0, 0.0, 1.0),
            repetition_penalty=fields.number("repetition_penalty", 1.0, LEAST_PENALTY, 100.0),
            presence_penalty=fields.number("presence_penalty", 0.0, -2.0, 2.0),
            frequency_penalty=fields.number("frequency_penalty", 0.0, -2.0, 2.0),
        )

    def _check_model(self, fields: Fields) -> None:
        model = fields.take("model")
        if model is not None and not isinstance(model, str):
            raise fields.wrong("model", "a string")
        if model is not None and model != self.model:
            raise unknown_model()

    def _n(self, fields: Fields, prompts: int) -> int:
        return fields.integer("n", 1, 1, self.limits.choices // prompts)

    def _prompts(self, fields: Fields) -> tuple[Prompt, ...]:
        """Return the prompts: a text, a list of texts, a list of ids or a list of lists of ids.

        Without a prompt, the model begins a new text.
        """
        given = fields.take("prompt")
        given = "" if given is None else given
        several = isinstance(given, list) and not any(type(item) is int for item in given)
        listed = given if several else [given]
        if not 0 < len(listed) <= self.limits.choices:
            raise fields.wrong("prompt", f"1 to {self.limits.choices} prompts")
        return tuple(map(self._prompt, listed))

    def _prompt(self, given: Any) -> Prompt:
        """Return a prompt that is given as a text or as a list of ids."""
        return self._encode(given, "prompt") if isinstance(given, str) else self._ids(given)

    def _encode(self, text: str, name: str) -> Prompt:
        if len(text.encode("utf-8", "surrogatepass")) > self.context * self.tokenizer.longest_token:
            raise self._too_long(name)  # known without encoding it, which would take long
        try:
            ids = self.tokenizer.prompt_ids(text)
        except ConfigError as error:
            rule = "must not be empty: the model's tokenizer has no token that begins a text"
            raise ApiError(400, f"{name} {rule}", name) from error
        except JaxgptError as error:
            raise ApiError(400, f"{name} must be Unicode text, without lone surrogates", name) from error
        if len(ids) > self.context:
            raise self._too_long(name)
        return Prompt(tuple(ids), text)

    def _conversation(self, fields: Fields) -> tuple[Template, Prompt]:
        """Return the template, and the prompt that it makes of the field `messages`."""
        if self.template is None:
            message = "this model has no chat template: use /v1/completions, or serve it with --chat-template"
            raise ApiError(400, message, "messages")
        given = fields.take("messages")
        if not isinstance(given, list) or not given:
            raise fields.wrong("messages", "a list of at least one message")
        messages = [_message(fields, message) for message in given]
        size = sum(len(content.encode("utf-8", "surrogatepass")) for _, content in messages)
        if size > self.context * self.tokenizer.longest_token:
            raise self._too_long("messages")  # known without encoding it, which would take long
        try:
            ids = self.template.ids(messages)
        except JaxgptError as error:
            raise ApiError(400, f"messages: {error}", "messages") from error
        if len(ids) > self.context:
            raise self._too_long("messages")
        return self.template, Prompt(tuple(ids), "")

    def _ids(self, ids: Any) -> Prompt:
        if not isinstance(ids, list) or not ids:
            raise ApiError(
                400, "prompt must be a string, strings, token ids, or lists of token ids", "prompt"
            )
        if not all(type(id) is int and 0 <= id < self.tokenizer.vocab for id in ids):
            raise ApiError(400, f"prompt must hold token ids from 0 to {self.tokenizer.vocab - 1}", "prompt")
        if len(ids) > self.context:
            raise self._too_long("prompt")
        return Prompt(tuple(ids), self.tokenizer.decode(ids))

    def _too_long(self, name: str) -> ApiError:
        rule = f"{name} must have at most {self.context} tokens, the model's context"
        return ApiError(400, rule, name, code=TOO_LONG)


def unknown_model() -> ApiError:
    """Return the error for a request that names a model that is not served."""
    message = "there is no such model; GET /v1/models names those that are served"
    return ApiError(404, message, "model", code="model_not_found")


def _usage(fields: Fields) -> bool | None:
    """Return whether the usage is to be reported, or None if the body has no stream_options."""
    options = fields.take("stream_options")
    if options is None:
        return None
    if not isinstance(options, dict):
        raise fields.wrong("stream_options", "an object")
    inner = Fields(options, "stream_options.")
    usage = inner.flag("include_usage")
    inner.close(lambda name, _: name in ("include_obfuscation", "continuous_usage_stats"))
    return usage


def _message(fields: Fields, message: Any) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise fields.wrong("messages", "a list of objects")
    inner = Fields(message, "messages.")
    role, content = inner.take("role"), inner.take("content")
    role = "system" if role == "developer" else role
    if role not in ROLES:
        raise inner.wrong("role", f"one of {', '.join(ROLES)}")
    inner.close(lambda name, value: name not in SPEAKING or not value)
    if isinstance(content, list):
        content = _joined(content)
    if not isinstance(content, str):
        raise inner.wrong("content", "a string or a list of parts of type text")
    return role, content


def _joined(parts: list[Any]) -> str | None:
    """Return the text of a content that is given in parts, or None if a part is not text."""
    found = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    texts = [text for text in found if isinstance(text, str)]
    return "".join(texts) if len(texts) == len(parts) else None
