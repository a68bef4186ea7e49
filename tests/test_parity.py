"""The certificate passes what is the same and fails, with the reason, what is not."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jaxgpt.evaluation.parity import GREEDY, certificate
from jaxgpt.weights.convert import with_dtype, with_vocab
from jaxgpt.weights.open import open_model
from jaxgpt.weights.tensors import StoredModel, Tensor

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def model() -> StoredModel:
    return open_model(GOLDEN / "plain")


def changed(model: StoredModel, name: str, change: Callable[[np.ndarray], np.ndarray]) -> StoredModel:
    tensor = model.tensors[name]
    array = change(tensor.read().copy())
    return dataclasses.replace(model, tensors={**model.tensors, name: Tensor.of(array)})


def test_the_same_model_passes(model: StoredModel) -> None:
    proof = certificate(model, model, open_model(GOLDEN / "plain"))
    assert (
        proof["passed"]
        and proof["byte_exact"]
        and proof["problems"] == []
        and "effect_of_changes" not in proof
    )
    assert proof["logits"]["max_abs_difference"] < 2e-6 and proof["kl_divergence"]["largest"] < 1e-9
    assert proof["greedy"]["equal"] and len(proof["greedy"]["jaxgpt"]) == GREEDY
    assert len(proof["tokens"]) == 16 and len(proof["loss_per_token"]["reference"]) == 15
    assert proof["tensors"].keys() == model.tensors.keys()
    assert {"jax", "flax", "numpy", "python"} <= proof["versions"].keys()


def test_its_losses_are_pytorchs(model: StoredModel) -> None:
    """On the golden tokens, whose logits PyTorch computed in float64."""
    from jaxgpt.evaluation.parity import _losses

    expected = np.load(GOLDEN / "plain" / "expected.npz")
    logits_TV, tokens = expected["logits"][0], expected["tokens"][0].tolist()
    shares_TV = np.exp(logits_TV) / np.exp(logits_TV).sum(axis=-1, keepdims=True)
    by_hand = [-np.log(shares_TV[t, tokens[t + 1]]) for t in range(len(tokens) - 1)]
    np.testing.assert_allclose(_losses(logits_TV, logits_TV, tokens)["jaxgpt"], by_hand, rtol=1e-12)


def test_one_flipped_bit_fails_by_the_tensors_name(model: StoredModel) -> None:
    def flip(array: np.ndarray) -> np.ndarray:
        array.view(np.uint32)[3] ^= 1
        return array

    proof = certificate(model, model, changed(model, "h.1.ln_2.bias", flip))
    assert not proof["passed"] and not proof["byte_exact"]
    assert proof["problems"] == ["h.1.ln_2.bias reads back otherwise"]  # too small a change for the logits


def test_another_number_fails_by_the_logits_too(model: StoredModel) -> None:
    proof = certificate(model, model, changed(model, "ln_f.bias", lambda array: array + 1))
    assert [problem.split(" ")[0] for problem in proof["problems"]] == ["ln_f.bias", "logits", "greedy"]
    assert proof["kl_divergence"]["largest"] > 1e-3


def test_other_ends_and_chat_templates_fail_by_their_names(model: StoredModel) -> None:
    given = dataclasses.replace(model, stated_ends=frozenset([3]), templates={"default": "a", "rag": "b"})
    written = dataclasses.replace(model, stated_ends=frozenset([4]), templates={"default": "a", "tool": "b"})
    assert certificate(given, given, written)["problems"] == [
        "a text ends at the ids [3] there, and at [4] in what was written",
        "the chat template 'rag' reads back otherwise",
        "the chat template 'tool' reads back otherwise",
    ]
    proof = certificate(given, given, given)
    assert proof["passed"] and proof["ends"] == [3] and proof["chat_templates"] == ["default", "rag"]


def test_another_config_fails_by_its_name(model: StoredModel) -> None:
    written = dataclasses.replace(model, config=dataclasses.replace(model.config, activation="gelu"))
    proof = certificate(model, model, written)
    assert proof["byte_exact"] and not proof["passed"]
    assert proof["problems"][0] == "activation: 'gelu_tanh' meant, 'gelu' written"


@pytest.mark.slow
def test_a_cast_is_stated_and_its_effect_measured(model: StoredModel) -> None:
    wanted = with_dtype(model, "bfloat16")
    proof = certificate(model, wanted, wanted)
    assert proof["passed"] and proof["changes"] == ["cast from float32 to bfloat16"]
    row = proof["tensors"]["wte.weight"]
    assert row["source"] != row["wanted"] == row["destination"] and row["dtype"] == "bfloat16"
    assert 1e-4 < proof["effect_of_changes"]["max_abs_difference"] < 0.5


def test_another_vocabulary_is_stated_and_the_other_ids_keep_their_logits(model: StoredModel) -> None:
    wanted = with_vocab(model, 64)
    proof = certificate(model, wanted, wanted)
    assert proof["passed"] and proof["config_changes"] == {"vocab": [61, 64]}
    assert proof["effect_of_changes"]["max_abs_difference"] < 1e-12


@pytest.mark.slow
def test_the_shortest_context_is_enough() -> None:
    odd = open_model(GOLDEN / "odd")  # of 7 tokens
    proof = certificate(odd, odd, odd)
    assert proof["passed"] and len(proof["tokens"]) == 7
