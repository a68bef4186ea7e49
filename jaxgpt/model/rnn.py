"""Translation before transformers: two recurrent networks, with attention or without.

    params = {"wte": {"embedding"}, "encoder": {...}, "decoder": {...}}    with attention also "query", "join"

The encoder reads a source token by token, and keeps what it has read in a state of a fixed size. Without
attention, its last state is all that the decoder gets. With attention, the decoder also looks at all of its
states: a query made of the decoder's own state decides at which of them. The functions are those of the
Transformer (`model.seq2seq`), and so is the table that embeds source and target and scores the outputs.

Sources: Cho et al. 2014 (the GRU, and the encoder and decoder); Luong et al. 2015, section 3.1 (attention,
with scores of the kind "general").
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxgpt.config import RNNConfig
from jaxgpt.model.attention import scaled_dot_product_attention
from jaxgpt.model.dropout import drop
from jaxgpt.model.gpt import Params
from jaxgpt.model.pure import parameters, structure
from jaxgpt.model.seq2seq import Memory, Seq2Seq


class GRU(nnx.Module):
    """A gated recurrent unit, with the gates in the order of PyTorch: reset, update, new.

        r = sigmoid(W_r x + U_r h);  z = sigmoid(W_z x + U_z h);  n = tanh(W_n x + r * (U_n h))
        h = (1 - z) * n + z * h

    Where a token is padding, the state stays what it is.
    """

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.input, self.state = (nnx.Linear(width, 3 * width, rngs=rngs) for _ in range(2))

    def __call__(self, x_BTD: Array, first_BD: Array, real_BT: Array) -> Array:
        """The states [B, T, D] behind each token, beginning from `first_BD`."""

        def step(h_BD: Array, token: tuple[Array, Array]) -> tuple[Array, Array]:
            from_input, real_B = token
            (r_in, z_in, n_in), (r, z, n) = (jnp.split(x, 3, axis=-1) for x in (from_input, self.state(h_BD)))
            z_BD = jax.nn.sigmoid(z_in + z)
            new_BD = jnp.tanh(n_in + jax.nn.sigmoid(r_in + r) * n)
            h_BD = jnp.where(real_B[:, None], (1 - z_BD) * new_BD + z_BD * h_BD, h_BD)
            return h_BD, h_BD

        tokens = jnp.moveaxis(self.input(x_BTD), 1, 0), jnp.moveaxis(real_BT, 1, 0)
        return jnp.moveaxis(jax.lax.scan(step, first_BD, tokens)[1], 0, 1)


class RNN(nnx.Module):
    """The parts of the model."""

    def __init__(self, config: RNNConfig, rngs: nnx.Rngs) -> None:
        self.config, width = config, config.width
        self.wte = nnx.Embed(config.vocab, width, rngs=rngs)
        self.encoder, self.decoder = GRU(width, rngs), GRU(width, rngs)
        if config.attention:
            self.query = nnx.Linear(width, width, rngs=rngs)
            self.join = nnx.Linear(2 * width, width, rngs=rngs)

    def embed(self, tokens_BT: Array, key: Array | None) -> Array:
        """The embeddings [B, T, D] of tokens."""
        return drop(self.wte(tokens_BT), self.config.dropout, key)

    def encode(self, source_BS: Array, key: Array | None) -> Memory:
        """The states behind each token. The last column has the last state, whatever the padding."""
        real_BS = source_BS != self.config.padding
        first_BD = jnp.zeros((len(source_BS), self.config.width))
        return Memory(self.encoder(self.embed(source_BS, key), first_BD, real_BS), real_BS)

    def decode(self, inputs_BT: Array, memory: Memory, key: Array | None) -> tuple[Array, Array | None]:
        """What is compared with the embeddings of all tokens, [B, T, D], and the attention weights."""
        real_BT = jnp.ones(inputs_BT.shape, bool)
        x_BTD = self.decoder(self.embed(inputs_BT, key), memory.states_BSD[:, -1], real_BT)
        if not self.config.attention:
            return x_BTD, None
        context_BTD, weights_BTS = scaled_dot_product_attention(
            self.query(x_BTD), memory.states_BSD, memory.states_BSD, mask_TS=memory.real_BS[:, None]
        )
        return jnp.tanh(self.join(jnp.concatenate([context_BTD, x_BTD], axis=-1))), weights_BTS


def define(config: RNNConfig) -> Seq2Seq:
    """The pure functions of this architecture."""
    model = structure(lambda: RNN(config, nnx.Rngs(0)))

    def init(key: Array) -> Params:
        return parameters(RNN(config, nnx.Rngs(key)))

    def encode(params: Params, source_BS: Array | np.ndarray, *, key: Array | None = None) -> Memory:
        return nnx.merge(model, params).encode(jnp.asarray(source_BS), _folded(key, 0))

    def decode(
        params: Params, inputs_BT: Array | np.ndarray, memory: Memory, *, key: Array | None = None
    ) -> Array:
        rnn = nnx.merge(model, params)
        x_BTD, _ = rnn.decode(jnp.asarray(inputs_BT), memory, _folded(key, 1))
        return rnn.wte.attend(x_BTD)

    return Seq2Seq(init, encode, decode)


def alignment(config: RNNConfig) -> Callable[[Params, Array | np.ndarray, Array | np.ndarray], Array]:
    """A function `look(params, source_BS, inputs_BT)`: at which tokens of the source the decoder looks.

    It returns the attention weights [B, T, S], for pictures. The model must have attention.
    """
    assert config.attention, "without attention there are no weights"
    model = structure(lambda: RNN(config, nnx.Rngs(0)))

    def look(params: Params, source_BS: Array | np.ndarray, inputs_BT: Array | np.ndarray) -> Array:
        rnn = nnx.merge(model, params)
        memory = rnn.encode(jnp.asarray(source_BS), None)
        _, weights_BTS = rnn.decode(jnp.asarray(inputs_BT), memory, None)
        assert weights_BTS is not None
        return weights_BTS

    return look


def _folded(key: Array | None, number: int) -> Array | None:
    return None if key is None else jax.random.fold_in(key, number)
