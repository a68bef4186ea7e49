"""GPT-2's forward pass a second time, in float64 NumPy, written from the papers to certify converted weights.

It shares no line with `jaxgpt.model`, so that a mistake there goes unseen only if it is made here too. It
computes one sequence without dropout and without a cache, and is written to be read, not to be fast.

Sources: [GPT-2] Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3;
[Attention] Vaswani et al. 2017, "Attention Is All You Need"; [LayerNorm] Ba et al. 2016, "Layer
Normalization"; [GELU] Hendrycks and Gimpel 2016, "Gaussian Error Linear Units".
"""

import math
from collections.abc import Mapping

import numpy as np

from jaxgpt.config import GPTConfig
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.weights.tensors import Tensor

Tensors = Mapping[str, Tensor]
ROWS = 4096  # rows of the vocabulary that are in memory as float64 at a time


def reference_logits(config: GPTConfig, tensors: Tensors, tokens_T: np.ndarray) -> np.ndarray:
    """Return the float64 logits [T, V] of one sequence of ids [T].

    `tensors` are by GPT-2's names, with matrices (in, out). Each is read when it is needed and not kept, so a
    tied embedding is read twice. Raises ConfigError for positions that are not learned and for unknown
    activations, DataError for tensors that are not finite or not this model's, and for ids outside the
    vocabulary or beyond the context.
    """
    _check(config, tensors, tokens_T)
    x_TD = _float64("wte.weight", _stored(tensors, "wte.weight", config.vocab, config.width)[tokens_T])
    x_TD += _float64(
        "wpe.weight", _stored(tensors, "wpe.weight", config.context, config.width)[: len(tokens_T)]
    )
    for layer in range(config.layers):
        # LayerNorm comes before each sub-block, not after it, and once more after the last block. [GPT-2]
        x_TD += attention(config, tensors, layer, layer_norm(config, tensors, f"h.{layer}.ln_1", x_TD))
        x_TD += mlp(config, tensors, layer, layer_norm(config, tensors, f"h.{layer}.ln_2", x_TD))
    return unembed(config, tensors, layer_norm(config, tensors, "ln_f", x_TD))


def attention(config: GPTConfig, tensors: Tensors, layer: int, x_TD: np.ndarray) -> np.ndarray:
    """Return causal multi-head self-attention [T, D]. Source: [Attention], equation 1 and section 3.2.2."""
    T, D = x_TD.shape
    qkv = np.split(linear(config, tensors, f"h.{layer}.attn.c_attn", x_TD, 3 * D), 3, axis=1)
    # In each of q, k and v, the columns of a head lie side by side.
    q_THK, k_SHK, v_SHK = (part.reshape(T, config.heads, config.head_size) for part in qkv)
    scores_HTS = np.einsum("THK,SHK->HTS", q_THK, k_SHK)
    if config.scale_attention:
        scores_HTS /= math.sqrt(config.head_size)
    if config.scale_by_inverse_layer:
        scores_HTS /= layer + 1
    future_TS = np.triu(np.ones((T, T), bool), k=1)
    weights_HTS = softmax(np.where(future_TS, -np.inf, scores_HTS))
    mixed_THK = np.einsum("HTS,SHK->THK", weights_HTS, v_SHK)
    return linear(config, tensors, f"h.{layer}.attn.c_proj", mixed_THK.reshape(T, D), D)


def mlp(config: GPTConfig, tensors: Tensors, layer: int, x_TD: np.ndarray) -> np.ndarray:
    """Apply two linear layers with an activation between them at each position [T, D].

    Source: [Attention], section 3.3.
    """
    inner_TF = linear(config, tensors, f"h.{layer}.mlp.c_fc", x_TD, config.mlp_size)
    activated_TF = ACTIVATIONS[config.activation](inner_TF)
    return linear(config, tensors, f"h.{layer}.mlp.c_proj", activated_TF, config.width)


def unembed(config: GPTConfig, tensors: Tensors, x_TD: np.ndarray) -> np.ndarray:
    """Return the logits [T, V]: the products with each token's row of the head, some rows at a time."""
    head = "wte.weight" if config.tied_head else "lm_head.weight"
    head_VD = _stored(tensors, head, config.vocab, config.width)
    logits_TV = np.empty((len(x_TD), config.vocab))
    for start in range(0, config.vocab, ROWS):
        rows = slice(start, start + ROWS)
        logits_TV[:, rows] = x_TD @ _float64(head, head_VD[rows]).T
    return logits_TV


def layer_norm(config: GPTConfig, tensors: Tensors, name: str, x_TD: np.ndarray) -> np.ndarray:
    """Make the mean of each position 0 and its variance 1, then scale and shift [T, D].

    Source: [LayerNorm], equations 3 and 4.
    """
    centred_TD = x_TD - x_TD.mean(axis=1, keepdims=True)
    variance_T1 = (centred_TD**2).mean(axis=1, keepdims=True)  # divided by D, not D - 1
    normal_TD = centred_TD / np.sqrt(variance_T1 + config.layer_norm_epsilon)
    scaled_TD: np.ndarray = normal_TD * _parameter(tensors, f"{name}.weight", config.width)
    return scaled_TD + _bias(config, tensors, name, config.width)


def linear(config: GPTConfig, tensors: Tensors, name: str, x: np.ndarray, size: int) -> np.ndarray:
    """Apply the linear layer of this name to [T, in]; the result is [T, size]."""
    product: np.ndarray = x @ _parameter(tensors, f"{name}.weight", x.shape[1], size)
    return product + _bias(config, tensors, name, size)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return shares that sum to 1 along the last axis. The largest score is subtracted to avoid overflow."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def gelu(x: np.ndarray) -> np.ndarray:
    """Return x times the normal distribution function at x. Source: [GELU], section 2.

    It is exact but slow, because it makes a Python call for each number.
    """
    activated: np.ndarray = x * np.vectorize(math.erfc, otypes=[np.float64])(-x / math.sqrt(2)) / 2
    return activated


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """Return the approximation of `gelu` that GPT-2 was trained with. Source: [GELU], section 2."""
    activated: np.ndarray = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return activated


def relu(x: np.ndarray) -> np.ndarray:
    """Return x where it is positive, and 0 elsewhere."""
    activated: np.ndarray = np.maximum(x, 0)
    return activated


def relu_squared(x: np.ndarray) -> np.ndarray:
    """Return the square of x where it is positive, and 0 elsewhere."""
    return relu(x) ** 2


def silu(x: np.ndarray) -> np.ndarray:
    """Return x times the logistic function at x. Source: [GELU], section 2.

    The logistic function is written exp(-log(1 + exp(-x))), which does not overflow.
    """
    activated: np.ndarray = x * np.exp(-np.logaddexp(0, -x))
    return activated


ACTIVATIONS = {"gelu_tanh": gelu_tanh, "gelu": gelu, "relu": relu, "silu": silu, "relu_squared": relu_squared}


def _bias(config: GPTConfig, tensors: Tensors, name: str, size: int) -> np.ndarray | float:
    biased = config.biased_qkv if name.endswith(".c_attn") else config.bias
    return _parameter(tensors, f"{name}.bias", size) if biased else 0.0


def _parameter(tensors: Tensors, name: str, *shape: int) -> np.ndarray:
    return _float64(name, _stored(tensors, name, *shape))


def _stored(tensors: Tensors, name: str, *shape: int) -> np.ndarray:
    """Return a tensor in its stored dtype. Another shape is refused: NumPy would stretch some to this one."""
    tensor = tensors.get(name)
    if tensor is None or tensor.shape != shape:
        why = f"it is {list(tensor.shape) if tensor else 'missing'}, where {list(shape)} is meant"
        raise DataError(
            f"tensor {name}", why=why, fix="take the weights and the settings from the same model"
        )
    return tensor.read()


def _float64(name: str, numbers: np.ndarray) -> np.ndarray:
    """Return the numbers in float64, which holds every number of the stored dtypes exactly."""
    if not np.isfinite(numbers).all():
        raise DataError(
            f"tensor {name}",
            why="a number in it is not finite",
            fix="use other weights: the training of these diverged, or their file is damaged",
        )
    return numbers.astype(np.float64)


def _check(config: GPTConfig, tensors: Tensors, tokens_T: np.ndarray) -> None:
    """Refuse what would silently give other numbers, or fail without a reason."""
    for setting, known in (
        ("position", ["learned"]),
        ("qk_norm", [False]),
        ("activation", list(ACTIVATIONS)),
    ):
        if (value := getattr(config, setting)) not in known:
            why = f"the float64 reference knows {', '.join(map(str, known))}"
            raise ConfigError(f"{setting} = {value!r}", why=why, fix="convert this model without --check")
    # There are two embeddings, four linear layers and two LayerNorms a block, one LayerNorm at the end, and a
    # head. Each tensor that is needed is asked for by name later. So if their number is right too, no tensor
    # goes unused.
    expected = 2 + (6 * config.layers + 1) * (1 + config.bias) + (not config.tied_head)
    expected -= config.layers * (config.bias and not config.qkv_bias)
    if len(tensors) != expected:
        why = f"{len(tensors)} tensors, where {expected} are meant"
        raise DataError(
            "weights do not fit the model",
            why=why,
            fix="take the weights and the settings from the same model",
        )
    if tokens_T.ndim != 1 or tokens_T.dtype.kind not in "iu" or not 0 < len(tokens_T) <= config.context:
        why = f"it is {tokens_T.dtype}{list(tokens_T.shape)}"
        raise DataError("sequence of token ids", why=why, fix=f"give 1 to {config.context} integers")
    if tokens_T.min() < 0 or tokens_T.max() >= config.vocab:
        why = f"it holds {tokens_T.min()} to {tokens_T.max()}"
        raise DataError("sequence of token ids", why=why, fix=f"give ids from 0 to {config.vocab - 1}")
