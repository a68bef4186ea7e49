"""The architectures that came before GPT: an encoder, an encoder with a decoder, recurrent networks.

What their layers have in common with GPT's is described by a GPTConfig, which also checks it. Imports no JAX.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from jaxgpt.config.checks import check_types, require, require_fraction, require_positive
from jaxgpt.config.model import GPTConfig


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A bidirectional encoder. The defaults are those of BERT-base."""

    vocab: int = 30522
    """Number of token ids in the vocabulary, with those for padding and for hidden words."""
    context: int = 512
    """Length of the longest text that the model can read, in tokens."""
    layers: int = 12
    """Number of transformer blocks."""
    heads: int = 12
    """Number of attention heads in each block. It must divide the width."""
    width: int = 768
    """Number of values that represent a token between the blocks."""
    mlp_width: int | None = None
    """Number of hidden units in the MLP of each block. None means 4 x width."""
    activation: Literal["gelu_tanh", "gelu", "relu", "silu"] = "gelu"
    """Non-linear function in the MLPs and in the head for hidden words."""
    layer_norm_epsilon: float = 1e-12
    """Small number that every LayerNorm adds to the variance."""
    padding: int = 0
    """The id that fills a row behind its text. No token of the text sees it."""
    classes: int = 0
    """Number of classes that a classifier's head tells apart. 0 means a model without that head."""
    dropout: float = 0.0
    """Probability of setting a value to 0 in training."""

    def __post_init__(self) -> None:
        check_types(self)
        _check_padding(self.padding, self.blocks.vocab)

    @property
    def blocks(self) -> GPTConfig:
        """The same settings, as GPT's layers take them."""
        return _as_gpt(self)


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig:
    """A transformer of an encoder and a decoder. The defaults are those of the original paper's base model.

    Source: Vaswani et al. 2017, table 3. Its vocabulary was about 37,000 tokens, for both languages.
    """

    vocab: int = 37000
    """Number of token ids in the vocabulary that source and target share."""
    layers: int = 6
    """Number of blocks in the encoder, and again in the decoder."""
    heads: int = 8
    """Number of attention heads in each block. It must divide the width."""
    width: int = 512
    """Number of values that represent a token between the blocks. It must be even."""
    mlp_width: int | None = None
    """Number of hidden units in the MLP of each block. None means 4 x width."""
    activation: Literal["gelu_tanh", "gelu", "relu", "silu"] = "relu"
    """Non-linear function in the MLPs."""
    layer_norm_epsilon: float = 1e-5
    """Small number that every LayerNorm adds to the variance."""
    padding: int = 0
    """The id that fills a row behind its source. Nothing sees it."""
    dropout: float = 0.0
    """Probability of setting a value to 0 in training."""

    def __post_init__(self) -> None:
        check_types(self)
        _check_padding(self.padding, self.blocks.vocab)

    @property
    def blocks(self) -> GPTConfig:
        """The same settings, as GPT's layers take them."""
        return _as_gpt(self, position="sinusoidal", init="torch")


@dataclass(frozen=True, kw_only=True)
class RNNConfig:
    """An encoder and a decoder of one GRU each (gated recurrent units), with or without attention."""

    vocab: int
    """Number of token ids in the vocabulary that source and target share."""
    width: int = 256
    """Number of values in an embedding and in the state of a GRU."""
    attention: bool = True
    """Whether the decoder looks at all states of the encoder, and not only at the last one."""
    padding: int = 0
    """The id that fills a row behind its source. The encoder's state stays what it is there."""
    dropout: float = 0.0
    """Probability of setting a value of an embedding to 0 in training."""

    def __post_init__(self) -> None:
        check_types(self)
        require_positive(self, "vocab", "width")
        require_fraction(self, "dropout")
        _check_padding(self.padding, self.vocab)


def _as_gpt(config: Any, **more: Any) -> GPTConfig:
    """The settings that a GPTConfig has too. Raises ConfigError where it refuses them."""
    names = {field.name for field in dataclasses.fields(GPTConfig)}
    shared = {name: value for name, value in dataclasses.asdict(config).items() if name in names}
    return GPTConfig(vocab_multiple=1, **shared, **more)


def _check_padding(padding: int, vocab: int) -> None:
    require(0 <= padding < vocab, "padding", padding, f"an id of the vocabulary, 0 to {vocab - 1}")
