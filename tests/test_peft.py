"""PEFT's folders: what it wrote is read, what we write is what it would have written, others are refused."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from command_line import exit_code

import jaxgpt
from jaxgpt.errors import ConfigError, DataError, JaxgptError, MissingError
from jaxgpt.finetuning.class_batches import TextBatch
from jaxgpt.finetuning.class_head import class_logits
from jaxgpt.model.gpt import define
from jaxgpt.weights.adapted import open_adapter
from jaxgpt.weights.formats.peft import CONFIG, OURS, WEIGHTS, write_peft
from jaxgpt.weights.formats.safetensors_file import open_safetensors, write_safetensors
from jaxgpt.weights.open import open_model
from jaxgpt.weights.params import read_params
from jaxgpt.weights.run import one_device
from jaxgpt.weights.tensors import Tensor

GOLDEN = Path(__file__).parent / "golden"
BASES = {"causal": "plain", "stabilised": "plain", "classes": "classifier"}


@pytest.mark.parametrize("name", ["causal", "stabilised"])
def test_what_peft_wrote_has_the_logits_that_it_had_there(name: str) -> None:
    expected = np.load(GOLDEN / "peft" / name / "expected.npz")
    plain = jaxgpt.load(GOLDEN / "plain")
    lm = jaxgpt.load(GOLDEN / "plain", adapter=GOLDEN / "peft" / name)
    assert np.abs(plain.logits(expected["tokens"]) - expected["logits"]).max() > 0.1
    np.testing.assert_allclose(lm.logits(expected["tokens"]), expected["logits"], rtol=0, atol=1e-5)


def test_a_classifier_of_pefts_has_its_logits_and_the_labels_of_its_base() -> None:
    expected = np.load(GOLDEN / "peft" / "classes" / "expected.npz")
    stored = open_model(GOLDEN / "classifier", adapter=GOLDEN / "peft" / "classes")
    assert stored.head and stored.head.labels == ("ham", "spam", "other")
    tokens = expected["tokens"]
    ones = np.ones(len(tokens), np.int32)
    batch = TextBatch(tokens, ones * tokens.shape[1], ones * 0, ones)
    params = read_params(stored, one_device())
    found = jax.jit(lambda p: class_logits(define(stored.config), p, batch, "last"))(params)
    np.testing.assert_allclose(found, expected["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", BASES)
def test_what_we_write_is_what_peft_would_write(name: str, tmp_path: Path) -> None:
    given, out = GOLDEN / "peft" / name, tmp_path / "out"
    write_peft(open_adapter(given), out)
    ours, theirs = (open_safetensors(folder / WEIGHTS) for folder in (out, given))
    assert ours.keys() == theirs.keys()
    for tensor in ours:
        same = name != "causal" or "mlp.c_fc" not in tensor
        if same:  # the layer with a rank of its own is filled up
            np.testing.assert_array_equal(ours[tensor].read(), theirs[tensor].read())
    mine, peft = (json.loads((folder / CONFIG).read_text()) for folder in (out, given))
    for key in ("peft_type", "task_type", "bias", "fan_in_fan_out", "use_rslora", "r", "lora_alpha"):
        assert mine[key] == peft[key], key
    assert mine["layers_to_transform"] == peft["layers_to_transform"]
    assert set(mine) - set(peft) == set()
    ours_again, again = open_adapter(out), tmp_path / "again"
    write_peft(ours_again, again)
    assert (again / WEIGHTS).read_bytes() == (out / WEIGHTS).read_bytes()
    with pytest.raises(ConfigError, match="something is there already"):
        write_peft(ours_again, out)


def test_an_adapter_is_converted_alone_and_merged(tmp_path: Path, capsys: Any) -> None:
    given = tmp_path / "given"
    shutil.copytree(GOLDEN / "peft" / "stabilised", given)
    config = json.loads((given / CONFIG).read_text())
    (given / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": str(GOLDEN / "plain")}))
    assert exit_code("convert", given, tmp_path / "alone", "--to", "peft") == 0
    assert "rank 4" in capsys.readouterr().err
    assert exit_code("convert", given, tmp_path / "merged") == 0
    expected = np.load(given / "expected.npz")
    for lm in (jaxgpt.load(tmp_path / "alone"), jaxgpt.load(tmp_path / "merged")):
        np.testing.assert_allclose(lm.logits(expected["tokens"]), expected["logits"], rtol=0, atol=1e-5)
    capsys.readouterr()
    assert exit_code("convert", given, tmp_path / "cast", "--to", "peft", "--dtype", "float16") == 2
    assert "--to peft with --dtype" in capsys.readouterr().err
    assert exit_code("convert", GOLDEN / "plain", tmp_path / "none", "--to", "peft") == 65
    assert "not an adapter" in capsys.readouterr().err


def changed(**settings: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        table = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(table | settings))

    return change


def tensors(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], object]:
    def rewrite(folder: Path) -> None:
        found = {
            name: Tensor.of(tensor.read()) for name, tensor in open_safetensors(folder / WEIGHTS).items()
        }
        write_safetensors(folder / WEIGHTS, change(found), {})

    return rewrite


def cut(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: Tensor.of(tensor.read()[:2]) if "lora_A" in name else tensor for name, tensor in found.items()
    }


@pytest.mark.parametrize(
    ("damage", "kind", "said"),
    [
        (changed(use_dora=True), DataError, "use_dora = True"),
        (changed(init_lora_weights="pissa", bias="all"), DataError, "bias = all, init_lora_weights = pissa"),
        (changed(peft_type="IA3"), DataError, "peft_type = IA3"),
        (changed(r=0), DataError, "rank = 0"),
        (changed(lora_alpha="much"), DataError, "alpha = 'much'"),
        (changed(task_type="SEQ_CLS"), DataError, "has no score.weight"),
        (lambda folder: (folder / CONFIG).write_text("[]"), DataError, "no JSON object"),
        (lambda folder: (folder / WEIGHTS).unlink(), MissingError, f"it has no {WEIGHTS}"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"x"), DataError, "not a safetensors file"),
        (lambda folder: (folder / OURS).write_text('{"base": {"a": 1}}'), DataError, "base = "),
        (tensors(lambda found: {}), DataError, "it holds no adapter"),
        (tensors(lambda found: dict(list(found.items())[:1])), DataError, "do not belong together"),
        (tensors(lambda found: found | {"base_model.model.lm_head.weight": next(iter(found.values()))}),
         DataError, "unknown tensors: lm_head.weight"),
        (tensors(cut), DataError, "do not belong together"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(
    damage: Callable[[Path], object], kind: type[JaxgptError], said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "peft"
    shutil.copytree(GOLDEN / "peft" / "stabilised", folder)
    damage(folder)
    with pytest.raises(kind) as refused:
        open_adapter(folder)
    assert said in str(refused.value) and str(folder) in str(refused.value)


def test_keys_that_nobody_knows_are_named_and_heads_that_peft_does_not_have_refused(tmp_path: Path) -> None:
    folder = tmp_path / "peft"
    shutil.copytree(GOLDEN / "peft" / "classes", folder)
    changed(new_key=3)(folder)
    adapter = open_adapter(folder)
    assert "new_key" in adapter.notes[0]
    assert adapter.head
    mean = dataclasses.replace(adapter, head=adapter.head._replace(reads="mean"))
    with pytest.raises(ConfigError, match="its head reads mean"):
        write_peft(mean, tmp_path / "out")
