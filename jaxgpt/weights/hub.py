"""GPT-2 weights on the Hugging Face hub, fetched with the hub's own client into its own cache.

The hub states the commit of the branch `main` and the hash of each file in it. Every file is downloaded from
that commit and must have that hash. No hash, revision or address is written down here.
"""

import contextlib
import hashlib
import os
import re
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from jaxgpt.config import CONFIG_FILE
from jaxgpt.errors import DataError, MissingError, StorageError
from jaxgpt.files import file_sha256
from jaxgpt.text import tokenizer_folder
from jaxgpt.text.chat_template import OTHERS, TEMPLATE_FILE
from jaxgpt.text.tokenizer_folder import JSON_FILE, MERGES_FILE, VOCAB_FILE
from jaxgpt.weights.ends import GENERATION_FILE
from jaxgpt.weights.formats.huggingface import SAFETENSORS, TORCH
from jaxgpt.weights.formats.huggingface_config import read_config_json

PUBLIC = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
# A single file of weights, and the shards that an index may name instead; the first kind there is is fetched.
WEIGHTS = {
    SAFETENSORS: re.compile(r"model-\d{5}-of-(\d{5})\.safetensors"),
    TORCH: re.compile(r"pytorch_model-\d{5}-of-(\d{5})\.bin"),
}
# Fetched too if the repository has them.
BESIDE = (JSON_FILE, GENERATION_FILE, TEMPLATE_FILE, *tokenizer_folder.BESIDE)
OTHER_TEMPLATE = re.compile(rf"{OTHERS}/[\w.-]+\.jinja", re.ASCII)
OLDER_TOKENIZER = (VOCAB_FILE, MERGES_FILE)  # fetched if it has no tokenizer.json
COMMIT = re.compile(r"[0-9a-f]{40}")
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # of a git blob, of a large file


class _Unfetched(Exception):
    """The hub did not give what it was asked for. The message says why in a few words."""


def repository_of(source: str) -> str | None:
    """Return the repository on the hub that a MODEL names, or None if it can only be a path.

    It is one of the PUBLIC names, or OWNER/NAME where nothing here is called OWNER: a path in a folder that
    exists is a path.
    """
    if source in PUBLIC:
        return PUBLIC[source]
    return source if REPOSITORY.fullmatch(source) and not Path(source).parent.exists() else None


def fetch(name: str, *, endpoint: str | None = None, cache: Path | None = None) -> Path:
    """Return the folder in the hub's cache that holds a model: config.json, weights, tokenizer.json.

    When the hub cannot be reached, a complete model in the cache is used. `endpoint` and `cache` default to
    what the hub's client takes from its environment (HF_ENDPOINT, HF_HOME, ...). Raises MissingError when
    neither the hub nor the cache has the model, DataError when a file has another hash than the hub states
    or config.json is not a GPT-2's, StorageError when the cache cannot be written.
    """
    from huggingface_hub import constants

    if (found := repository_of(name)) is None:
        raise MissingError(
            f"no public model {name!r}",
            why="it is no name on the hub",
            fix=f"name one of {', '.join(PUBLIC)}, or OWNER/NAME",
        )
    repository = _Repository(found, endpoint or constants.ENDPOINT, cache or Path(constants.HF_HUB_CACHE))
    try:
        try:
            return repository.download()
        except _Unfetched as error:
            folder = repository.cached()
            if folder is None:
                also = "" if name in PUBLIC else "; there is no such file or folder here either"
                check = "the connection" if name in PUBLIC else "the spelling and the connection"
                raise MissingError(
                    f"cannot fetch {name}",
                    path=f"{repository.endpoint}/{repository.name}",
                    why=f"{error}{also}",
                    fix=f"check {check}, or download {CONFIG_FILE}, {SAFETENSORS} and {JSON_FILE} "
                    "from there on another machine and give their folder as MODEL",
                ) from error
            warnings.warn(
                f"{name}: {error}; the copy in {folder} is used, which may be older than the hub's",
                stacklevel=2,
            )
            return folder
    except OSError as error:
        raise StorageError(
            f"cannot store {name}",
            path=repository.cache,
            why=str(error),
            fix="check space and permission there, or set HF_HOME to another folder",
        ) from error


class _Repository(NamedTuple):
    """A repository of a model on a hub, and the cache that its files are stored in."""

    name: str
    endpoint: str
    cache: Path

    def download(self) -> Path:
        """Return the folder of the commit of main, complete and verified.

        Raises _Unfetched, DataError, OSError.
        """
        commit, hashes = self.listing()
        read_config_json(self.verified(CONFIG_FILE, commit, hashes[CONFIG_FILE]))  # before gigabytes follow
        paths = [self.verified(file, commit, expected) for file, expected in hashes.items()]
        if (main := self.main()) is None or main.name != commit:
            with contextlib.suppress(_Unfetched):  # asked for main, the client records its commit
                self.file(CONFIG_FILE, "main")
        return paths[0].parent

    def listing(self) -> tuple[str, dict[str, str]]:
        """Return the commit of main, and the hash of each of its files that we need. Raises _Unfetched."""
        from huggingface_hub import HfApi, constants

        with _asking():
            # Without a timeout this call of the client would wait for ever. No token is sent: public models
            # need none, and a user's own token must not reach another endpoint.
            info = HfApi(endpoint=self.endpoint, token=False).model_info(
                self.name, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
            hashes = {
                file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in info.siblings or ()
            }
            files = _wanted(hashes)
            if files is None:
                raise _Unfetched(
                    f"the repository has no {CONFIG_FILE} with {SAFETENSORS} or {TORCH} or all shards of one"
                )
            if not COMMIT.fullmatch(str(info.sha)) or not all(
                HASH.fullmatch(str(hashes[file])) for file in files
            ):
                raise _Unfetched("the server names no commit, or no hashes of its files")
            return str(info.sha), {file: str(hashes[file]) for file in files}

    def file(self, file: str, revision: str) -> Path:
        """Return the place of a file in the cache, downloading it if need be.

        Raises _Unfetched, OSError.
        """
        from huggingface_hub import hf_hub_download

        with _asking():
            place = hf_hub_download(
                self.name, file, revision=revision, endpoint=self.endpoint, cache_dir=self.cache, token=False
            )
        return Path(place)

    def verified(self, file: str, commit: str, expected: str) -> Path:
        """Return the place of a file that has the expected hash.

        A file with another hash is removed and fetched once more. Raises DataError if that is wrong too.

        Every load checks files from the cache too, because other programs write there and disks fail. This
        costs little: the hash is fast, and the reading that follows finds the file in memory.
        """
        for _ in range(2):
            path = self.file(file, commit)
            found = _hash(path, expected)
            if found == expected:
                return path
            _remove(path)
        raise DataError(
            f"{file} of {self.name} is not the hub's",
            path=f"{self.endpoint}/{self.name}",
            why=f"its hash is {found}, not {expected}, twice",
            fix="try again later or from another network; the wrong file was deleted",
        )

    def main(self) -> Path | None:
        """Return the cache's folder of the commit last seen on main, if config.json is in it."""
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(self.name, CONFIG_FILE, cache_dir=self.cache)
        return Path(config).parent if isinstance(config, str) else None

    def cached(self) -> Path | None:
        """Return the folder of `main` if it holds the whole model. Raises DataError for a damaged file.

        The cache consists of links to files that are named after their hashes. On a system without links,
        files are checked only when they are downloaded.
        """
        folder = self.main()
        if folder is None:
            return None
        files = _wanted([path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()])
        if files is None:
            return None
        for path in (folder / file for file in files):
            expected = path.readlink().name if path.is_symlink() else ""
            if HASH.fullmatch(expected) and (found := _hash(path, expected)) != expected:
                raise DataError(
                    "damaged file in the cache",
                    path=path,
                    why=f"its hash is {found}, not {expected}",
                    fix="run again when the hub can be reached: the file is then fetched again",
                )
        return folder


def _wanted(files: Collection[str]) -> list[str] | None:
    """Return which of a repository's files make up the model, or None when some are missing."""
    if CONFIG_FILE not in files or (weights := _weights(files)) is None:
        return None
    beside = BESIDE if JSON_FILE in files else (*BESIDE, *OLDER_TOKENIZER)
    templates = [file for file in sorted(files) if OTHER_TEMPLATE.fullmatch(file)]
    return [CONFIG_FILE, *(file for file in beside if file in files), *templates, *weights]


def _weights(files: Collection[str]) -> list[str] | None:
    """Return the files of weights, of the first kind that is there as a whole."""
    for single, shard in WEIGHTS.items():
        index = f"{single}.index.json"
        shards = {file: int(match[1]) for file in sorted(files) if (match := shard.fullmatch(file))}
        if single in files:
            return [single]
        if index in files and set(shards.values()) == {len(shards)}:
            return [index, *shards]
    return None


def _hash(path: Path, expected: str) -> str:
    """Return the hash in the form that the hub states: sha256 for a large file, otherwise git's sha1.

    Git's sha1 is that of the file's length and contents. Source:
    https://git-scm.com/book/en/v2/Git-Internals-Git-Objects, "Object Storage".
    """
    if len(expected) == 64:
        return file_sha256(path)
    with path.open("rb") as file:
        start = hashlib.sha1(f"blob {os.fstat(file.fileno()).st_size}\0".encode(), usedforsecurity=False)
        return hashlib.file_digest(file, start.copy).hexdigest()


def _remove(path: Path) -> None:
    """Remove a file and every link on the way to it. The client would otherwise use what is left of them."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def _asking() -> Iterator[None]:
    """Turn what the hub's client raises into _Unfetched; errors of the disk stay as they are."""
    try:
        yield
    except Exception as error:  # the client and its libraries share no base class of errors
        network = isinstance(error, ConnectionError | TimeoutError)
        if isinstance(error, OSError) and error.errno is not None and not network:
            raise
        raise _Unfetched(_reason(error)) from error


def _reason(error: BaseException) -> str:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return _reason(error.__cause__)  # the reason why the client could look only in the cache
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, HfHubHTTPError):
        return f"the server answered {error.response.status_code} {error.response.reason_phrase}"
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    unlike = isinstance(error, ValueError | KeyError | TypeError | AttributeError)
    return f"the server does not answer as a hub does: {text}" if unlike else text
