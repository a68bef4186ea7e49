"""The front door for weights: a folder, a file or a public name, of any format, becomes a StoredModel.

The contents of a file decide its format, not its name alone.
"""

import dataclasses
from pathlib import Path

from jaxgpt.config import CONFIG_FILE
from jaxgpt.errors import ConfigError, DataError, MissingError, unreadable
from jaxgpt.text.chat_template import templates_in
from jaxgpt.text.foreign_tokenizer import ForeignTokenizer
from jaxgpt.text.tokenizer import Tokenizer, gpt2_tokenizer
from jaxgpt.text.tokenizer_files import load_tokenizer, tokenizer_in
from jaxgpt.weights.adapted import is_adapter, open_adapter, with_adapter
from jaxgpt.weights.adapter import Adapter
from jaxgpt.weights.ends import ends_in
from jaxgpt.weights.formats.huggingface import open_huggingface
from jaxgpt.weights.formats.llmc_bin import MODEL, is_llmc, open_llmc
from jaxgpt.weights.formats.nanogpt import CHECKPOINT, META, open_meta, open_nanogpt
from jaxgpt.weights.formats.openai import HPARAMS, open_openai
from jaxgpt.weights.hub import PUBLIC, fetch, repository_of
from jaxgpt.weights.names import listed
from jaxgpt.weights.run import is_run, named_step, open_run
from jaxgpt.weights.tensors import StoredModel

GPT2_VOCAB = 50257
# Files of other kinds of tokenizers: sentencepiece, WordPiece, or a table of tokens without merges.
OTHER_TOKENIZERS = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "vocab.txt",
    "vocab.json",
)


def open_model(
    source: str | Path, *, adapter: str | Path | None = None, layer_norm_epsilon: float | None = None
) -> StoredModel:
    """Open a run directory, a folder or file of weights in any format, or a name on the hub such as `gpt2`.

    `RUN@best` is the best checkpoint of a run directory and `RUN@500` that of step 500. A file or folder of
    that name goes before the model on the hub, which is fetched. An `adapter`, the path of a run that trained
    one or of a folder of PEFT's, is merged into the model. Such a path is also a model by itself: the base
    that it names, with it merged. `layer_norm_epsilon` is only for OpenAI's files, which do not state it. No
    tensor is read yet. Raises MissingError when there is
    no such model, DataError when it is damaged or is not a GPT-2 in one of the formats, ConfigError for an
    epsilon that the files state themselves, StorageError when reading fails.
    """
    if adapter is not None:
        base = open_model(source, layer_norm_epsilon=layer_norm_epsilon)
        return _adapted(base, str(source), open_adapter(adapter), adapter)
    path, step = named_step(source)
    if is_adapter(path):
        found = open_adapter(source)
        return _adapted(_base_of(found, path, layer_norm_epsilon), found.base.name, found, source)
    if not path.exists():
        if repository_of(str(source)) is None:
            raise MissingError(
                f"no model {str(source)!r}",
                why=f"it is neither a file or folder here nor one of {', '.join(PUBLIC)}",
                fix="check the spelling, or train one with `jaxgpt pretrain nano --out-dir runs/nano`",
            )
        path = fetch(str(source))
    if layer_norm_epsilon is not None and not (path / HPARAMS).is_file():
        raise ConfigError(
            f"layer_norm_epsilon = {layer_norm_epsilon:g}",
            why="the model's own files state it",
            fix=f"leave it out: only a folder with OpenAI's {HPARAMS} needs it",
        )
    try:
        model = open_run(path, step) if is_run(path) else _open(path, layer_norm_epsilon)
        folder = path if path.is_dir() else path.parent
        ends, ends_notes = ends_in(folder, model.config.vocab)
        templates, template_notes = _templates(folder)
    except OSError as error:
        raise unreadable(path, error, "cannot read the model") from error
    tokenizer, notes = tokenizer_of(folder, model.config.vocab)
    return dataclasses.replace(
        model,
        tokenizer=tokenizer,
        stated_ends=ends,
        templates=templates,
        notes=(*model.notes, *notes, *ends_notes, *template_notes),
    )


def _base_of(adapter: Adapter, path: Path, layer_norm_epsilon: float | None) -> StoredModel:
    """Return the base that an adapter names."""
    try:
        return open_model(adapter.base.name, layer_norm_epsilon=layer_norm_epsilon)
    except MissingError as error:
        raise MissingError(
            f"the adapter's base {adapter.base.name!r} is not here",
            path=path,
            why="only the adapter is in this folder, and its base cannot be opened",
            fix="name the base, and this folder as its adapter: load(BASE, adapter=...), --adapter",
        ) from error


def _adapted(base: StoredModel, name: str, adapter: Adapter, source: str | Path) -> StoredModel:
    """Return a base with the adapter of `source`, and with the tokenizer beside it, if there is one."""
    path, _ = named_step(source)
    model = with_adapter(base, adapter, path, name=name)
    if not tokenizer_in(path):
        return model
    tokenizer, notes = tokenizer_of(path, model.config.vocab)
    return dataclasses.replace(model, tokenizer=tokenizer, notes=(*model.notes, *notes))


def _templates(folder: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return a folder's chat templates, or a note that says why they cannot be read."""
    try:
        return templates_in(folder), ()
    except DataError as error:
        return {}, (f"the model is used without a chat template, because we cannot read its own: {error}",)


def _open(path: Path, layer_norm_epsilon: float | None) -> StoredModel:
    if path.is_file():
        return _open_file(path)
    if (path / HPARAMS).is_file():
        return open_openai(path, layer_norm_epsilon=layer_norm_epsilon)
    if (path / CONFIG_FILE).is_file():
        return open_huggingface(path)
    for name in (CHECKPOINT, MODEL):
        if (path / name).is_file():
            return _open_file(path / name)
    raise MissingError(
        "no model",
        path=path,
        why=f"it is no run directory and has neither {CONFIG_FILE} nor {HPARAMS} nor {CHECKPOINT} "
        f"nor {MODEL}",
        fix="name the folder or file that holds the weights",
    )


def _open_file(path: Path) -> StoredModel:
    if is_llmc(path):
        return open_llmc(path)
    if path.suffix == ".safetensors" or (path.parent / CONFIG_FILE).is_file():
        return open_huggingface(path)
    return open_nanogpt(path)


def tokenizer_of(folder: Path, vocab: int) -> tuple[Tokenizer | None, tuple[str, ...]]:
    """Return the tokenizer that belongs to weights in this folder, for a model of `vocab` ids.

    It is the folder's own, or that of nanoGPT's meta.pkl. If that is of a kind that we do not read, it is
    None, and a note says so. A folder without one gets GPT-2's if the model has ids enough for it; a run
    directory does not. Added tokens beyond the model's ids are left out, and a note names them. Raises
    DataError when the tokenizer has more ids than the model in another way.
    """
    tokenizer, notes = None, []
    own, meta = tokenizer_in(folder), folder / META
    if own or meta.is_file():
        try:
            tokenizer = load_tokenizer(folder) if own else open_meta(meta)
        except DataError as error:
            if is_run(folder):
                raise
            return None, (f"the model is used without a tokenizer, because we cannot read its own: {error}",)
    elif other := [name for name in OTHER_TOKENIZERS if (folder / name).is_file()]:
        return None, (
            f"the model is used without a tokenizer: {', '.join(other)} is of a kind that we do not read",
        )
    elif vocab >= GPT2_VOCAB and not is_run(folder):
        tokenizer = gpt2_tokenizer()
    if isinstance(tokenizer, ForeignTokenizer) and tokenizer.vocab > vocab:
        given, tokenizer = tokenizer, tokenizer.within(vocab)
        left_out = [text for text, id in given.added_ids.items() if id >= vocab]
        notes.append(f"added tokens without a row in the model are left out: {listed(left_out, most=10)}")
    if tokenizer is not None and tokenizer.vocab > vocab:
        raise DataError(
            "another model's tokenizer",
            path=folder,
            why=f"the tokenizer {tokenizer.name} has {tokenizer.vocab} ids, the model {vocab}",
            fix="put the model's own tokenizer.json there",
        )
    return tokenizer, tuple(notes)
