"""The front door: what a folder, a file or a name is, and which tokenizer belongs to it."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxgpt
from jaxgpt.config import GPTConfig, MeshConfig
from jaxgpt.errors import ConfigError, DataError, MissingError, StorageError
from jaxgpt.model.gpt import Params
from jaxgpt.parallel import mesh_of
from jaxgpt.text.tokenizer import RankTokenizer
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.weights import open as door
from jaxgpt.weights.formats.huggingface import write_tokenizer
from jaxgpt.weights.open import open_model
from jaxgpt.weights.params import stored_params
from jaxgpt.weights.run import write_run
from jaxgpt.weights.tensors import StoredModel

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def gpt2_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2's tokenizer in the form that was there before tokenizer.json."""
    folder = tmp_path_factory.mktemp("gpt2")
    write_tokenizer(load_tokenizer("gpt2"), 1024, folder)
    (folder / "tokenizer.json").unlink()
    return folder


@pytest.fixture
def gpt2_folder(gpt2_files: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(gpt2_files, tmp_path / "gpt2"))


def test_gpt2s_tokenizer_is_taken_only_where_there_is_room_for_it(tmp_path: Path) -> None:
    assert open_model(GOLDEN / "plain").tokenizer is None
    with pytest.raises(
        DataError, match=r"no tokenizer: the model came without one that we read, and its 61 ids"
    ):
        jaxgpt.load(GOLDEN / "plain").tokenizer  # noqa: B018
    found = [door.tokenizer_of(tmp_path, vocab)[0] for vocab in (50256, 50257, 50304)]
    assert [tokenizer and tokenizer.name for tokenizer in found] == [None, "gpt2", "gpt2"]
    (tmp_path / "checkpoints").mkdir()  # a run directory has its own tokenizer or none
    assert door.tokenizer_of(tmp_path, 50257) == (None, ())


def test_a_folders_own_vocabulary_is_used_and_never_gpt2s_in_its_place(tmp_path: Path) -> None:
    """vocab.json and merges.txt without a tokenizer.json, with other ids than GPT-2's for the bytes."""
    gpt2 = load_tokenizer("gpt2")
    tokens = list(gpt2.ranks)
    own = RankTokenizer({token: rank for rank, token in enumerate([*reversed(tokens[:256]), *tokens[256:]])})
    write_tokenizer(own, 1024, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    found, notes = door.tokenizer_of(tmp_path, 50257)
    assert found is not None and notes == () and found.vocab == 50257
    assert found.name == own.name != "gpt2"
    text = "Hello w\u00f6rld! 123 <|endoftext|>"
    assert found.encode(text) == own.encode(text) != gpt2.encode(text)


@pytest.mark.parametrize(
    ("name", "content", "ids"),
    [
        ("added_tokens.json", '{"<pad>": 50257}', [15496, 50257]),
        ("tokenizer_config.json", '{"add_prefix_space": true}', [18435, 27, 15636, 29]),
        ("merges.txt", "a b\n", [39, 68, 75, 75, 78, 27, 79, 64, 67, 29]),
    ],
)
def test_older_files_unlike_gpt2s_are_the_models_tokenizer(
    gpt2_folder: Path, name: str, content: str, ids: list[int]
) -> None:
    (gpt2_folder / name).write_text(content)
    found, notes = door.tokenizer_of(gpt2_folder, 50258)
    assert found is not None and notes == () and found.encode("Hello<pad>") == ids


def test_added_tokens_without_a_row_are_left_out_and_named(gpt2_folder: Path) -> None:
    (gpt2_folder / "added_tokens.json").write_text('{"<pad>": 50257}')
    found, notes = door.tokenizer_of(gpt2_folder, 50257)
    assert found is not None and found.vocab == 50257
    assert notes == ("added tokens without a row in the model are left out: <pad>",)
    with pytest.raises(DataError, match="has 50257 ids, the model 50256"):
        door.tokenizer_of(gpt2_folder, 50256)


def test_files_that_are_no_tokenizer_leave_the_weights_without_one(gpt2_folder: Path) -> None:
    (gpt2_folder / "vocab.json").write_text("[]")
    found, (note,) = door.tokenizer_of(gpt2_folder, 50257)
    assert found is None and "used without a tokenizer" in note and str(gpt2_folder) in note


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.txt", "vocab.json"])
def test_another_kind_of_tokenizer_is_named_and_gpt2s_is_not_taken_for_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    found, (note,) = door.tokenizer_of(tmp_path, 50257)
    assert found is None and f"without a tokenizer: {name} is of a kind that we do not read" in note


def test_a_tokenizer_that_we_do_not_read_leaves_the_weights_usable(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "plain", tmp_path / "model")
    (folder / "tokenizer.json").write_text('{"model": {"type": "WordPiece", "vocab": {}}}')
    with pytest.warns(
        UserWarning, match="the model is used without a tokenizer, because we cannot read its own"
    ):
        lm = jaxgpt.load(folder)
    assert lm.given_tokenizer is None
    np.testing.assert_array_equal(lm.logits([[1, 2, 3]]), jaxgpt.load(GOLDEN / "plain").logits([[1, 2, 3]]))


def test_an_epsilon_is_taken_only_where_the_files_state_none(
    tmp_path: Path, config: GPTConfig, params: Params
) -> None:
    write_run(stored_params(config, params), tmp_path / "run")
    for model in (GOLDEN / "plain", tmp_path / "run"):
        for enter in (open_model, jaxgpt.load):
            with pytest.raises(ConfigError, match="the model's own files state it"):
                enter(model, layer_norm_epsilon=1e-3)


def test_an_assumed_epsilon_is_named() -> None:
    with pytest.warns(UserWarning, match=r"hparams\.json has no layer_norm_epsilon: 1e-05 assumed"):
        jaxgpt.load(GOLDEN / "openai_tf" / "plain")


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x80\x04.", b"PK\x03\x04", (20240326).to_bytes(4, "little")]
)
@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.safetensors"])
def test_a_file_of_something_else_is_no_model(tmp_path: Path, name: str, content: bytes) -> None:
    shutil.copy(GOLDEN / "plain" / "config.json", tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        open_model(tmp_path / name)


def test_a_name_that_is_nothing_is_a_missing_input(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="neither a file or folder here nor one of "):
        open_model(tmp_path / "nothing")
    with pytest.raises(MissingError, match=r"it is no run directory and has neither config\.json"):
        open_model(tmp_path)


def test_what_lies_here_goes_before_a_public_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "fetch", lambda name: GOLDEN / "odd" if name == "gpt2" else None)
    monkeypatch.chdir(tmp_path)
    assert open_model("gpt2").config == open_model(GOLDEN / "odd").config
    shutil.copytree(GOLDEN / "plain", "gpt2")
    assert open_model("gpt2").config == open_model(GOLDEN / "plain").config


def test_a_disk_that_fails_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ckpt.pt").write_bytes(b"")

    def fail(path: Path) -> bool:
        raise OSError(f"{path.name}: Input/output error")

    monkeypatch.setattr(door, "is_llmc", fail)
    with pytest.raises(StorageError, match=r"cannot read the model .*: ckpt\.pt: Input/output error"):
        open_model(tmp_path)


def test_a_run_is_one_more_format(tmp_path: Path, config: GPTConfig, params: Params) -> None:
    """Its parameters lie on the mesh as those of a file do; its tokenizer is its own."""
    stored = stored_params(config, params)
    write_run(StoredModel(config, stored.tensors), tmp_path / "none")
    assert open_model(tmp_path / "none").tokenizer is None
    config = GPTConfig(vocab=257, context=8, layers=1, heads=1, width=4)
    init = jaxgpt.define(config).init
    model = jaxgpt.language_model.LanguageModel(
        config, jax.jit(init)(jax.random.key(0)), load_tokenizer("bytes")
    )
    mesh = mesh_of(MeshConfig(fsdp=2, tensor=4))
    for to in ("jaxgpt", "nanogpt"):
        model.save(tmp_path / to, to)
    run, file = (jaxgpt.load(tmp_path / to, mesh=mesh) for to in ("jaxgpt", "nanogpt"))
    assert run.tokenizer.sha256 == file.tokenizer.sha256 == load_tokenizer("bytes").sha256
    for one, other in zip(jax.tree.leaves(run.params), jax.tree.leaves(file.params), strict=True):
        assert one.sharding == other.sharding
        np.testing.assert_array_equal(one, other)
