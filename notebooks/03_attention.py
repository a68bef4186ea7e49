# %% [markdown]
# # 3. Attention, step by step
#
# Attention lets the tokens of a text look at one another. This notebook follows chapter 3 of "Build a Large
# Language Model (From Scratch)": from dot products between six small vectors to the multi-head attention that
# GPT computes. At the end, the library's own attention gives the same numbers.
#
# It needs no GPU and runs in about a minute. Where the book prints a number, `assert_printed` compares it
# with ours, and stops the notebook if they differ.

# %%
# In Colab this cell installs jaxgpt. Elsewhere it does nothing.
import importlib.util
import subprocess
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("jaxgpt") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "jaxgpt[plots]"], check=True)
    print("Now choose Runtime > Restart session in Colab's menu, and run this notebook from its first cell.")

# %% tags=["parameters"]
dropout_rate = 0.1  # the share that the library's dropout sets to zero
drawn_scores = 2000  # how many rows of random scores show what scaling is for

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

# %%
import jaxgpt
from jaxgpt.book.printed import assert_printed
from jaxgpt.book.torch_random import TorchGenerator, linear
from jaxgpt.evaluation.plots import heat_map
from jaxgpt.model import attend
from jaxgpt.model.attention import (
    causal_mask,
    causal_self_attention,
    multi_head_attention,
    multi_head_attention_wrapped,
    self_attention,
    simple_self_attention,
    split_heads,
)
from jaxgpt.model.dropout import drop
from jaxgpt.model.mask import Mask

# %% [markdown]
# ## 3.3 Attention without weights to learn
#
# A sentence of six words has been embedded: each word is a vector of three numbers. The names of arrays end
# in their axes, and here T counts the words and D the numbers of a vector.

# %%
words = ["Your", "journey", "starts", "with", "one", "step"]
x_TD = jnp.array(
    [
        [0.43, 0.15, 0.89],  # Your
        [0.55, 0.87, 0.66],  # journey
        [0.57, 0.85, 0.64],  # starts
        [0.22, 0.58, 0.33],  # with
        [0.77, 0.25, 0.10],  # one
        [0.05, 0.80, 0.55],  # step
    ]
)

# %% [markdown]
# The word "journey" asks: which words belong to me? Its vector is the query. The dot product of two vectors
# multiplies them number by number and adds everything up; it is large when they point the same way. The dot
# products of the query with all words are its attention scores.

# %%
query_D = x_TD[1]
assert_printed(sum(float(a) * float(b) for a, b in zip(x_TD[0], query_D, strict=True)), 0.9544)
scores_T = jnp.stack([jnp.dot(word_D, query_D) for word_D in x_TD])
assert_printed(scores_T, [0.9544, 1.4950, 1.4754, 0.8434, 0.7070, 1.0865])
dict(zip(words, scores_T.tolist(), strict=True))

# %% [markdown]
# The scores become weights that add up to 1. Dividing them by their sum would do.

# %%
shares_T = scores_T / scores_T.sum()
assert_printed(shares_T, [0.1455, 0.2278, 0.2249, 0.1285, 0.1077, 0.1656])
shares_T

# %% [markdown]
# Softmax is better: it takes e to the power of each score first. The weights are then above 0 for every score
# and the gradients behave well. `jax.nn.softmax` gives the same, and does not overflow for large scores.

# %%
weights_T = jnp.exp(scores_T) / jnp.exp(scores_T).sum()
assert_printed(weights_T, [0.1385, 0.2379, 0.2333, 0.1240, 0.1082, 0.1581])
np.testing.assert_allclose(weights_T, jax.nn.softmax(scores_T), rtol=1e-6)
print("sum:", weights_T.sum(), " softmax of 1000 and 1001:", jax.nn.softmax(jnp.array([1000.0, 1001.0])))

# %% [markdown]
# The context vector of "journey" is the sum of all words, each multiplied by its weight. It says what
# "journey" means in this sentence.

# %%
context_D = sum(weight * word_D for weight, word_D in zip(weights_T, x_TD, strict=True))
assert_printed(context_D, [0.4419, 0.6515, 0.5683])
context_D

# %% [markdown]
# Every word asks in the same way. One matrix product computes the scores of all pairs. T counts the words
# that ask, and S those that they look at.

# %%
scores_TS = x_TD @ x_TD.T
assert_printed(
    scores_TS,
    [
        [0.9995, 0.9544, 0.9422, 0.4753, 0.4576, 0.6310],
        [0.9544, 1.4950, 1.4754, 0.8434, 0.7070, 1.0865],
        [0.9422, 1.4754, 1.4570, 0.8296, 0.7154, 1.0605],
        [0.4753, 0.8434, 0.8296, 0.4937, 0.3474, 0.6565],
        [0.4576, 0.7070, 0.7154, 0.3474, 0.6654, 0.2935],
        [0.6310, 1.0865, 1.0605, 0.6565, 0.2935, 0.9450],
    ],
)
scores_TS

# %% [markdown]
# Softmax makes a row of weights for each query.

# %%
weights_TS = jax.nn.softmax(scores_TS, axis=-1)
assert_printed(
    weights_TS,
    [
        [0.2098, 0.2006, 0.1981, 0.1242, 0.1220, 0.1452],
        [0.1385, 0.2379, 0.2333, 0.1240, 0.1082, 0.1581],
        [0.1390, 0.2369, 0.2326, 0.1242, 0.1108, 0.1565],
        [0.1435, 0.2074, 0.2046, 0.1462, 0.1263, 0.1720],
        [0.1526, 0.1958, 0.1975, 0.1367, 0.1879, 0.1295],
        [0.1385, 0.2184, 0.2128, 0.1420, 0.0988, 0.1896],
    ],
)
weights_TS.sum(axis=-1)

# %% [markdown]
# A heat map shows the weights: each row is a query, each column a word that it looks at.

# %%
figure, panel = plt.subplots(figsize=(4.2, 4.2), layout="constrained")
heat_map(panel, weights_TS, words, title="Attention weights", largest=0.4)
plt.show()

# %% [markdown]
# A second product gives all context vectors.

# %%
contexts_TD = weights_TS @ x_TD
assert_printed(
    contexts_TD,
    [
        [0.4421, 0.5931, 0.5790],
        [0.4419, 0.6515, 0.5683],
        [0.4431, 0.6496, 0.5671],
        [0.4304, 0.6298, 0.5510],
        [0.4671, 0.5910, 0.5266],
        [0.4177, 0.6503, 0.5645],
    ],
)
contexts_TD

# %% [markdown]
# The library has these steps as one function. It takes a batch, so we give it an axis in front.

# %%
library_BTD, library_BTS = simple_self_attention(x_TD[None])
np.testing.assert_allclose(library_BTD[0], contexts_TD, rtol=1e-6)
np.testing.assert_allclose(library_BTS[0], weights_TS, rtol=1e-6)

# %% [markdown]
# ## 3.4 Weights to learn
#
# So far nothing can be learned. Three tables change that. The first turns a word into a query: what it
# looks for. The second turns it into a key: what it is found by. The third turns it into a value: what it
# gives to the words that look at it. K is their width. `TorchGenerator` draws the random numbers that
# PyTorch draws after `torch.manual_seed(123)`, so that our tables are those of the book.

# %%
generator = TorchGenerator(123)
w_query_DK, w_key_DK, w_value_DK = (generator.rand(3, 2) for _ in range(3))
query_K = x_TD[1] @ w_query_DK
assert_printed(query_K, [0.4306, 1.4551])
keys_TK, values_TK = x_TD @ w_key_DK, x_TD @ w_value_DK
assert_printed([keys_TK.shape, values_TK.shape], [[6, 2], [6, 2]])

# %% [markdown]
# The scores are dot products of the query with the keys.

# %%
assert_printed(query_K @ keys_TK[1], 1.8524)
scores_T = keys_TK @ query_K
assert_printed(scores_T, [1.2705, 1.8524, 1.8111, 1.0795, 0.5577, 1.5440])
scores_T

# %% [markdown]
# Before softmax, the scores are divided by the square root of the keys' width. The weights then make the
# context vector of the values.

# %%
weights_T = jax.nn.softmax(scores_T / keys_TK.shape[-1] ** 0.5)
assert_printed(weights_T, [0.1500, 0.2264, 0.2199, 0.1311, 0.0906, 0.1820])
context_K = weights_T @ values_TK
assert_printed(context_K, [0.3061, 0.8210])
context_K

# %% [markdown]
# `self_attention` does this for all words.

# %%
contexts_BTK, weights_BTS = self_attention(x_TD[None], w_query_DK, w_key_DK, w_value_DK)
assert_printed(
    contexts_BTK[0],
    [
        [0.2996, 0.8053],
        [0.3061, 0.8210],
        [0.3058, 0.8203],
        [0.2948, 0.7939],
        [0.2927, 0.7891],
        [0.2990, 0.8040],
    ],
)
np.testing.assert_allclose(weights_BTS[0, 1], weights_T, rtol=1e-6)

# %% [markdown]
# ### Why divide by the square root?
#
# The wider two random vectors are, the further from 0 their dot product tends to be. Softmax of large
# scores gives almost all weight to one word, and its gradient is almost zero. The division keeps the scores
# of wide vectors as small as those of narrow ones.

# %%
widths, largest = [2, 4, 8, 16, 32, 64, 128, 256], {"not scaled": [], "scaled": []}
for width in widths:
    keys = jax.random.split(jax.random.key(width))
    q_RK = jax.random.normal(keys[0], (drawn_scores, width))
    k_RSK = jax.random.normal(keys[1], (drawn_scores, 6, width))
    scores_RS = jnp.einsum("rk,rsk->rs", q_RK, k_RSK)
    for name, scale in (("not scaled", 1.0), ("scaled", width**-0.5)):
        largest[name].append(float(jax.nn.softmax(scores_RS * scale).max(axis=-1).mean()))

# %%
plt.figure(figsize=(6, 3.2))
for name, means in largest.items():
    plt.plot(widths, means, marker="o", label=name)
plt.xscale("log", base=2)
plt.ylim(0, 1.05)
plt.xlabel("width of queries and keys")
plt.ylabel("largest of six weights")
plt.title("Without scaling, one word gets all the weight")
plt.legend()
plt.show()

# %% [markdown]
# ### Linear layers
#
# PyTorch's `nn.Linear` draws better first weights than `torch.rand`. It stores a table as (out, in), so we
# turn it round.


# %%
def projections(generator, inputs, outputs):
    return [linear(generator, inputs, outputs, bias=False)[0].T for _ in range(3)]


w_789 = projections(TorchGenerator(789), 3, 2)
contexts_BTK, weights_BTS = self_attention(x_TD[None], *w_789)
assert_printed(
    contexts_BTK[0],
    [
        [-0.0739, 0.0713],
        [-0.0748, 0.0703],
        [-0.0749, 0.0702],
        [-0.0760, 0.0685],
        [-0.0763, 0.0679],
        [-0.0754, 0.0693],
    ],
)

# %% [markdown]
# ### Exercise 3.1: from one class to the other
#
# The book asks for the weights of its second class in its first one. Here both are the same function, and the
# answer is the `.T` above. With the seed 123 the book prints this.

# %%
contexts_BTK, _ = self_attention(x_TD[None], *projections(TorchGenerator(123), 3, 2))
assert_printed(
    contexts_BTK[0],
    [
        [-0.5337, -0.1051],
        [-0.5323, -0.1080],
        [-0.5323, -0.1079],
        [-0.5297, -0.1076],
        [-0.5311, -0.1066],
        [-0.5299, -0.1081],
    ],
)

# %% [markdown]
# ## 3.5 Causal attention
#
# A model that predicts the next word must not see it. These are the weights of the layer with seed 789, in
# which every word still sees every other.

# %%
weights_TS = weights_BTS[0]
assert_printed(
    weights_TS,
    [
        [0.1921, 0.1646, 0.1652, 0.1550, 0.1721, 0.1510],
        [0.2041, 0.1659, 0.1662, 0.1496, 0.1665, 0.1477],
        [0.2036, 0.1659, 0.1662, 0.1498, 0.1664, 0.1480],
        [0.1869, 0.1667, 0.1668, 0.1571, 0.1661, 0.1564],
        [0.1830, 0.1669, 0.1670, 0.1588, 0.1658, 0.1585],
        [0.1935, 0.1663, 0.1666, 0.1542, 0.1666, 0.1529],
    ],
)

# %% [markdown]
# The causal mask is true where a word may look: at itself and at the words before it. Multiplied with the
# weights, it leaves those on the diagonal and below.

# %%
mask_TS = causal_mask(6)
assert_printed(mask_TS[2].astype(int), [1, 1, 1, 0, 0, 0])
masked_TS = weights_TS * mask_TS
assert_printed(
    masked_TS,
    [
        [0.1921, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000],
        [0.2041, 0.1659, 0.0000, 0.0000, 0.0000, 0.0000],
        [0.2036, 0.1659, 0.1662, 0.0000, 0.0000, 0.0000],
        [0.1869, 0.1667, 0.1668, 0.1571, 0.0000, 0.0000],
        [0.1830, 0.1669, 0.1670, 0.1588, 0.1658, 0.0000],
        [0.1935, 0.1663, 0.1666, 0.1542, 0.1666, 0.1529],
    ],
)

# %% [markdown]
# The rows no longer add up to 1, so each is divided by its sum.

# %%
causal_TS = masked_TS / masked_TS.sum(axis=-1, keepdims=True)
assert_printed(
    causal_TS,
    [
        [1.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000],
        [0.5517, 0.4483, 0.0000, 0.0000, 0.0000, 0.0000],
        [0.3800, 0.3097, 0.3103, 0.0000, 0.0000, 0.0000],
        [0.2758, 0.2460, 0.2462, 0.2319, 0.0000, 0.0000],
        [0.2175, 0.1983, 0.1984, 0.1888, 0.1971, 0.0000],
        [0.1935, 0.1663, 0.1666, 0.1542, 0.1666, 0.1529],
    ],
)

# %% [markdown]
# There is a shorter way: a score of minus infinity gets the weight 0, because e to the power of minus
# infinity is 0. So we mask the scores, and softmax does the rest.

# %%
w_query_DK, w_key_DK, w_value_DK = w_789
scores_TS = (x_TD @ w_query_DK) @ (x_TD @ w_key_DK).T
hidden_TS = jnp.where(mask_TS, scores_TS, -jnp.inf)
assert_printed(hidden_TS[0, :1], [0.2899])
assert_printed(hidden_TS[1, :2], [0.4656, 0.1723])
assert_printed(hidden_TS[2, :3], [0.4594, 0.1703, 0.1731])
assert_printed(hidden_TS[3, :4], [0.2642, 0.1024, 0.1036, 0.0186])
assert_printed(hidden_TS[4, :5], [0.2183, 0.0874, 0.0882, 0.0177, 0.0786])
assert_printed(hidden_TS[5, :6], [0.3408, 0.1270, 0.1290, 0.0198, 0.1290, 0.0078])
np.testing.assert_allclose(jax.nn.softmax(hidden_TS / 2**0.5), causal_TS, rtol=1e-5)
hidden_TS

# %%
figure, panels = plt.subplots(1, 2, figsize=(8.4, 4.4), layout="constrained")
heat_map(panels[0], weights_TS, words, title="Every word sees every word", largest=0.4)
heat_map(panels[1], causal_TS, words, title="No word sees a later one")
plt.show()

# %% [markdown]
# ### Dropout
#
# In training, dropout sets some of the weights to zero, so that the model does not rely on a few of them. The
# others are divided by the share that is left, so that the mean stays the same. Which ones are dropped is
# drawn at random. PyTorch draws other masks on other systems; this is the one that the book prints.

# %%
kept_TS = TorchGenerator(123).bernoulli(0.5, 6, 6)
assert_printed(
    kept_TS / 0.5,
    [
        [2, 2, 0, 2, 2, 0],
        [0, 0, 0, 2, 0, 2],
        [2, 2, 2, 2, 0, 2],
        [0, 2, 2, 0, 0, 2],
        [0, 2, 0, 2, 0, 2],
        [0, 2, 2, 2, 2, 0],
    ],
)

# %% [markdown]
# Where the mask is 0, the attention weight is dropped. The others are doubled.

# %%
dropped_TS = causal_TS * kept_TS / 0.5
assert_printed(
    dropped_TS,
    [
        [2.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000],
        [0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000],
        [0.7599, 0.6194, 0.6206, 0.0000, 0.0000, 0.0000],
        [0.0000, 0.4921, 0.4925, 0.0000, 0.0000, 0.0000],
        [0.0000, 0.3966, 0.0000, 0.3775, 0.0000, 0.0000],
        [0.0000, 0.3327, 0.3331, 0.3084, 0.3331, 0.0000],
    ],
)

# %%
figure, panels = plt.subplots(1, 2, figsize=(8.4, 4.4), layout="constrained")
heat_map(panels[0], causal_TS, words, title="Causal attention weights")
heat_map(panels[1], dropped_TS, words, title="The same after dropout")
plt.show()

# %% [markdown]
# The library's `drop` draws its masks with JAX's random numbers. On average, nothing is lost.

# %%
ones = drop(jnp.ones((1000, 1000)), dropout_rate, jax.random.key(1))
print(f"kept: {(ones != 0).mean():.3f}, mean: {ones.mean():.3f}")
assert abs(ones.mean() - 1) < 0.01

# %% [markdown]
# ### A batch
#
# Training reads several texts at once. Here the same text stands twice in the batch. B counts the texts.

# %%
x_BTD = jnp.stack([x_TD, x_TD])
assert_printed(x_BTD.shape, [2, 6, 3])
contexts_BTK, _ = causal_self_attention(x_BTD, *projections(TorchGenerator(123), 3, 2))
assert_printed(
    contexts_BTK[0],
    [
        [-0.4519, 0.2216],
        [-0.5874, 0.0058],
        [-0.6300, -0.0632],
        [-0.5675, -0.0843],
        [-0.5526, -0.0981],
        [-0.5299, -0.1081],
    ],
)
assert_printed(contexts_BTK.shape, [2, 6, 2])
np.testing.assert_array_equal(contexts_BTK[0], contexts_BTK[1])

# %% [markdown]
# ## 3.6 Several heads
#
# One set of weights can look for one thing. Several heads, each with tables of its own, look for several
# things at once. Their context vectors are put side by side. H counts the heads, and E is their width
# together.

# %%
generator = TorchGenerator(123)
heads = [projections(generator, 3, 2) for _ in range(2)]
contexts_BTE, weights_BHTS = multi_head_attention_wrapped(x_BTD, heads)
assert_printed(
    contexts_BTE[0],
    [
        [-0.4519, 0.2216, 0.4772, 0.1063],
        [-0.5874, 0.0058, 0.5891, 0.3257],
        [-0.6300, -0.0632, 0.6202, 0.3860],
        [-0.5675, -0.0843, 0.5478, 0.3589],
        [-0.5526, -0.0981, 0.5321, 0.3428],
        [-0.5299, -0.1081, 0.5077, 0.3493],
    ],
)
assert_printed(contexts_BTE.shape, [2, 6, 4])

# %%
figure, panels = plt.subplots(1, 2, figsize=(8.4, 4.4), layout="constrained")
for head, panel in enumerate(panels):
    heat_map(panel, weights_BHTS[0, head], words, title=f"Head {head}")
plt.show()

# %% [markdown]
# ### One product for all heads
#
# GPT does not compute the heads one after another. One wide table makes the queries of all heads, and the
# result is split. With the tables of the two heads side by side, this gives the same.

# %%
wide = [np.concatenate(tables, axis=1) for tables in zip(*heads, strict=True)]
split_BTE, _ = multi_head_attention(x_BTD, *wide, heads=2)
np.testing.assert_allclose(split_BTE, contexts_BTE, rtol=1e-5)
assert_printed(split_heads(x_BTD @ wide[0], 2).shape, [2, 6, 2, 2])

# %% [markdown]
# The book's class has two heads of width 1, and a last linear layer that mixes the heads.

# %%
generator = TorchGenerator(123)
narrow = projections(generator, 3, 2)
out_weight, out_bias = linear(generator, 2, 2, bias=True)
contexts_BTE, _ = multi_head_attention(x_BTD, *narrow, heads=2)
mixed_BTE = contexts_BTE @ out_weight.T + out_bias[None, None]
assert_printed(
    mixed_BTE[0],
    [
        [0.3190, 0.4858],
        [0.2943, 0.3897],
        [0.2856, 0.3593],
        [0.2693, 0.3873],
        [0.2639, 0.3928],
        [0.2575, 0.4028],
    ],
)

# %% [markdown]
# A product of arrays with more than two axes multiplies the last two, once for each head.

# %%
first_TK = [
    [0.2745, 0.6584, 0.2775, 0.8573],
    [0.8993, 0.0390, 0.9268, 0.7388],
    [0.7179, 0.7058, 0.9156, 0.4340],
]
second_TK = [
    [0.0772, 0.3565, 0.1479, 0.5331],
    [0.4066, 0.2318, 0.4545, 0.9737],
    [0.4606, 0.5159, 0.4220, 0.5786],
]
a_HTK = jnp.array([first_TK, second_TK])

# %%
products_HTT = a_HTK @ jnp.swapaxes(a_HTK, 1, 2)
assert_printed(
    products_HTT[0], [[1.3208, 1.1631, 1.2879], [1.1631, 2.2150, 1.8424], [1.2879, 1.8424, 2.0402]]
)
assert_printed(
    products_HTT[1], [[0.4391, 0.7003, 0.5903], [0.7003, 1.3737, 1.0620], [0.5903, 1.0620, 0.9912]]
)

# %% [markdown]
# ### Exercise 3.2: two heads, and two numbers
#
# So that the two heads together give vectors of two numbers, each has a width of 1. (What the book's
# solutions print here is no result of attention: docs/book.md says why.)

# %%
generator = TorchGenerator(123)
contexts_BTE, _ = multi_head_attention_wrapped(x_BTD, [projections(generator, 3, 1) for _ in range(2)])
assert_printed(contexts_BTE.shape, [2, 6, 2])
contexts_BTE[0]

# %% [markdown]
# ### Exercise 3.3: the size of GPT-2
#
# The smallest GPT-2 has 12 heads, a width of 768 and a context of 1024. We ask only for the shapes of its
# parameters, and add up those of the attention in one block. The leading axis of 12 counts the blocks.

# %%
config = jaxgpt.GPTConfig(layers=12, heads=12, width=768, context=1024, qkv_bias=False)
shapes = jax.eval_shape(jaxgpt.define(config).init, jax.random.key(0))["h"]["attn"]
parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes)) // config.layers
assert_printed(parameters, 2360064)
print(f"{parameters:,} parameters")
jax.tree.map(lambda leaf: leaf.shape, shapes)

# %% [markdown]
# ## The library's own attention
#
# The functions above are written to be read. The model itself calls `attend`, which gives the same and is
# faster: it takes the queries in blocks, and on a TPU or a GPU it may take a fused kernel. It takes heads on
# the third axis, and the mask as a description.

# %%
q_BTHK, k_BTHK, v_BTHK = (split_heads(x_BTD @ table, 2) for table in narrow)
scale = q_BTHK.shape[-1] ** -0.5
fast_BTHK = attend.attend(q_BTHK, k_BTHK, v_BTHK, Mask(), scale=scale)
expected_BTE, _ = multi_head_attention(x_BTD, *narrow, heads=2)
np.testing.assert_allclose(fast_BTHK.reshape(2, 6, 2), expected_BTE, rtol=1e-5)
np.testing.assert_allclose(fast_BTHK, attend.plain(q_BTHK, k_BTHK, v_BTHK, Mask(), scale=scale), rtol=1e-5)
print("The difference is at most", jnp.abs(fast_BTHK.reshape(2, 6, 2) - expected_BTE).max())

# %% [markdown]
# Causality can be seen in a whole model. What it says at one position has no gradient with respect to the
# vectors of later positions: nothing that comes later can change it.

# %%
config = jaxgpt.GPTConfig(vocab=64, context=6, layers=2, heads=2, width=16, vocab_multiple=8)
model = jaxgpt.define(config)
params = jax.jit(model.init)(jax.random.key(0))
tokens_BT = jnp.arange(6)[None]


def said(positions_TD, at):
    moved = params | {"wpe": {"embedding": positions_TD}}
    return jnp.square(model.apply(moved, tokens_BT)[0, at]).sum()


gradient_at = jax.jit(jax.grad(said))
gradients = [gradient_at(params["wpe"]["embedding"], at) for at in range(6)]
influence_TS = np.stack([np.abs(gradient).sum(axis=-1) for gradient in gradients])
assert not np.triu(influence_TS, 1).any() and np.tril(influence_TS).any(axis=1).all()

# %%
plt.figure(figsize=(4.2, 3.6))
seen_TS = np.where(influence_TS > 0, influence_TS, np.nan)
plt.imshow(np.log10(seen_TS), cmap="viridis")
plt.colorbar(label="log10 of the gradient")
plt.xlabel("position that is changed")
plt.ylabel("position that answers")
plt.title("Which positions matter to which")
plt.show()

# %% [markdown]
# ## What we have now
#
# Attention is dot products, a softmax and a weighted sum, and a mask that hides what comes later. The next
# notebook puts it into a block, and blocks into GPT.
