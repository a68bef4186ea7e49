"""Which ids end a text: what the files beside the weights say, and who ends a text there."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import exit_code

import jaxgpt
from jaxgpt.errors import DataError
from jaxgpt.language_model import LanguageModel
from jaxgpt.weights.convert import FORMATS, with_vocab, write_model
from jaxgpt.weights.ends import ends_in
from jaxgpt.weights.open import open_model

CASES = Path(__file__).parent / "golden"


def states(folder: Path, **files: Any) -> Path:
    for name, table in files.items():
        path = folder / f"{name}.json"
        before = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(before | table))
    return folder


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ({"eos_token_id": 3}, {}, {3}),
        ({"eos_token_id": [7, 3]}, {"eos_token_id": 5}, {3, 7}),
        ({"eos_token_id": None}, {"eos_token_id": 5}, {5}),
        ({"eos_token_id": []}, {"eos_token_id": [5]}, {5}),
        ({}, {"eos_token_id": 5, "eos_token_ids": 6}, {5}),
        ({}, {"eos_token_ids": 6}, {6}),
        ({}, {"eos_token_ids": [6, 0]}, {0, 6}),
        ({"bos_token_id": 1}, {"eos_token_id": None}, set()),
    ],
)
def test_the_ends_are_those_of_generation_config_or_else_of_config(
    tmp_path: Path, generation: dict, config: dict, ends: set
) -> None:
    states(tmp_path, config=config)
    if generation:
        states(tmp_path, generation_config=generation)
    assert ends_in(tmp_path, 10) == (frozenset(ends), ())


def test_ids_that_the_model_does_not_have_are_left_out_and_named(tmp_path: Path) -> None:
    states(tmp_path, generation_config={"eos_token_id": [3, 50256, -1]})
    ends, (note,) = ends_in(tmp_path, 10)
    assert ends == {3}
    assert note == "generation_config.json: no text ends at -1, 50256, as the model has 10 ids"


@pytest.mark.parametrize("content", ['{"eos_token_id": "</s>"}', '{"eos_token_id": [1, true]}', "[1]", "{"])
def test_what_is_no_id_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(DataError, match=r"not a model's generation_config.json"):
        ends_in(tmp_path, 10)


@pytest.fixture(scope="module")
def greedy(lm: LanguageModel) -> list[int]:
    """What the model writes when nothing ends it, in which the 4th and the 5th id are new ones."""
    request = dataclasses.replace(lm.request("ab", max_new_tokens=12), ignore_end=True)
    request = dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, temperature=0))
    ids = [new.token for _, new in lm.engine().run([request])]
    assert ids.index(ids[4]) == 4 and ids.index(ids[3]) == 3
    return ids


@pytest.fixture
def folder(lm_folder: Path, greedy: list[int], tmp_path: Path) -> Path:
    """The model, of which two other ids than its tokenizer's end a text."""
    return states(
        Path(shutil.copytree(lm_folder, tmp_path / "model")),
        config={"eos_token_id": greedy[0]},
        generation_config={"eos_token_id": [greedy[4], greedy[3]]},
    )


def test_python_ends_a_text_at_any_of_the_stated_ids(
    folder: Path, greedy: list[int], lm: LanguageModel
) -> None:
    model = jaxgpt.load(folder)
    assert model.ends == {greedy[3], greedy[4]} and lm.ends == {256}
    written = model.generate("ab", max_new_tokens=12, temperature=0)
    assert written == model.tokenizer.decode(greedy[:3])


@pytest.mark.parametrize("flags", [(), ("--beams", "1", "--length-penalty", "0"), ("--draft", "model")])
def test_every_decoder_of_generate_does(
    folder: Path, greedy: list[int], flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> None:
    monkeypatch.chdir(folder.parent)
    assert exit_code("generate", "model", "ab", "--max-new-tokens", 12, "--temperature", 0, *flags) == 0
    written = jaxgpt.load(folder).tokenizer.decode(greedy[:3])
    assert capfdbinary.readouterr().out.decode() == f"ab{written}\n"


@pytest.mark.parametrize("to", FORMATS)
def test_conversions_keep_the_ends(folder: Path, greedy: list[int], tmp_path: Path, to: str) -> None:
    given = open_model(folder)
    write_model(given, tmp_path / to, to)
    assert open_model(tmp_path / to).ends == {greedy[3], greedy[4]}
    write_model(open_model(tmp_path / to), tmp_path / "back", "huggingface")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "back" / name).read_text())["eos_token_id"] == sorted(greedy[3:5])
    jaxgpt.load(tmp_path / to).save(tmp_path / "saved")
    assert open_model(tmp_path / "saved").ends == {greedy[3], greedy[4]}


def test_a_format_of_ours_states_no_ends_that_are_the_tokenizers(lm: LanguageModel, tmp_path: Path) -> None:
    lm.save(tmp_path / "run", "jaxgpt")
    assert not (tmp_path / "run" / "generation_config.json").exists()
    lm.save(tmp_path / "folder")
    assert json.loads((tmp_path / "folder" / "generation_config.json").read_text())["eos_token_id"] == 256


def test_a_smaller_vocabulary_has_no_ends_outside_it() -> None:
    model = dataclasses.replace(open_model(CASES / "plain"), stated_ends=frozenset([3, 60]))
    assert with_vocab(model, 60).ends == {3} and with_vocab(model, 70).ends == {3, 60}
