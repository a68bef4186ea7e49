"""An adapter (LoRA) that lies in some file, whoever wrote it, and the base that it belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxgpt.config import GPTConfig, LoraConfig
from jaxgpt.errors import DataError
from jaxgpt.model.lora import adapter_shapes
from jaxgpt.weights.tensors import Head


class Base(NamedTuple):
    """The model that an adapter was trained on."""

    name: str
    """What names it, as `--from` does."""
    vocab: int = 0
    """The number of tokens that its digest counts."""
    digest: str | None = None
    """Its `weights.digests.model_digest`. None where nobody computed it, so that it cannot be compared."""


@dataclass(frozen=True)
class Adapter:
    """An adapter, and the head of a classifier that was trained with it."""

    lora: LoraConfig
    layers: tuple[int, ...]
    """The layers that it changes."""
    leaves: Mapping[str, np.ndarray]
    """`h/attn/c_attn/lora_A` [N, in, r] and so on, float32, N being the number of `layers`."""
    base: Base
    head: Head | None = None
    """What the head of a classifier means, without labels where only the base knows them. None where there is
    none."""
    score: np.ndarray | None = None
    """The kernel of that head, [D, C]."""
    templates: Mapping[str, str] = field(default_factory=dict)
    """Chat templates beside it, by their names."""
    notes: tuple[str, ...] = ()
    """What was passed over, in sentences for the person who asked."""

    def whole(self, config: GPTConfig, path: str | Path) -> dict[str, np.ndarray]:
        """Its leaves with every layer of a base of this architecture, those that it does not change zero.

        Raises DataError, which names all leaves that do not fit, for a base of another architecture.
        """
        shapes = adapter_shapes(config, self.lora)
        wanted = {name: (len(self.layers), *shape[1:]) for name, shape in shapes.items()}
        problems = [
            f"{name} is {list(leaf.shape)}, not {list(wanted[name])}"
            for name, leaf in self.leaves.items()
            if leaf.shape != wanted[name]
        ]
        if self.score is not None and self.score.shape[0] != config.width:
            problems.append(f"the head reads {self.score.shape[0]} values, not {config.width}")
        if max(self.layers) >= config.layers:
            problems.append(f"it changes layer {max(self.layers)}, and there are {config.layers} layers")
        if problems:
            raise DataError(
                "adapter does not fit the model",
                path=path,
                why=", ".join(problems),
                fix=f"give it the model that it was trained on: {self.base.name}",
            )
        whole = {}
        for name, leaf in self.leaves.items():
            whole[name] = np.zeros(shapes[name], np.float32)
            whole[name][list(self.layers)] = leaf
        return whole


def check_base(trained_on: Base, here: Base, path: str | Path) -> None:
    """Raise DataError where an adapter was trained on another base than the one that is here."""
    if trained_on.digest is not None and trained_on.digest != here.digest:
        raise DataError(
            "adapter of another base",
            path=path,
            why=f"it was trained on {trained_on.name}, and the parameters of {here.name} are not those that "
            "it was trained on",
            fix="give it the model that it was trained on, as it was then",
        )
