"""A wrong value in nanoGPT's ckpt.pt, in its model_args or in our entry, is refused and never a crash."""

from pathlib import Path
from typing import Any

import pytest

from jaxgpt.errors import DataError
from jaxgpt.weights.formats.nanogpt import FIELDS, open_nanogpt
from jaxgpt.weights.formats.torch_zip import open_torch, write_torch
from jaxgpt.weights.tensors import Tensor

GOLDEN = Path(__file__).parent / "golden" / "nanogpt" / "ckpt.pt"
# One of every kind of value that a torch file can hold, and numbers beyond any model.
NUMBERS = [True, False, 0, -1, 2.0, 1e300, float("nan"), float("inf"), 2**31, 2**70, -(2**70)]
OTHERS = [None, "", "2", "gelu", [], ["x"], [[]], (), ("x",), {}, {"activation": "gelu"}]
ANYTHING: list[Any] = NUMBERS + OTHERS


def checkpoint(tmp_path: Path, **changes: Any) -> Path:
    write_torch(tmp_path / "ckpt.pt", open_torch(GOLDEN) | changes)
    return tmp_path / "ckpt.pt"


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_nanogpt(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu"])
def test_our_entry_states_the_activation(tmp_path: Path, activation: str) -> None:
    model = open_nanogpt(checkpoint(tmp_path, jaxgpt={"activation": activation}))
    assert model.config.activation == activation


@pytest.mark.parametrize("value", [v for v in ANYTHING if v not in ({}, {"activation": "gelu"})], ids=repr)
def test_an_entry_of_ours_that_is_no_table_is_refused(tmp_path: Path, value: Any) -> None:
    assert "the entry jaxgpt has other keys than activation" in refusal(checkpoint(tmp_path, jaxgpt=value))


@pytest.mark.parametrize("value", [v for v in ANYTHING if v != "gelu"], ids=repr)
def test_an_activation_that_is_none_is_refused(tmp_path: Path, value: Any) -> None:
    said = refusal(checkpoint(tmp_path, jaxgpt={"activation": value}))
    assert ("is not one of 'gelu_tanh', 'gelu'" if isinstance(value, str) else "is no text") in said


@pytest.mark.parametrize("more", [{"dropout": 0.1}, {7: 1}, {"activation ": "gelu"}], ids=repr)
def test_another_key_in_our_entry_is_refused(tmp_path: Path, more: dict[Any, Any]) -> None:
    entry = {"activation": "gelu"} | more
    assert "the entry jaxgpt has other keys than activation" in refusal(checkpoint(tmp_path, jaxgpt=entry))


@pytest.mark.parametrize("key", FIELDS)
def test_a_wrong_value_in_model_args_is_refused(tmp_path: Path, key: str) -> None:
    right = open_torch(GOLDEN)["model_args"]
    for value in ANYTHING:
        fine = {"bias": [True], "dropout": [0]}.get(key, [])
        if any(value is one for one in fine):
            continue
        # Another vocabulary, width, ... may be a model: then its tensors are others. (False: no biases.)
        refusal(checkpoint(tmp_path, model_args=right | {key: value}))


def test_all_problems_of_model_args_are_listed_at_once(tmp_path: Path) -> None:
    wrong = {"n_layer": 2.0, "n_head": "2", "bias": 1, "dropout": None, "flash": True, 7: 1}
    said = refusal(checkpoint(tmp_path, model_args=wrong))
    missing = "no n_embd", "no block_size", "no vocab_size"
    odd = "n_layer is no int", "n_head is no int", "bias is no bool", "dropout is no float"
    assert "unknown 7, unknown flash" in said
    assert all(problem in said for problem in (*missing, *odd))
    many = {f"{number:05}{'x' * 1000}": 1 for number in range(10_000)}
    said = refusal(checkpoint(tmp_path, model_args=open_torch(GOLDEN)["model_args"] | many))
    assert "and 9950 more" in said and len(said) < 10_000


@pytest.mark.parametrize("key", ["model", "model_args"])
@pytest.mark.parametrize("value", [v for v in ANYTHING if not isinstance(v, dict)], ids=repr)
def test_a_table_that_is_none_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    assert f"it has no table `{key}`" in refusal(checkpoint(tmp_path, **{key: value}))


@pytest.mark.parametrize("value", ANYTHING, ids=repr)
def test_an_entry_of_the_model_that_is_no_tensor_is_refused(tmp_path: Path, value: Any) -> None:
    for name in ("transformer.ln_f.bias", 7):
        model = open_torch(GOLDEN)["model"] | {name: value}
        shown = str(name).removeprefix("transformer.")
        assert f"an entry {shown} that is no tensor" in refusal(checkpoint(tmp_path, model=model))


def test_a_tensor_with_and_without_prefix_is_refused(tmp_path: Path) -> None:
    model = open_torch(GOLDEN)["model"]
    tensor = model["transformer.ln_f.bias"]
    assert isinstance(tensor, Tensor)
    said = refusal(checkpoint(tmp_path, model=model | {"_orig_mod.transformer.ln_f.bias": tensor}))
    assert "the tensor ln_f.bias twice" in said


def test_an_entry_that_nobody_needs_may_hold_one_container_twice() -> None:
    """As torch.save writes a `config` that was given to a logger, too."""
    path = GOLDEN.parents[1] / "nanogpt_shared" / "ckpt.pt"
    tree = open_torch(path)
    assert tree["config"] == tree["wandb_config"] == {"dataset": "x"}
    assert open_nanogpt(path).config.vocab == 300
