"""The architecture of a model. Imports no JAX."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from jaxgpt.config.checks import check_types, require, require_fraction, require_positive


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The architecture of the model. The defaults are exactly GPT-2 124M."""

    vocab: int = 50257
    """Number of token ids in the vocabulary. In training, the tokenizer of the data decides it."""
    context: int = 1024
    """Length of the longest sequence that the model can read, in tokens."""
    layers: int = 12
    """Number of transformer blocks."""
    heads: int = 12
    """Number of attention heads in each block. It must divide the width."""
    width: int = 768
    """Number of values that represent a token between the blocks (the size of the residual stream)."""
    mlp_width: int | None = None
    """Number of hidden units in the MLP of each block. None means 4 x width."""
    bias: bool = True
    """Whether the linear layers and the LayerNorms have biases."""
    qkv_bias: bool = True
    """Whether the layers that make queries, keys and values have biases too, where others have them."""
    layer_norm_epsilon: float = 1e-5
    """Small number that every LayerNorm adds to the variance, so that it never divides by 0."""
    activation: Literal["gelu_tanh", "gelu", "relu", "silu", "relu_squared"] = "gelu_tanh"
    """Non-linear function in the MLP. gelu_tanh, the tanh approximation of GELU, is GPT-2's."""
    classes: int = 0
    """Number of classes that a classifier's head tells apart. 0 means a language model without that head.
    In classification, the labels of the data decide it."""
    tied_head: bool = True
    """Whether the output head uses the weights of the token embedding, transposed, instead of its own."""
    scale_attention: bool = True
    """Whether attention scores are divided by the square root of the head size (width / heads)."""
    qk_norm: bool = False
    """Whether each query and each key is divided by its root mean square before scores are made of them."""
    scale_by_inverse_layer: bool = False
    """Whether attention scores are also divided by the number of the layer, counted from 1."""
    position: Literal["learned", "sinusoidal", "rotary", "alibi"] = "learned"
    """How the model knows where in the text a token stands. GPT-2 learns an embedding for each position."""
    dropout: float = 0.0
    """Probability of setting a value to 0 in training.
    This happens to embeddings, attention weights and the outputs of attention and MLP."""
    init: Literal["gpt2", "gpt2_zero", "torch"] = "gpt2"
    """How new weights are drawn. gpt2 is small normal numbers, with biases of 0, as GPT-2's paper has it.
    gpt2_zero is the same, but each block adds 0 to the residual stream at first, and so changes nothing.
    torch is what PyTorch's layers begin with when nobody says otherwise, as in the book."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number type of activations and matrix products.
    Parameters, LayerNorm statistics, the softmax and the loss are always float32."""
    vocab_multiple: int = 128
    """The stored embedding's number of rows is rounded up to a multiple of this.
    It then splits evenly over devices. The added rows are zeros and are never predicted."""

    def __post_init__(self) -> None:
        check_types(self)
        require_positive(
            self, "vocab", "context", "layers", "heads", "width", "layer_norm_epsilon", "vocab_multiple"
        )
        require_fraction(self, "dropout")
        require(self.classes >= 0, "classes", self.classes, "0 or more")
        require(self.mlp_width is None or self.mlp_width > 0, "mlp_width", self.mlp_width, "greater than 0")
        require(self.width % self.heads == 0, "width", self.width, f"a multiple of heads ({self.heads})")
        if self.position == "rotary":
            even, fix = self.head_size % 2 == 0, "choose a width that is a multiple of 2 x heads"
            require(even, "width / heads", self.head_size, "even for rotary positions", fix=fix)
        if self.position == "sinusoidal":
            even, fix = self.width % 2 == 0, "choose an even width"
            require(even, "width", self.width, "even for sinusoidal positions", fix=fix)

    @property
    def head_size(self) -> int:
        """The number of values of each attention head."""
        return self.width // self.heads

    @property
    def mlp_size(self) -> int:
        """The number of hidden units in the MLP of each block."""
        return 4 * self.width if self.mlp_width is None else self.mlp_width

    @property
    def biased_qkv(self) -> bool:
        """Whether the layers that make queries, keys and values have biases."""
        return self.bias and self.qkv_bias

    @property
    def padded_vocab(self) -> int:
        """The number of rows that the stored embedding has."""
        return -(-self.vocab // self.vocab_multiple) * self.vocab_multiple

    @property
    def matmul_precision(self) -> Literal["highest", "default"]:
        """JAX's precision of matrix products: no hardware may round the inputs of float32 products."""
        return "highest" if self.compute_dtype == "float32" else "default"

    def with_only(self, ids: int) -> "GPTConfig":
        """Return the same stored model with only the first `ids` tokens: no other one is ever predicted."""
        return dataclasses.replace(self, vocab=min(ids, self.vocab), vocab_multiple=self.padded_vocab)

    def differences(self, other: "GPTConfig") -> dict[str, tuple[Any, Any]]:
        """Return the fields in which two models differ, each with both values.

        Fields that say only how a model is trained, computed or stored are not compared.
        """
        mine, others = (
            dataclasses.asdict(config) | {"mlp_width": config.mlp_size, "qkv_bias": config.biased_qkv}
            for config in (self, other)
        )
        passed_over = {"dropout", "init", "compute_dtype", "vocab_multiple"}
        return {n: (mine[n], others[n]) for n in mine if n not in passed_over and mine[n] != others[n]}
