"""The certificate of a conversion: what was written, compared with what should have been written.

To compare the bytes, each tensor of the destination is read back and hashed, and so is each tensor of the
source. To compare the numbers, jaxgpt computes logits, losses and greedy tokens of the destination. A float64
NumPy forward pass that shares no code with the model (`evaluation.reference`) computes those of the source.
"""

import dataclasses
import hashlib
import importlib.metadata
import platform
from typing import Any

import numpy as np

from jaxgpt.config import GPTConfig
from jaxgpt.evaluation.reference import reference_logits
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.requests import Request
from jaxgpt.inference.sampling import Sampling
from jaxgpt.inference.served import Served
from jaxgpt.model.gpt import Params, define
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.weights.params import read_params
from jaxgpt.weights.run import one_device
from jaxgpt.weights.tensors import StoredModel, Tensor

PARITY_FILE = "parity.json"
TEXT = "The weights of a model are only numbers, and a certificate says that they are still the same numbers."
TOKENS, GREEDY = 32, 8  # the most tokens that are read, and that are generated
# How far logits in float32 may be from those in float64 after 48 layers. The first holds for small logits;
# the second is a share of large ones.
ABSOLUTE, RELATIVE = 2e-4, 2e-5
LIBRARIES = ("jaxgpt", "jax", "flax", "numpy", "orbax-checkpoint", "safetensors", "ml_dtypes")


def certificate(source: StoredModel, wanted: StoredModel, written: StoredModel) -> dict[str, Any]:
    """Return the content of `parity.json`: whether it `passed`, and if not, which `problems` there are.

    `source` is the model as it was found. `wanted` is that model with the changes that were asked for (a
    cast, another vocabulary) or that the format needed (biases of zeros). `written` is what was read back.
    """
    tensors, problems = _compared_tensors(source, wanted, written)
    config = wanted.config.differences(written.config)
    problems += [f"{name}: {a!r} meant, {b!r} written" for name, (a, b) in config.items()]
    if wanted.ends != written.ends:
        meant, found = (sorted(model.ends) for model in (wanted, written))
        problems.append(f"a text ends at the ids {meant} there, and at {found} in what was written")
    problems += [
        f"the chat template {name!r} reads back otherwise"
        for name in sorted(wanted.templates.keys() | written.templates.keys())
        if wanted.templates.get(name) != written.templates.get(name)
    ]
    numbers = _compared_numbers(wanted, written)
    problems += numbers.pop("problems")
    changed = any(source.tensors.get(name) is not tensor for name, tensor in wanted.tensors.items())
    return {
        "passed": not problems,
        "problems": problems,
        "changes": list(wanted.notes),
        "config": dataclasses.asdict(written.config),
        "config_changes": {
            name: list(pair) for name, pair in source.config.differences(wanted.config).items()
        },
        "ends": sorted(written.ends),
        "chat_templates": sorted(written.templates),
        "byte_exact": all(row["destination"] == row["wanted"] for row in tensors.values()),
        "tensors": tensors,
        **numbers,
        **({"effect_of_changes": _effect(source, wanted, numbers["tokens"])} if changed else {}),
        "versions": {"python": platform.python_version()}
        | {n: importlib.metadata.version(n) for n in LIBRARIES},
    }


def _compared_tensors(
    source: StoredModel, wanted: StoredModel, written: StoredModel
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return shape, dtype and sha256 of every tensor, and what does not agree.

    One tensor is in memory at a time.
    """
    rows, problems = {}, []
    for name in dict.fromkeys((*wanted.tensors, *written.tensors)):
        before, meant, after = (model.tensors.get(name) for model in (source, wanted, written))
        # A tensor that was not changed is one object in both models, and is read once.
        meant_sha = _sha256(meant)
        row = {
            "shape": list(after.shape) if after else None,
            "dtype": str(after.dtype) if after else None,
            "source": meant_sha if before is meant else _sha256(before),
            "wanted": meant_sha,
            "destination": _sha256(after),
        }
        rows[name] = row
        if row["destination"] != row["wanted"] or (meant and after and meant.shape != after.shape):
            problems.append(f"{name} reads back otherwise")
    return rows, problems


def _sha256(tensor: Tensor | None) -> str | None:
    """Return the hash of a tensor's numbers as its file would hold them: row-major, little-endian."""
    if tensor is None:
        return None
    return hashlib.sha256(tensor.raw()).hexdigest()


def _compared_numbers(wanted: StoredModel, written: StoredModel) -> dict[str, Any]:
    """Compare logits, losses and greedy tokens of the destination (by jaxgpt) and the source (by NumPy)."""
    config = dataclasses.replace(written.config, dropout=0.0, compute_dtype="float32")
    params = read_params(written, one_device())
    prompt = _prompt(config, wanted.tokenizer)
    tokens = prompt + _greedy(config, params, prompt)
    ours_TV = np.asarray(define(config).apply(params, np.array([tokens], np.int32))[0], np.float64)
    reference_TV = reference_logits(wanted.config, wanted.tensors, np.array(tokens))
    largest, difference = float(abs(reference_TV).max()), float(abs(ours_TV - reference_TV).max())
    tolerance = max(ABSOLUTE, RELATIVE * largest)
    # The reference reads all tokens in one pass. Given the tokens before it, the reference should choose each
    # greedy token too.
    steps_TV = reference_TV[len(prompt) - 1 : -1]
    lost = (
        steps_TV.max(axis=-1)
        - np.take_along_axis(steps_TV, np.array(tokens[len(prompt) :])[:, None], 1)[:, 0]
    )
    problems = [f"logits differ by {difference:.2g}, more than {tolerance:.2g}"] * (
        not difference <= tolerance
    )
    problems += ["greedy tokens differ"] * (not np.all(lost <= 2 * tolerance))
    return {
        "problems": problems,
        "tokens": tokens,
        "logits": {"largest": largest, "max_abs_difference": difference, "tolerance": tolerance},
        "kl_divergence": _kl(reference_TV, ours_TV),
        "loss_per_token": _losses(reference_TV, ours_TV, tokens),
        "greedy": {
            "jaxgpt": tokens[len(prompt) :],
            "reference": steps_TV.argmax(axis=-1).tolist(),
            "equal": bool(np.all(lost == 0)),
        },
    }


def _prompt(config: GPTConfig, tokenizer: Tokenizer | None) -> list[int]:
    """Return the ids of a text, or random ids without a tokenizer; leave room for the greedy tokens."""
    length = min(TOKENS, config.context - min(GREEDY, config.context // 2))
    if tokenizer:
        return tokenizer.encode(TEXT)[:length]
    drawn: list[int] = np.random.default_rng(0).integers(0, config.vocab, length).tolist()
    return drawn


def _greedy(config: GPTConfig, params: Params, prompt: list[int]) -> list[int]:
    room = min(GREEDY, config.context - len(prompt))
    request = Request(prompt=tuple(prompt), max_new_tokens=room, sampling=Sampling(temperature=0))
    engine = Engine(Served.of(config, params), slots=1)
    return [new.token for _, new in engine.run([request]) if new.token is not None]


def _log_softmax(logits_TV: np.ndarray) -> np.ndarray:
    shifted_TV = logits_TV - logits_TV.max(axis=-1, keepdims=True)
    logs_TV: np.ndarray = shifted_TV - np.log(np.exp(shifted_TV).sum(axis=-1, keepdims=True))
    return logs_TV


def _kl(reference_TV: np.ndarray, ours_TV: np.ndarray) -> dict[str, float]:
    """Return KL(reference || ours) in nats: the mean and the largest over the positions."""
    p_TV, q_TV = _log_softmax(reference_TV), _log_softmax(ours_TV)
    kl_T = (np.exp(p_TV) * (p_TV - q_TV)).sum(axis=-1)
    return {"mean": float(kl_T.mean()), "largest": float(kl_T.max())}


def _losses(reference_TV: np.ndarray, ours_TV: np.ndarray, tokens: list[int]) -> dict[str, Any]:
    """Return the negative log-likelihood of each next token, in nats, by the reference and by jaxgpt."""
    nexts = np.array(tokens[1:])[:, None]
    reference, ours = (
        -np.take_along_axis(_log_softmax(logits[:-1]), nexts, 1)[:, 0] for logits in (reference_TV, ours_TV)
    )
    return {
        "reference": reference.tolist(),
        "jaxgpt": ours.tolist(),
        "max_abs_difference": float(abs(reference - ours).max(initial=0)),
    }


def _effect(source: StoredModel, wanted: StoredModel, tokens: list[int]) -> dict[str, Any]:
    """Return how the changes moved the logits of the ids that both models have, by the reference."""
    both = min(source.config.vocab, wanted.config.vocab)
    ids = np.array(tokens) % source.config.vocab
    before_TV = reference_logits(source.config, source.tensors, ids)[:, :both]
    after_TV = reference_logits(wanted.config, wanted.tensors, ids % wanted.config.vocab)[:, :both]
    return {
        "max_abs_difference": float(abs(before_TV - after_TV).max()),
        "kl_divergence": _kl(before_TV, after_TV),
    }
