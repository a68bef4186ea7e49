# %% [markdown]
# # 4. The architecture of a GPT
#
# This notebook follows chapter 4 of "Build a Large Language Model (From Scratch)". It builds a GPT from its
# parts, compares each part with the one that jaxgpt trains and serves with, counts its parameters and its
# arithmetic, and lets it write.
#
# Where the book prints a number, a cell here computes it and stops if it is another one. The book uses
# PyTorch, whose random numbers come from a generator that NumPy has too: with the same seed we get the same
# weights.

# %%
# In Colab this cell installs jaxgpt. Elsewhere it does nothing.
import importlib.util
import subprocess
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("jaxgpt") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "jaxgpt[plots]"], check=True)
    print("Now choose Runtime > Restart session in Colab's menu, and run this notebook from its first cell.")

# %% tags=["parameters"]
full_size = True  # whether to draw the book's 163 million weights (1.3 GB of memory, about a minute)

# %%
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

# %%
import jaxgpt
from jaxgpt.book.printed import assert_printed
from jaxgpt.book.torch_random import TorchGenerator, linear
from jaxgpt.book.weights import book_params
from jaxgpt.inference.sampling import Sampling
from jaxgpt.model.attention import causal_mask, join_heads, scaled_dot_product_attention, split_heads
from jaxgpt.model.block import ACTIVATIONS, MLP, layer_norm
from jaxgpt.model.dropout import drop
from jaxgpt.model.layers import AS_TRAINED
from jaxgpt.training.flops import train_flops_per_token

jax.config.update("jax_default_matmul_precision", "highest")  # float32 products on GPUs and TPUs too

# %% [markdown]
# ## 4.1 The settings of the model
#
# A few numbers describe a whole GPT. These are the book's: GPT-2's smallest size, but without biases in the
# layers that make queries, keys and values, with an output head of its own, and with the initial weights of
# PyTorch's layers. `vocab_multiple=1` stores exactly the 50,257 rows of the vocabulary. jaxgpt otherwise
# rounds them up, so that they divide evenly over devices.

# %%
config = jaxgpt.GPTConfig(
    vocab=50257,
    context=1024,
    width=768,
    heads=12,
    layers=12,
    dropout=0.1,
    qkv_bias=False,
    tied_head=False,
    init="torch",
    vocab_multiple=1,
)

# %% [markdown]
# A model in jaxgpt is a few pure functions, and its parameters are a nested dict of arrays.
# `jax.eval_shape` finds the shapes of what a function would return without computing it, so that we can
# look at a large model at no cost. The 12 blocks are stacked: every parameter under `h` has a first axis of
# 12.


# %%
def shapes_of(config):
    """The shapes of all parameters, as the nested dict that `init` would return."""
    return jax.eval_shape(jaxgpt.define(config).init, jax.random.key(0))


for path, leaf in jax.tree_util.tree_leaves_with_path(shapes_of(config)):
    print(f"{jax.tree_util.keystr(path, simple=True, separator='/'):24} {leaf.shape}")

# %% [markdown]
# The book begins with a model whose blocks do nothing yet. What is left of it adds the embedding of each
# token to the embedding of its position, drops a tenth of the values, and multiplies with the output head.
# PyTorch's generator gives us the book's weights, and even the values that its dropout keeps.

# %%
tokenizer = jaxgpt.load_tokenizer("gpt2")
tokens_BT = np.array([tokenizer.encode(text) for text in ("Every effort moves you", "Every day holds a")])
assert_printed(tokens_BT, [[6109, 3626, 6100, 345], [6109, 1110, 6622, 257]])

# %%
if full_size:
    generator = TorchGenerator(123)
    token_table_VD = generator.normal(config.vocab, config.width)
    position_table = generator.normal(config.context, config.width)
    (head_VD,) = linear(generator, config.width, config.vocab, bias=False)
    x_BTD = token_table_VD[tokens_BT] + position_table[:4]
    kept_BTD = generator.bernoulli(1 - config.dropout, *x_BTD.shape)
    logits_BTV = np.where(kept_BTD, x_BTD / (1 - config.dropout), 0) @ head_VD.T
    assert_printed(logits_BTV[0, 0, :3], [-1.2034, 0.3201, -0.7130])
    assert_printed(logits_BTV[1, 3, -3:], [2.0057, -0.3694, 0.1814])
    print(logits_BTV.shape)
    del token_table_VD, position_table, head_VD, logits_BTV

# %% [markdown]
# ## 4.2 Layer normalization
#
# A layer's outputs can have any mean and any spread, and training is unstable when they differ much from
# layer to layer. Layer normalization brings the values of each token to mean 0 and variance 1. The book
# shows it on the six outputs of a small layer for two inputs.

# %%
generator = TorchGenerator(123)
inputs_B5 = generator.normal(2, 5)
weight, bias = linear(generator, 5, 6, bias=True)
outputs_B6 = np.maximum(inputs_B5 @ weight.T + bias, 0)
assert_printed(outputs_B6[0], [0.2260, 0.3470, 0.0000, 0.2216, 0.0000, 0.0000])
assert_printed(outputs_B6[1], [0.2133, 0.2394, 0.0000, 0.5198, 0.3297, 0.0000])

# %% [markdown]
# We subtract the mean and divide by the standard deviation. Here the book divides the sum of squares by 5,
# one less than the number of values, as `torch.var` does unless told otherwise.

# %%
mean_B1 = outputs_B6.mean(axis=-1, keepdims=True)
variance_B1 = outputs_B6.var(axis=-1, keepdims=True, ddof=1)
assert_printed(mean_B1, [[0.1324], [0.2170]])
assert_printed(variance_B1, [[0.0231], [0.0398]])
normalized_B6 = (outputs_B6 - mean_B1) / np.sqrt(variance_B1)
assert_printed(normalized_B6[0], [0.6159, 1.4126, -0.8719, 0.5872, -0.8719, -0.8719])
assert_printed(normalized_B6[1], [-0.0189, 0.1121, -1.0876, 1.5173, 0.5647, -1.0876])

# %% [markdown]
# The layer in the model divides by the number of values, as GPT-2 does, adds a small number to the variance
# so that it never divides by 0, and then scales and shifts each value by parameters that it learns. The
# next cell writes that down and compares it with the layer of jaxgpt.


# %%
def norm_by_hand(x, scale=1.0, shift=0.0, epsilon=1e-5):
    """Layer normalization over the last axis."""
    mean = x.mean(axis=-1, keepdims=True)
    variance = x.var(axis=-1, keepdims=True)
    return scale * (x - mean) / jnp.sqrt(variance + epsilon) + shift


layer = layer_norm(jaxgpt.GPTConfig(width=5, heads=1), nnx.Rngs(0))
np.testing.assert_allclose(layer(inputs_B5), norm_by_hand(inputs_B5), atol=1e-6)
print("means", layer(inputs_B5).mean(axis=-1), "variances", layer(inputs_B5).var(axis=-1))

# %% [markdown]
# ## 4.3 GELU and the feed-forward network
#
# GELU is a smooth relative of ReLU: it lets a little of small negative values through, so that a unit whose
# input is negative still gets a gradient. GPT-2 uses an approximation with a hyperbolic tangent.


# %%
def gelu_by_hand(x):
    """GELU by the approximation that GPT-2 was trained with."""
    return 0.5 * x * (1 + jnp.tanh(jnp.sqrt(2 / jnp.pi) * (x + 0.044715 * x**3)))


x = jnp.linspace(-3, 3, 100)
np.testing.assert_allclose(gelu_by_hand(x), ACTIVATIONS["gelu_tanh"](x), atol=1e-6)
print("largest difference from the exact GELU:", abs(gelu_by_hand(x) - ACTIVATIONS["gelu"](x)).max())

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharex=True)
for name, function in (("GELU", gelu_by_hand), ("ReLU", jax.nn.relu)):
    axes[0].plot(x, function(x), label=name)
    axes[1].plot(x, jax.vmap(jax.grad(function))(x), label=name)
axes[0].set(title="the function", xlabel="x")
axes[1].set(title="its slope", xlabel="x")
for axis in axes:
    axis.grid(alpha=0.3)
    axis.legend()
plt.show()

# %% [markdown]
# The feed-forward network of a block makes each token's vector four times wider, applies GELU, and makes it
# narrow again. It looks at every token by itself. Its output has the shape of its input.

# %%
network = MLP(config, nnx.Rngs(0), AS_TRAINED)
x_BTD = jax.random.uniform(jax.random.key(0), (2, 3, 768))
assert_printed(network(x_BTD, None).shape, [2, 3, 768])
print("hidden units:", config.mlp_size)

# %% [markdown]
# ## 4.4 Shortcut connections
#
# In a deep network, the gradient of an early layer is a product of many factors, and may become very small.
# A shortcut adds the input of a layer to its output, so that the gradient has a second way, past the layer.
# The book's example has five small layers. Its weights come from seed 123 again, and its loss is the square
# of the output.

# %%
SIZES = [3, 3, 3, 3, 3, 1]


def example_layers():
    """The weights and biases that the book's ExampleDeepNeuralNetwork draws."""
    generator = TorchGenerator(123)
    return [linear(generator, *pair, bias=True) for pair in itertools.pairwise(SIZES)]


def example_loss(layers, shortcuts):
    """The squared output of the network for the book's input."""
    x = jnp.array([1.0, 0.0, -1.0])
    for weight, bias in layers:
        y = gelu_by_hand(weight @ x + bias)
        x = x + y if shortcuts and x.shape == y.shape else y
    return jnp.sum(x**2)


# %% [markdown]
# `jax.grad` turns the loss into a function that returns the gradient of every weight. The book prints the
# mean size of each layer's gradient. Without shortcuts, the first layer gets a 25th of what the last one
# gets.

# %%
means = {}
for shortcuts in (False, True):
    gradients = jax.grad(example_loss)(example_layers(), shortcuts)
    means[shortcuts] = [float(abs(weight).mean()) for weight, _ in gradients]
assert_printed(means[False][:2], [0.00020173587836325169, 0.0001201116101583466], digits=8)
assert_printed(means[False][2:4], [0.0007152041653171182, 0.001398873864673078], digits=8)
assert_printed(means[False][4], 0.005049646366387606, digits=8)
assert_printed(means[True][:3], [0.22169792652130127, 0.20694105327129364, 0.32896995544433594], digits=5)
assert_printed(means[True][3:], [0.2665732502937317, 1.3258541822433472], digits=5)

# %%
plt.figure(figsize=(6, 3))
for shortcuts, name in ((False, "without shortcuts"), (True, "with shortcuts")):
    plt.semilogy(range(1, 6), means[shortcuts], "o-", label=name)
plt.xticks(range(1, 6))
plt.xlabel("layer")
plt.ylabel("mean size of the gradient")
plt.grid(alpha=0.3)
plt.legend()
plt.show()

# %% [markdown]
# ## 4.5 The transformer block
#
# A block normalizes, lets the tokens look at one another (attention, chapter 3), and adds the result to its
# input. It normalizes again, applies the feed-forward network to each token, and adds that too. `drop` is a
# function that may set values to 0, as dropout does in training. It is told the place, and here it leaves
# everything as it is.


# %%
def keep_all(place, x):
    """No dropout."""
    return x


def affine(layer, x):
    """A linear layer."""
    return x @ layer["kernel"] + layer.get("bias", 0)


# %%
def attention_by_hand(layer, x_BTD, heads, drop):
    """Causal attention of several heads."""
    parts_3BTE = jnp.moveaxis(jnp.einsum("btd,dpe->btpe", x_BTD, layer["c_attn"]["kernel"]), 2, 0)
    q_BHTK, k_BHTK, v_BHTK = jnp.swapaxes(split_heads(parts_3BTE, heads), 2, 3)
    mask_TT = causal_mask(x_BTD.shape[1])
    _, weights_BHTT = scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, mask_TS=mask_TT)
    contexts_BHTK = drop("attention", weights_BHTT) @ v_BHTK
    return affine(layer["c_proj"], join_heads(jnp.swapaxes(contexts_BHTK, 1, 2)))


# %%
def block_by_hand(block, x_BTD, heads, drop):
    """A transformer block."""
    normed_BTD = norm_by_hand(x_BTD, block["ln_1"]["scale"], block["ln_1"]["bias"])
    update_BTD = attention_by_hand(block["attn"], normed_BTD, heads, drop)
    x_BTD = x_BTD + drop("shortcut", update_BTD)
    normed_BTD = norm_by_hand(x_BTD, block["ln_2"]["scale"], block["ln_2"]["bias"])
    hidden_BTF = gelu_by_hand(affine(block["mlp"]["c_fc"], normed_BTD))
    return x_BTD + drop("shortcut", affine(block["mlp"]["c_proj"], hidden_BTF))


# %% [markdown]
# ## 4.6 The whole model
#
# The embeddings of token and position are added, the blocks follow one another, a last layer normalization
# comes, and the output head turns each token's vector into a logit for every token of the vocabulary.


# %%
def gpt_by_hand(params, tokens_BT, heads, drop=keep_all):
    """Logits [B, T, V] of token ids [B, T]."""
    positions_TD = params["wpe"]["embedding"][: tokens_BT.shape[1]]
    x_BTD = drop("embedding", params["wte"]["embedding"][tokens_BT] + positions_TD)
    for number in range(len(params["h"]["ln_1"]["scale"])):
        block = jax.tree.map(lambda leaf, n=number: leaf[n], params["h"])
        x_BTD = block_by_hand(block, x_BTD, heads, drop)
    x_BTD = norm_by_hand(x_BTD, params["ln_f"]["scale"], params["ln_f"]["bias"])
    return x_BTD @ params["lm_head"]["embedding"].T


# %% [markdown]
# A small model of the same design is enough to see that the model of jaxgpt computes the same.

# %%
small = dataclasses.replace(config, width=64, heads=4, layers=3, vocab=300, context=32)
model = jaxgpt.define(small)
small_params = jax.jit(model.init)(jax.random.key(0))
small_BT = jax.random.randint(jax.random.key(1), (2, 20), 0, small.vocab)
ours_BTV = gpt_by_hand(small_params, small_BT, small.heads)
theirs_BTV = jax.jit(model.apply)(small_params, small_BT)
np.testing.assert_allclose(ours_BTV, theirs_BTV, atol=2e-5)
print(ours_BTV.shape, "largest difference:", abs(ours_BTV - theirs_BTV).max())

# %% [markdown]
# This is the book's whole model with the weights that PyTorch draws after `torch.manual_seed(123)`. The
# book runs it once before it is switched from training to evaluation, so that values are dropped. The
# generator goes on behind the weights and draws what PyTorch drops.


# %%
def drop_as_torch(place, x):
    """What torch.nn.Dropout(0.1) makes of x."""
    return jnp.where(generator.bernoulli(1 - config.dropout, *x.shape), x / (1 - config.dropout), 0)


if full_size:
    generator = TorchGenerator(123)
    params = jax.tree.map(jnp.asarray, book_params(generator, config))
    logits_BTV = gpt_by_hand(params, tokens_BT, config.heads, drop_as_torch)
    assert_printed(logits_BTV.shape, [2, 4, 50257])

# %%
if full_size:
    first_T3, last_T3 = logits_BTV[0, :, :3], logits_BTV[0, :, -3:]
    assert_printed(first_T3[:2], [[0.3613, 0.4222, -0.0711], [-0.1792, -0.5660, -0.9485]])
    assert_printed(first_T3[2:], [[0.7120, 0.0332, 0.1085], [-1.0076, 0.3418, -0.1190]])
    assert_printed(last_T3[:2], [[0.3483, 0.4661, -0.2838], [0.0477, 0.5181, -0.3168]])
    assert_printed(last_T3[2:], [[0.1018, -0.4327, -0.2553], [0.7195, 0.4023, 0.0532]])
    first_T3, last_T3 = logits_BTV[1, :, :3], logits_BTV[1, :, -3:]
    assert_printed(first_T3[:2], [[-0.2564, 0.0900, 0.0335], [0.1230, 0.3653, -0.2074]])
    assert_printed(first_T3[2:], [[1.0558, 1.0318, -0.2800], [-0.1565, 0.3926, 0.3288]])
    assert_printed(last_T3[:2], [[0.2659, 0.4454, -0.6806], [0.7705, 0.2710, 0.2246]])
    assert_printed(last_T3[2:], [[0.6936, 0.3205, -0.3178], [1.2630, -0.1858, 0.0388]])

# %% [markdown]
# No token may depend on a later one. The gradient says so: the logits of token 9 have a gradient with
# respect to the embeddings of positions 0 to 9, and none with respect to those behind.


# %%
def logits_of_token_9(position_table):
    changed = small_params | {"wpe": {"embedding": position_table}}
    return jax.jit(model.apply)(changed, small_BT)[0, 9].sum()


gradient = jax.grad(logits_of_token_9)(small_params["wpe"]["embedding"])
depends = abs(gradient).max(axis=-1) > 0
assert depends[:10].all() and not depends[10:].any()
print(np.flatnonzero(depends))

# %% [markdown]
# **Exercise 4.3** asks for three rates of dropout instead of one: for the embeddings, for the attention
# weights and for the shortcuts. As `drop` is told the place, it can look up the rate of that place.


# %%
def dropping(rates, key):
    """A function that drops the share `rates[place]` of the values at each place."""
    keys = iter(jax.random.split(key, 1000))
    return lambda place, x: drop(x, rates[place], next(keys))


for place in ("embedding", "attention", "shortcut", "none of them"):
    rates = {"embedding": 0.0, "attention": 0.0, "shortcut": 0.0} | {place: 0.5}
    dropped_BTV = gpt_by_hand(small_params, small_BT, small.heads, dropping(rates, jax.random.key(2)))
    change = float(abs(dropped_BTV - ours_BTV).mean())
    assert (change > 0.01) == (place != "none of them")
    print(f"dropout at {place}: the logits change by {change:.3f}")

# %% [markdown]
# ## 4.6, continued: how many parameters?
#
# The size of a model is the sum of the sizes of its arrays. The book counts 163,009,536. The 124 million
# that give the model its name count the token embedding once, because GPT-2 uses it as the output head too
# (weight tying).


# %%
def count(config):
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(shapes_of(config)))


tied = dataclasses.replace(config, tied_head=True)
assert_printed(shapes_of(config)["wte"]["embedding"].shape, [50257, 768])
assert_printed(shapes_of(config)["lm_head"]["embedding"].shape, [50257, 768])
assert_printed(count(config), 163009536)
assert_printed(count(tied), 124412160)
assert_printed(count(config) * 4 / 2**20, 621.83, digits=2)  # megabytes, as float32

# %% [markdown]
# **Exercise 4.1**: which has more parameters, the attention of a block or its feed-forward network? The
# network has twice as many.

# %%
block = shapes_of(config)["h"]
in_a_block = {name: sum(leaf.size // 12 for leaf in jax.tree.leaves(block[name])) for name in ("mlp", "attn")}
assert_printed(in_a_block["mlp"], 4722432)
assert_printed(in_a_block["attn"], 2360064)
print(in_a_block)

# %% [markdown]
# **Exercise 4.2**: the three larger models of GPT-2 differ in three numbers only. The last column has the
# public models, which have biases for queries, keys and values too.

# %%
SIZES_OF_GPT2 = {"small": (768, 12, 12), "medium": (1024, 24, 16), "large": (1280, 36, 20)}
SIZES_OF_GPT2["xl"] = (1600, 48, 25)


def sized(name, **others):
    """The settings of a model of GPT-2's family."""
    width, layers, heads = SIZES_OF_GPT2[name]
    return dataclasses.replace(config, width=width, layers=layers, heads=heads, **others)


# %%
for name in SIZES_OF_GPT2:
    tied, public = sized(name, tied_head=True), sized(name, tied_head=True, qkv_bias=True)
    print(f"{name:7} {count(sized(name)):13,}   tied {count(tied):13,}   public {count(public):13,}")
megabytes = [count(sized(name)) * 4 / 2**20 for name in SIZES_OF_GPT2]
assert_printed(megabytes, [621.83, 1549.58, 3197.56, 6247.68], digits=2)
larger = ("medium", "large", "xl")
assert_printed([count(sized(name)) for name in larger], [406212608, 838220800, 1637792000])
tied_counts = [count(sized(name, tied_head=True)) for name in larger]
assert_printed(tied_counts, [354749440, 773891840, 1557380800])

# %%
parts = {"embeddings": ("wte", "wpe"), "blocks": ("h", "ln_f"), "output head": ("lm_head",)}
bottoms = np.zeros(4)
plt.figure(figsize=(6, 3))
for part, names in parts.items():
    shapes = [shapes_of(sized(name)) for name in SIZES_OF_GPT2]
    leaves = [jax.tree.leaves([each[name] for name in names]) for each in shapes]
    heights = [sum(leaf.size for leaf in each) / 1e6 for each in leaves]
    plt.bar(list(SIZES_OF_GPT2), heights, bottom=bottoms, label=part)
    bottoms += heights
plt.ylabel("million parameters")
plt.grid(alpha=0.3, axis="y")
plt.legend()
plt.show()

# %% [markdown]
# Embeddings and output head are nearly half of the small model, and a tenth of the largest.
#
# ## Memory and arithmetic
#
# To train with AdamW in float32, each parameter needs 4 bytes for itself, 4 for its gradient and 8 for the
# optimizer's two running means. Activations come on top of that, and grow with the batch.

# %%
for name in SIZES_OF_GPT2:
    gib = count(sized(name)) * 4 / 2**30
    print(f"{name:7} to use {gib:5.2f} GiB   to train {4 * gib:5.2f} GiB")

# %% [markdown]
# A product with a matrix of p parameters takes 2p floating-point operations (FLOPs) for each token: a
# multiplication and an addition for each parameter. The book prints how many that are in the forward pass
# of 2 texts of 1,024 tokens, as a tool counts them that knows layers with weights only.


# %%
def flops_with_matrices(config):
    """FLOPs of the forward pass for one token, in the products with matrices of weights."""
    shapes = shapes_of(config)
    in_blocks = jax.tree_util.tree_leaves_with_path(shapes["h"])
    kernels = [leaf.size for path, leaf in in_blocks if path[-1].key == "kernel"]
    return 2 * (sum(kernels) + shapes["lm_head"]["embedding"].size)


found = [f"{2 * 1024 * flops_with_matrices(sized(name)):.1e}" for name in SIZES_OF_GPT2]
assert_printed(found, ["5.1e+11", "1.4e+12", "3.2e+12", "6.4e+12"])

# %% [markdown]
# Attention multiplies activations with one another too: queries with keys, and weights with values.
# Training takes three times the arithmetic of the forward pass, because the backward pass has two products
# for each one of it. `train_flops_per_token` counts all of that. The longer the context, the larger is
# attention's share.

# %%
for context in (256, 1024, 4096, 16384):
    flops, matrices = train_flops_per_token(config, context), 3 * flops_with_matrices(config)
    print(f"context {context:6}: {flops:.2e} FLOPs a token, of them {1 - matrices / flops:4.0%} in attention")

# %% [markdown]
# The compiler can be asked, too. For a small model, what XLA counts in the program that it made is close to
# the formula. The program does a little more: the formula leaves out softmax, GELU, normalization and
# additions.

# %%
asked = dataclasses.replace(small, width=256, vocab=2048, context=128)
unrolled = jaxgpt.define(asked, unrolled=True)
lowered = jax.jit(unrolled.apply).lower(shapes_of(asked), jax.ShapeDtypeStruct((2, 128), jnp.int32))
counted = lowered.compile().cost_analysis()["flops"]
formula = 2 * 128 * train_flops_per_token(asked) / 3
assert 1.0 < counted / formula < 1.1
print(f"XLA {counted:.3e}, formula {formula:.3e}, ratio {counted / formula:.3f}")

# %% [markdown]
# The share of a chip's arithmetic that training uses is its utilisation (MFU). The book measures 34,249
# tokens a second on an A100 and divides by 77.97e12 FLOP/s. jaxgpt divides by the 312e12 FLOP/s that the
# chip's data sheet gives for products of matrices in bfloat16, so that the same speed is a quarter of that.

# %%
trained_a_second = 34_249 * 3 * flops_with_matrices(config)
print(f"of 77.97e12 FLOP/s: {trained_a_second / 77.97e12:.4f}; of 312e12: {trained_a_second / 312e12:.4f}")
assert_printed(trained_a_second / 77.97e12, 0.3256)

# %% [markdown]
# ## 4.7 Writing text
#
# The model writes one token at a time. It computes the logits behind the last token, takes the token with
# the largest one, adds it to the text, and begins again. To keep the shape of the input the same, and to
# compile only once, we fill the text up with zeros. They stand behind the tokens that count, which cannot
# see them.


# %%
def write_greedily(lm, ids, new, room=16):
    """The ids, and as many new ones, each the most probable one at its place."""
    ids = list(ids)
    for _ in range(new):
        filled_1T = np.zeros((1, room), np.int32)
        filled_1T[0, : len(ids)] = ids
        ids.append(int(jnp.argmax(lm.logits(filled_1T)[0, len(ids) - 1])))
    return ids


# %% [markdown]
# The book's model has learned nothing yet, and writes the nonsense that the book prints.

# %%
if full_size:
    lm = jaxgpt.LanguageModel(config, params, tokenizer)
    ids = write_greedily(lm, tokenizer.encode("Hello, I am"), 6)
    assert_printed(ids, [15496, 11, 314, 716, 27018, 24086, 47843, 30961, 42348, 7267])
    assert_printed(tokenizer.decode(ids), "Hello, I am Featureiman Byeswickattribute argue")
    print(tokenizer.decode(ids))
    del params, lm

# %% [markdown]
# `LanguageModel.generate` writes the same text faster: it keeps the keys and values of the tokens that were
# read before (the KV cache), and computes only the new token's. A temperature of 0 means the most probable
# token. We compare the two with the small model.

# %%
lm = jaxgpt.LanguageModel(dataclasses.replace(small, vocab=257), None, jaxgpt.load_tokenizer("bytes"))
lm = dataclasses.replace(lm, params=jax.jit(jaxgpt.define(lm.config).init)(jax.random.key(0)))
by_hand = write_greedily(lm, b"Hello", 10)[5:]
assert list(lm.stream("Hello", max_new_tokens=10, sampling=Sampling(temperature=0))) == by_hand
print(by_hand, lm.generate("Hello", max_new_tokens=10, temperature=0))

# %% [markdown]
# Notebook 5 teaches a model to write better than that.
