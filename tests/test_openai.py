"""OpenAI's folder: hparams.json states five sizes and nothing else, and the right checkpoint is taken."""

import json
import shutil
from pathlib import Path

import pytest

from jaxgpt.errors import DataError, MissingError
from jaxgpt.weights.formats.openai import FIELDS, open_openai

GOLDEN = Path(__file__).parent / "golden" / "openai_tf"
ANYTHING = [
    None,
    True,
    False,
    0,
    -1,
    2.0,
    1e300,
    float("nan"),
    2**70,
    10**4000,
    "",
    "2",
    [],
    [[]],
    {},
    {"a": 1},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "plain", tmp_path / "plain"))


@pytest.mark.parametrize("key", FIELDS)
def test_a_size_of_another_kind_or_beyond_any_model_is_refused(folder: Path, key: str) -> None:
    sizes = json.loads((folder / "hparams.json").read_text())
    for value in ANYTHING:
        (folder / "hparams.json").write_text(json.dumps(sizes | {key: value}))
        with pytest.raises(DataError, match=r"hparams\.json") as caught:
            open_openai(folder)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "content", ["", "[]", "3", "null", "[" * 100_000, '{"n_vocab": ' + "9" * 5000 + "}", "\xff"]
)
def test_what_is_no_table_of_sizes_is_refused(folder: Path, content: str) -> None:
    (folder / "hparams.json").write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=r"not OpenAI's hparams\.json"):
        open_openai(folder)


def test_all_problems_of_the_sizes_are_listed_at_once(folder: Path) -> None:
    (folder / "hparams.json").write_text('{"n_vocab": 61, "n_ctx": "16", "n_head": 4.0, "rope": 1}')
    with pytest.raises(DataError) as caught:
        open_openai(folder)
    for said in (
        "unknown key rope",
        "no n_embd",
        "no n_layer",
        "n_ctx is no integer",
        "n_head is no integer",
    ):
        assert said in str(caught.value)


def test_the_width_of_the_mlp_is_read_off_and_an_epsilon_may_be_stated() -> None:
    assert open_openai(GOLDEN / "odd").config.mlp_width == 40
    assert open_openai(GOLDEN / "plain").config.mlp_width is None
    stated = open_openai(GOLDEN / "odd", layer_norm_epsilon=1e-3)
    assert stated.config.layer_norm_epsilon == 1e-3 and stated.notes == ()


def test_of_several_checkpoints_the_one_that_is_named_is_taken(folder: Path) -> None:
    for file in ("index", "data-00000-of-00001"):
        shutil.copy(folder / f"model.ckpt.{file}", folder / f"other.ckpt.{file}")
    (folder / "checkpoint").unlink(missing_ok=True)
    with pytest.raises(MissingError, match=r"it has 2 files \*\.index"):
        open_openai(folder)
    (folder / "other.ckpt.index").write_bytes(b"damaged")
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n')
    assert open_openai(folder).config.vocab == 257
    (folder / "checkpoint").write_text('model_checkpoint_path: "other.ckpt"\n')
    with pytest.raises(DataError, match=r"other\.ckpt\.index"):
        open_openai(folder)
