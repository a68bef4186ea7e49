"""The architecture of a model. Imports no JAX."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from jaxgpt.config.checks import check_types, require, require_fraction, require_positive


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The architecture. The defaults are GPT-2 124M exactly."""

    vocab: int = 50257
    """Number of token ids. When training, the data's tokenizer decides it."""
    context: int = 1024
    """Longest sequence, in tokens."""
    layers: int = 12
    """Number of transformer blocks."""
    heads: int = 12
    """Attention heads a block."""
    width: int = 768
    """Size of the residual stream."""
    mlp_width: int | None = None
    """Inner size of the MLP; None is 4 x width."""
    bias: bool = True
    """Biases in the linear layers and LayerNorms."""
    layer_norm_epsilon: float = 1e-5
    """Added to the variance in every LayerNorm."""
    activation: Literal["gelu_tanh", "gelu", "relu", "silu"] = "gelu_tanh"
    """The MLP's non-linearity; GPT-2 uses the tanh approximation of GELU."""
    tied_head: bool = True
    """The output head is the token embedding, transposed."""
    scale_attention: bool = True
    """Divide attention scores by the square root of the head size."""
    scale_by_inverse_layer: bool = False
    """Divide attention scores also by (layer + 1)."""
    position: Literal["learned", "sinusoidal", "rotary", "alibi"] = "learned"
    """How positions are told apart; GPT-2 learns absolute ones."""
    dropout: float = 0.0
    """Probability of dropping embeddings, attention weights and residual branches in training."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and matrix products. Parameters, LayerNorm statistics, softmax and loss stay float32."""
    vocab_multiple: int = 128
    """The embedding is stored with its rows rounded up to a multiple of this, so that it shards evenly."""

    def __post_init__(self) -> None:
        check_types(self)
        require_positive(
            self, "vocab", "context", "layers", "heads", "width", "layer_norm_epsilon", "vocab_multiple"
        )
        require_fraction(self, "dropout")
        require(self.mlp_width is None or self.mlp_width > 0, "mlp_width", self.mlp_width, "greater than 0")
        require(self.width % self.heads == 0, "width", self.width, f"a multiple of heads ({self.heads})")
        if self.position == "rotary":
            require(self.head_size % 2 == 0, "width / heads", self.head_size, "even for rotary positions")
        if self.position == "sinusoidal":
            require(self.width % 2 == 0, "width", self.width, "even for sinusoidal positions")

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def mlp_size(self) -> int:
        return 4 * self.width if self.mlp_width is None else self.mlp_width

    @property
    def padded_vocab(self) -> int:
        """Rows the embedding is stored with."""
        return -(-self.vocab // self.vocab_multiple) * self.vocab_multiple

    def with_only(self, ids: int) -> "GPTConfig":
        """The same stored model, in which only the first `ids` tokens exist: no other is ever probable."""
        return dataclasses.replace(self, vocab=min(ids, self.vocab), vocab_multiple=self.padded_vocab)

    def differences(self, other: "GPTConfig") -> dict[str, tuple[Any, Any]]:
        """The fields in which two models differ, beside how they are trained, computed and stored."""
        mine, others = (
            dataclasses.asdict(config) | {"mlp_width": config.mlp_size} for config in (self, other)
        )
        passed_over = {"dropout", "compute_dtype", "vocab_multiple"}
        return {n: (mine[n], others[n]) for n in mine if n not in passed_over and mine[n] != others[n]}
