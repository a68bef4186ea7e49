"""Fetching from a hub gives the bytes of one commit, or a plain error after which nothing is kept."""

import functools
import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_hub import FAILURES, FakeHub, Files, identity, offline
from huggingface_hub import close_session, constants

from jaxgpt.errors import DataError, MissingError, StorageError
from jaxgpt.weights.formats.huggingface import open_huggingface
from jaxgpt.weights.hub import PUBLIC, _asking, _hash, _Unfetched, fetch, repository_of
from jaxgpt.weights.open import open_model

GOLDEN = Path(__file__).parent / "golden"
WEIGHTS = "model.safetensors"
NEEDED = ["config.json", "generation_config.json", WEIGHTS, "tokenizer.json"]


def stored(name: str) -> Files:
    return {path.name: path.read_bytes() for path in (GOLDEN / name).iterdir() if path.name != "expected.npz"}


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The client as it is without settings of the machine's, and no request of its own to the real hub."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in {"OFFLINE": False, "DISABLE_TELEMETRY": True, "DISABLE_SYMLINKS": False}.items():
        monkeypatch.setattr(constants, f"HF_HUB_{name}", value, raising=False)
    close_session()
    yield
    close_session()


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    beside = {"tokenizer.json": b'{"version": "1.0"}', "generation_config.json": b"{}"}
    unneeded = dict.fromkeys(
        ["pytorch_model.bin", "tf_model.h5", "64.tflite", "vocab.json", "onnx/config.json"], b"x"
    )
    with FakeHub(PUBLIC["gpt2"], stored("plain") | beside | unneeded) as running:
        yield running


Fetch = Callable[[], Path]


@pytest.fixture
def fetched(hub: FakeHub, tmp_path: Path) -> Fetch:
    return lambda: fetch("gpt2", endpoint=hub.endpoint, cache=tmp_path)


def from_cache(fetched: Fetch, why: str = "") -> Path:
    """What is fetched where the hub does not answer, which must be said."""
    with pytest.warns(UserWarning, match=rf"gpt2: .*{why}.*; the copy in .* is used, which may be older"):
        return fetched()


def files_under(folder: Path) -> set[str]:
    """The names of all files of a cache, but for the client's own notes."""
    return {
        path.name for path in folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".TAG")
    }


def test_a_fetched_folder_is_the_repositorys_model_and_nothing_else(hub: FakeHub, fetched: Fetch) -> None:
    folder = fetched()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: hub.commits[hub.main][name] for name in NEEDED
    }
    assert sorted(hub.contents()) == NEEDED
    found, true = open_huggingface(folder), open_huggingface(GOLDEN / "plain")
    assert found.config == true.config
    for name, tensor in true.tensors.items():
        np.testing.assert_array_equal(found.tensors[name].read(), tensor.read())


def test_the_older_files_of_a_tokenizer_are_fetched_where_there_is_no_tokenizer_json(
    hub: FakeHub, fetched: Fetch
) -> None:
    older = dict.fromkeys(["vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"], b"x")
    hub.push(stored("plain") | older)
    assert older.keys() <= {path.name for path in fetched().iterdir()}


def test_an_index_brings_its_shards(hub: FakeHub, fetched: Fetch) -> None:
    hub.push(stored("sharded"))
    folder = fetched()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == stored("sharded")
    assert open_huggingface(folder).config == open_huggingface(GOLDEN / "sharded").config


@pytest.mark.parametrize("linked", [False, True])
def test_a_second_fetch_asks_for_no_contents(hub: FakeHub, tmp_path: Path, linked: bool) -> None:
    cache = tmp_path / "cache"
    if linked:
        (tmp_path / "disk").mkdir()
        cache.symlink_to(tmp_path / "disk")
    folder = fetch("gpt2", endpoint=hub.endpoint, cache=cache)
    hub.requests.clear()
    assert fetch("gpt2", endpoint=hub.endpoint, cache=cache) == folder
    assert hub.requests == [f"GET /api/models/{hub.repository}?blobs=true"]


def test_all_files_are_from_one_commit_while_main_moves(hub: FakeHub, fetched: Fetch) -> None:
    before = hub.main
    other = {name: content + b" " for name, content in hub.commits[before].items()}
    hub.after = lambda file: None if len(hub.commits) > 1 else hub.push(other) and None
    folder = fetched()
    assert hub.main != before and folder.name == before
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: hub.commits[before][name] for name in NEEDED
    }


def test_a_new_commit_is_fetched_and_is_then_what_there_is_offline(hub: FakeHub, fetched: Fetch) -> None:
    old = fetched()
    new = hub.push({**hub.commits[hub.main], "config.json": hub.commits[hub.main]["config.json"] + b"\n"})
    hub.requests.clear()
    folder = fetched()
    assert folder != old and folder.name == new
    assert hub.contents() == ["config.json"]  # the others are the same
    hub.stop()
    assert from_cache(fetched) == folder


@pytest.mark.parametrize(("fail", "why"), FAILURES.values(), ids=FAILURES)
def test_without_a_hub_and_a_cache_it_is_said_what_to_put_where(
    hub: FakeHub, fetched: Fetch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fail: Callable, why: str
) -> None:
    fail(hub, monkeypatch)
    start = time.monotonic()
    with pytest.raises(MissingError, match=why) as raised:
        fetched()
    assert time.monotonic() - start < 5
    message = str(raised.value)
    assert (
        message.startswith(f"cannot fetch gpt2 ({hub.endpoint}/openai-community/gpt2): ")
        and "\n" not in message
    )
    assert "download config.json, model.safetensors and tokenizer.json from there" in message
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("fail", "why"), FAILURES.values(), ids=FAILURES)
def test_without_a_hub_the_cache_will_do(
    hub: FakeHub, fetched: Fetch, monkeypatch: pytest.MonkeyPatch, fail: Callable, why: str
) -> None:
    folder = fetched()
    fail(hub, monkeypatch)
    assert from_cache(fetched, why) == folder


@pytest.mark.parametrize("name", ["plain", "sharded"])
@pytest.mark.parametrize("lost", ["config.json", "model*.safetensors"])
@pytest.mark.parametrize("dangling", [False, True])
def test_part_of_a_model_in_the_cache_will_not_do(
    hub: FakeHub, fetched: Fetch, name: str, lost: str, dangling: bool
) -> None:
    hub.push(stored(name))
    gone = max(fetched().glob(lost))
    (gone.resolve() if dangling else gone).unlink()
    hub.stop()
    with pytest.raises(MissingError, match="cannot fetch gpt2"):
        fetched()


@pytest.mark.parametrize("file", ["config.json", WEIGHTS])
def test_other_bytes_than_the_hub_names_are_refused_and_not_kept(
    hub: FakeHub, fetched: Fetch, tmp_path: Path, file: str
) -> None:
    true = hub.commits[hub.main][file]
    wrong = true[:-1] + bytes([true[-1] ^ 1])
    hub.bodies = {file: wrong}
    with pytest.raises(
        DataError, match=rf"{file} of .* its hash is {identity(file, wrong)}, not {identity(file, true)}"
    ):
        fetched()
    assert not {file, identity(file, true)} & files_under(tmp_path)
    hub.bodies = {}
    assert (fetched() / file).read_bytes() == true


@pytest.mark.parametrize("file", ["config.json", WEIGHTS])
def test_a_file_damaged_in_the_cache_is_fetched_anew(hub: FakeHub, fetched: Fetch, file: str) -> None:
    folder = fetched()
    true = (folder / file).read_bytes()
    (folder / file).write_bytes(b"x" + true[1:])
    hub.requests.clear()
    assert (fetched() / file).read_bytes() == true
    assert hub.contents() == [file]


@pytest.mark.parametrize("file", ["config.json", WEIGHTS])
def test_a_file_damaged_in_the_cache_is_refused_offline(hub: FakeHub, fetched: Fetch, file: str) -> None:
    folder = fetched()
    (folder / file).write_bytes(b"x" + (folder / file).read_bytes()[1:])
    hub.stop()
    with pytest.raises(DataError, match=f"damaged file in the cache .*{file}"):
        fetched()


def test_a_cache_without_links_is_checked_and_used_too(
    hub: FakeHub, fetched: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetched()
    true = (folder / WEIGHTS).read_bytes()
    for path in folder.iterdir():
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(b"x" + content[1:] if path.name == WEIGHTS else content)
    assert (fetched() / WEIGHTS).read_bytes() == true
    offline(hub, monkeypatch)
    assert from_cache(fetched) == folder


def test_a_transfer_cut_off_leaves_no_half_file(
    hub: FakeHub, fetched: Fetch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "time.sleep", lambda seconds: None
    )  # the client waits a second before each of its retries
    hub.cut = {WEIGHTS: 1000}
    with pytest.raises(MissingError, match=r"cannot fetch gpt2 .*closed connection"):
        fetched()
    assert not {WEIGHTS, identity(WEIGHTS, hub.commits[hub.main][WEIGHTS])} & files_under(tmp_path)
    hub.cut = {}
    assert (fetched() / WEIGHTS).read_bytes() == hub.commits[hub.main][WEIGHTS]


def test_a_full_disk_is_a_storage_error(hub: FakeHub, fetched: Fetch) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # bytes; the weights have 49,368
    try:
        with pytest.raises(StorageError, match=r"cannot store gpt2 .*File too large"):
            fetched()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_cache_that_is_no_folder_is_a_storage_error(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot store gpt2 .*/file\)"):
        fetch("gpt2", endpoint=hub.endpoint, cache=tmp_path / "file")


def test_no_token_of_the_users_is_sent(hub: FakeHub, fetched: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetched()
    assert hub.requests and not hub.tokens


def test_a_server_that_names_no_hashes_is_no_hub(hub: FakeHub, fetched: Fetch) -> None:
    info = json.loads(hub._info(hub.main))
    for sibling in info["siblings"]:
        sibling.pop("lfs", None)
        sibling.pop("blobId")
    hub.listing = json.dumps(info).encode()
    with pytest.raises(MissingError, match="the server names no commit, or no hashes"):
        fetched()
    assert not hub.contents()


def test_small_files_are_hashed_as_git_hashes_them(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"hello\n")
    assert (
        _hash(tmp_path / "file", "0" * 40) == "ce013625030ba8dba906f756967f9e9ca394464a"
    )  # git hash-object file


@pytest.mark.parametrize(
    "lost", ["config.json", WEIGHTS, f"{WEIGHTS}.index.json", "model-00013-of-00013.safetensors"]
)
def test_a_repository_without_a_whole_model_is_not_begun(hub: FakeHub, fetched: Fetch, lost: str) -> None:
    files = stored("sharded" if "-0" in lost or "index" in lost else "plain")
    del files[lost]
    hub.push(files)
    with pytest.raises(
        MissingError,
        match=r"no config\.json with model\.safetensors or pytorch_model\.bin or all shards of one",
    ):
        fetched()
    assert not hub.contents()


def test_a_hub_that_lists_but_does_not_serve_is_a_missing_input(
    hub: FakeHub, fetched: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(hub, "files_status", 503)
    with pytest.raises(
        MissingError, match=r"cannot fetch gpt2 .*: the server answered 503 Service Unavailable;"
    ):
        fetched()


def test_a_hub_that_goes_when_all_has_come_has_done_enough(
    hub: FakeHub, fetched: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.after = lambda file: setattr(hub, "files_status", 503 if len(hub.contents()) == len(NEEDED) else 200)
    assert sorted(path.name for path in fetched().iterdir()) == NEEDED


@pytest.mark.parametrize(
    ("raised", "becomes", "said"),
    [
        (OSError(28, "No space left on device"), OSError, "No space"),
        (ConnectionResetError(104, "Connection reset by peer"), _Unfetched, "Connection reset"),
        (TimeoutError(110, "Connection timed out"), _Unfetched, "timed out"),
        (RuntimeError("first line\nsecond line"), _Unfetched, "^first line$"),
        (RuntimeError(), _Unfetched, "^RuntimeError$"),
    ],
)
def test_what_the_client_raises_is_the_disks_or_the_networks(
    raised: Exception, becomes: type, said: str
) -> None:
    with pytest.raises(becomes, match=said) as caught, _asking():
        raise raised
    assert caught.type is becomes


def test_a_name_that_is_not_public_is_missing() -> None:
    with pytest.raises(MissingError, match=r"no public model 'gpt3'.* gpt2-xl, distilgpt2, or OWNER/NAME"):
        fetch("gpt3")


@pytest.mark.parametrize(
    ("source", "repository"),
    [
        ("gpt2", "openai-community/gpt2"),
        ("distilgpt2", "distilbert/distilgpt2"),
        ("openai-community/gpt2", "openai-community/gpt2"),
        ("some-one/Dialo_GPT-2.1", "some-one/Dialo_GPT-2.1"),
        *(
            (path, None)
            for path in ("gpt3", "runs/typo", "./a/b", "../a", "/a/b", "a/b/c", "a/", "a\\b", "a/.b", "")
        ),
    ],
)
def test_a_path_in_a_folder_that_exists_is_no_name(
    source: str, repository: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert repository_of(source) == repository


TEMPLATES = {"chat_template.jinja": b"hi", "additional_chat_templates/rag.jinja": b"read"}


@pytest.fixture
def other_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that has somebody's GPT-2, and that models are fetched from."""
    with FakeHub("some-one/small", stored("plain") | TEMPLATES) as hub:
        here = functools.partial(fetch, endpoint=hub.endpoint, cache=tmp_path / "cache")
        monkeypatch.setattr("jaxgpt.weights.open.fetch", here)
        monkeypatch.chdir(tmp_path)
        yield hub


def test_any_gpt2_on_the_hub_can_be_named(other_hub: FakeHub, tmp_path: Path) -> None:
    model = open_model("some-one/small")
    assert model.config == open_huggingface(GOLDEN / "plain").config
    assert model.templates == {"default": "hi", "rag": "read"}
    (tmp_path / "some-one").mkdir()  # now it is a path
    with pytest.raises(
        MissingError, match="no model 'some-one/small': it is neither a file or folder here nor"
    ):
        open_model("some-one/small")


def test_torch_files_will_do_where_there_are_no_safetensors(other_hub: FakeHub, tmp_path: Path) -> None:
    other_hub.push(stored("bin"))
    assert open_model("some-one/small").config == open_huggingface(GOLDEN / "bin").config
    many = {f"pytorch_model-0000{n}-of-00002.bin": b"x" for n in (1, 2)}
    other_hub.push({"config.json": stored("bin")["config.json"], "pytorch_model.bin.index.json": b"x"} | many)
    folder = fetch("some-one/small", endpoint=other_hub.endpoint, cache=tmp_path / "cache")
    assert {*many, "pytorch_model.bin.index.json", "config.json"} == {path.name for path in folder.iterdir()}


def test_a_name_that_is_neither_here_nor_there_is_said_of_both(other_hub: FakeHub) -> None:
    with pytest.raises(MissingError) as caught:
        open_model("some-two/small")
    place, both = (
        f"{other_hub.endpoint}/some-two/small",
        "404 Not Found; there is no such file or folder here either",
    )
    said = (
        f"cannot fetch some-two/small ({place}): the server answered {both}; check the spelling and the conn"
    )
    assert str(caught.value).startswith(said)


def test_of_another_kind_of_model_no_weights_are_fetched(other_hub: FakeHub) -> None:
    config = json.loads(stored("plain")["config.json"]) | {"model_type": "llama"}
    other_hub.push(stored("plain") | {"config.json": json.dumps(config).encode()})
    with pytest.raises(DataError, match=r"not a GPT-2 we compute .*: model_type = llama"):
        open_model("some-one/small")
    assert other_hub.contents() == ["config.json"]
