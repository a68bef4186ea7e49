"""The JSON of an answer of /v1/inside: the attention of a layer, or what every layer would write."""

import json
from typing import Any

import numpy as np

from jaxgpt.config import GPTConfig
from jaxgpt.inference.inside import Lens
from jaxgpt.serving.answers import token_name
from jaxgpt.serving.job import Look
from jaxgpt.text.tokenizer import Tokenizer

DECIMALS = 3  # of an attention weight


def inside_answer(look: Look, found: Any, model: str, tokenizer: Tokenizer, config: GPTConfig) -> bytes:
    """Return the answer. `found` is what `look` read: weights [H, T, T], or a Lens."""
    answer: dict[str, Any] = {
        "object": "inside",
        "model": model,
        "tokens": [token_name(tokenizer, token) for token in look.ids],
        "layers": config.layers,
        "heads": config.heads,
    }
    if look.layer is None:
        answer["lens"] = _lens(found, tokenizer)
    else:
        answer |= {"layer": look.layer, "attention": _attention(found)}
    return json.dumps(answer, separators=(",", ":")).encode()


def _attention(weights_HTT: np.ndarray) -> list[list[list[float]]]:
    """For each head and token, the weights of the tokens up to it. All later ones are 0."""
    rounded = np.round(weights_HTT.astype(np.float64), DECIMALS).tolist()
    return [[row[: place + 1] for place, row in enumerate(head)] for head in rounded]


def _lens(lens: Lens, tokenizer: Tokenizer) -> list[list[dict[str, float]]]:
    """For each layer and token, the most probable next tokens with their log-probabilities."""
    logprobs, ids = lens.logprobs_NTK.tolist(), lens.ids_NTK.tolist()
    names = {id: token_name(tokenizer, id) for id in set(np.ravel(lens.ids_NTK).tolist())}
    return [
        [
            {names[id]: logprob for id, logprob in zip(*place, strict=True)}
            for place in zip(*layer, strict=True)
        ]
        for layer in zip(ids, logprobs, strict=True)
    ]
