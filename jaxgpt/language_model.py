"""A trained model for people: `load(MODEL)` gives config, parameters and tokenizer in one object."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgpt.config import CONFIG_FILE, GPTConfig, MeshConfig, read_config
from jaxgpt.errors import ConfigError, DataError, MissingError
from jaxgpt.inference.engine import generate_ids
from jaxgpt.inference.sampling import Sampling
from jaxgpt.model.gpt import Params, define
from jaxgpt.parallel import abstract, mesh_of
from jaxgpt.text.batches import check_ids
from jaxgpt.text.tokenizer import TOKENIZER_FILE, Tokenizer, load_tokenizer
from jaxgpt.training.run_directory import CHECKPOINTS
from jaxgpt.weights.checkpoint import latest_step, restore
from jaxgpt.weights.convert import read_huggingface


@dataclass(frozen=True)
class LanguageModel:
    """A model and its tokenizer. `params` is a plain nested dict; computations are in float32 unless config says so."""

    config: GPTConfig
    params: Params
    tokenizer: Tokenizer

    def logits(self, tokens_BT: np.ndarray) -> Array:
        """float32 logits [B, T, V] for ids [B, T].

        Raises ConfigError for more tokens than the context, DataError for an id outside the vocabulary.
        """
        tokens_BT = np.asarray(tokens_BT)
        if tokens_BT.shape[1] > self.config.context:
            raise ConfigError(
                f"{tokens_BT.shape[1]} tokens", why=f"the context is {self.config.context}", fix="pass fewer tokens"
            )
        return _logits(self.params, jnp.asarray(check_ids(tokens_BT, self.config.vocab)), config=self.config)

    def stream(
        self, prompt: str, *, max_new_tokens: int = 100, sampling: Sampling | None = None, seed: int = 0
    ) -> Iterator[int]:
        """Token ids that continue a prompt, one by one; ends early where the model ends its text.

        An empty prompt starts a new text. Past the context window the oldest half is dropped (inference.engine).
        """
        end = self.tokenizer.end_of_text
        ids = self.tokenizer.encode(prompt) or [end]
        new = generate_ids(self.params, self.config, ids, sampling=sampling or Sampling(), seed=seed, end=end)
        return itertools.islice(new, max_new_tokens)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """The continuation of each prompt (without the prompt), each drawn with the same seed, independently."""
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
        return [
            self.tokenizer.decode(list(self.stream(p, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)))
            for p in prompts
        ]


def load(model: str | Path) -> LanguageModel:
    """Load MODEL: a run directory (its latest checkpoint, averaged weights where kept) or a Hugging Face folder.

    Raises MissingError when it is neither, DataError when its files are damaged.
    """
    folder = Path(model)
    if (folder / CHECKPOINTS).is_dir():
        return _load_run(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise MissingError(
            f"no model {str(model)!r}",
            why="it is neither a run directory with a checkpoint nor a Hugging Face folder",
            fix="train one with `jaxgpt pretrain nano --out-dir runs/nano`",
        )
    config, params = read_huggingface(folder)
    tokenizer = load_tokenizer(folder if (folder / "tokenizer.json").is_file() else "gpt2")
    if tokenizer.vocab > config.vocab:
        raise DataError(
            "no tokenizer", path=folder, fix="put the model's own tokenizer.json there",
            why=f"the tokenizer {tokenizer.name} has {tokenizer.vocab} ids, the model {config.vocab}",
        )  # fmt: skip
    return LanguageModel(config, jax.tree.map(jnp.asarray, params), tokenizer)


def _load_run(folder: Path) -> LanguageModel:
    train = read_config(folder)
    step = latest_step(folder / CHECKPOINTS)
    if step is None:
        raise MissingError("no checkpoint", path=folder, why="the run saved none yet", fix="train it further")
    config = dataclasses.replace(train.model, dropout=0.0, compute_dtype="float32")
    shapes = jax.eval_shape(define(config).init, jax.random.key(0))
    target = abstract(shapes, mesh_of(MeshConfig(data=1), jax.local_devices()[:1]))
    item = "average" if train.optim.ema_decay else "params"
    params = restore(folder / CHECKPOINTS, step, item, target)
    return LanguageModel(config, params, load_tokenizer(folder / TOKENIZER_FILE))


@jax.jit(static_argnames="config")
def _logits(params: Params, tokens_BT: Array, *, config: GPTConfig) -> Array:
    return define(config).apply(params, tokens_BT)
