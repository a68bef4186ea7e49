"""The public GPT-2 weights, through the Hugging Face hub's own client and in its own cache.

The hub names the commit that `main` is and the hash of each of its files; every file is downloaded from that commit and
must have that hash. No hash, revision or address is written down here.
"""

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from jaxgpt.config import CONFIG_FILE
from jaxgpt.errors import DataError, MissingError, StorageError
from jaxgpt.files import file_sha256
from jaxgpt.text.tokenizer import JSON_FILE
from jaxgpt.weights.formats.huggingface import SAFETENSORS

logger = logging.getLogger(__name__)

PUBLIC = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
}
SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")
BESIDE = (JSON_FILE, "generation_config.json")  # taken where the repository has them
COMMIT = re.compile(r"[0-9a-f]{40}")
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # a git blob's, a large file's


class _Unfetched(Exception):
    """The hub did not give what was asked of it; the message says why in a few words."""


def fetch(name: str, *, endpoint: str | None = None, cache: Path | None = None) -> Path:
    """The folder in the hub's cache that holds a public model: config.json, weights, tokenizer.json.

    Where the hub cannot be asked, what the cache holds of it will do. `endpoint` and `cache` are otherwise what the
    hub's client takes from its environment (HF_ENDPOINT, HF_HOME, ...). Raises MissingError when the model can be had
    from neither, DataError when a file is not the one the hub names, StorageError when the cache cannot be written.
    """
    from huggingface_hub import constants

    if name not in PUBLIC:
        raise MissingError(
            f"no public model {name!r}",
            why="it is none of those known here",
            fix=f"name one of {', '.join(PUBLIC)}",
        )
    repository = _Repository(
        PUBLIC[name], endpoint or constants.ENDPOINT, cache or Path(constants.HF_HUB_CACHE)
    )
    try:
        try:
            return repository.download()
        except _Unfetched as error:
            folder = repository.cached()
            if folder is None:
                raise MissingError(
                    f"cannot fetch {name}",
                    path=f"{repository.endpoint}/{repository.name}",
                    why=str(error),
                    fix=f"check the connection, or on another machine download {CONFIG_FILE}, {SAFETENSORS} and "
                    f"{JSON_FILE} from there and give the folder they are in as MODEL",
                ) from error
            logger.info("%s: %s; taken from %s", name, error, folder)
            return folder
    except OSError as error:
        raise StorageError(
            f"cannot store {name}",
            path=repository.cache,
            why=str(error),
            fix="check space and permission there, or set HF_HOME to another folder",
        ) from error


class _Repository(NamedTuple):
    """A repository of models on a hub, and the cache its files go to."""

    name: str
    endpoint: str
    cache: Path

    def download(self) -> Path:
        """The folder of the commit that main is now, complete and verified. Raises _Unfetched, DataError, OSError."""
        commit, hashes = self.listing()
        paths = [self.verified(file, commit, expected) for file, expected in hashes.items()]
        if (main := self.main()) is None or main.name != commit:
            with contextlib.suppress(_Unfetched):  # the client notes what main is, which offline use goes by
                self.file(CONFIG_FILE, "main")
        return paths[0].parent

    def listing(self) -> tuple[str, dict[str, str]]:
        """The commit that main is, and the hash of each of its files that we want. Raises _Unfetched."""
        from huggingface_hub import HfApi, constants

        with _asking():
            # (Without a timeout of ours this one call of the client's would wait for ever.) Anonymous: what is public
            # needs no token, and a user's own is nobody's business at another endpoint.
            info = HfApi(endpoint=self.endpoint, token=False).model_info(
                self.name, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
            hashes = {
                file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in info.siblings or ()
            }
            files = _wanted(hashes)
            if files is None:
                raise _Unfetched(
                    f"the repository has no {CONFIG_FILE} with {SAFETENSORS} or all shards of it"
                )
            if not COMMIT.fullmatch(str(info.sha)) or not all(
                HASH.fullmatch(str(hashes[file])) for file in files
            ):
                raise _Unfetched("the server names no commit, or no hashes of its files")
            return str(info.sha), {file: str(hashes[file]) for file in files}

    def file(self, file: str, revision: str) -> Path:
        """Where a file is in the cache, downloaded if it is not there. Raises _Unfetched, OSError."""
        from huggingface_hub import hf_hub_download

        with _asking():
            place = hf_hub_download(
                self.name, file, revision=revision, endpoint=self.endpoint, cache_dir=self.cache, token=False
            )
        return Path(place)

    def verified(self, file: str, commit: str, expected: str) -> Path:
        """Where a file with that hash is. One with another is removed and fetched once more, then DataError.

        Every load checks, also what came from the cache: other programs put files there too, disks fail, and a note
        of ours in somebody else's cache could itself be wrong. Measured, sha256 takes 0.56 s a gigabyte (1.8 s on a
        processor without instructions for it), and the reading that follows finds the file in memory.
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
            fix="nothing of it was kept: try again later or from another network",
        )

    def main(self) -> Path | None:
        """The cache's folder for the commit that main was when the client last saw it, if config.json is in it."""
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(self.name, CONFIG_FILE, cache_dir=self.cache)
        return Path(config).parent if isinstance(config, str) else None

    def cached(self) -> Path | None:
        """That folder, if the whole model is in it. Raises DataError when a file in it is damaged.

        The cache's links lead to files named for the hashes the hub gave. (Where a system has no links, the files
        have been checked only when they were downloaded.)
        """
        folder = self.main()
        files = _wanted([path.name for path in folder.iterdir() if path.is_file()]) if folder else None
        if folder is None or files is None:
            return None
        for path in (folder / file for file in files):
            expected = path.readlink().name if path.is_symlink() else ""
            if HASH.fullmatch(expected) and (found := _hash(path, expected)) != expected:
                raise DataError(
                    "damaged file in the cache",
                    path=path,
                    why=f"its hash is {found}, not {expected}",
                    fix="try again when the hub can be reached, and it is fetched anew",
                )
        return folder


def _wanted(files: Collection[str]) -> list[str] | None:
    """Which of a repository's files make up the model; None when they do not."""
    index = f"{SAFETENSORS}.index.json"
    shards = {file: int(match[1]) for file in sorted(files) if (match := SHARD.fullmatch(file))}
    if SAFETENSORS in files:
        weights = [SAFETENSORS]
    elif index in files and set(shards.values()) == {len(shards)}:
        weights = [index, *shards]
    else:
        return None
    return (
        [CONFIG_FILE, *(file for file in BESIDE if file in files), *weights] if CONFIG_FILE in files else None
    )


def _hash(path: Path, expected: str) -> str:
    """The hash the hub would name: sha256 of a large file, of another git's sha1 of its length and contents.

    Source: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects, "Object Storage".
    """
    if len(expected) == 64:
        return file_sha256(path)
    with path.open("rb") as file:
        start = hashlib.sha1(f"blob {os.fstat(file.fileno()).st_size}\0".encode(), usedforsecurity=False)
        return hashlib.file_digest(file, start.copy).hexdigest()


def _remove(path: Path) -> None:
    """Remove a file and every link on the way to it: the client would take it up again at any of them."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def _asking() -> Iterator[None]:
    """What the client raises, as _Unfetched; the disk's errors as they are."""
    try:
        yield
    except Exception as error:  # the client, its HTTP library and its storage library have no base in common
        network = isinstance(error, ConnectionError | TimeoutError)
        if isinstance(error, OSError) and error.errno is not None and not network:
            raise
        raise _Unfetched(_reason(error)) from error


def _reason(error: BaseException) -> str:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return _reason(error.__cause__)  # what kept it from looking elsewhere than in the cache
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, HfHubHTTPError):
        return f"the server answered {error.response.status_code} {error.response.reason_phrase}"
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    unlike = isinstance(error, ValueError | KeyError | TypeError | AttributeError)
    return f"the server's answer is none of a hub: {text}" if unlike else text
