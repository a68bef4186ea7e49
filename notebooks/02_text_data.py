# %% [markdown]
# # 2. Working with text data
#
# A language model computes with numbers, so text has to become numbers first. This notebook follows chapter 2
# of "Build a Large Language Model (From Scratch)": text becomes tokens, tokens become ids, ids become windows
# to learn from, and ids become vectors.
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
merges = 60  # how many pairs are merged when we learn a vocabulary
checked_words = 3000  # how many words we encode by hand, to compare

# %%
import math
import re
from collections import Counter
from itertools import pairwise

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

# %%
import jaxgpt
from jaxgpt.book.printed import assert_printed
from jaxgpt.book.torch_random import TorchGenerator, linear
from jaxgpt.model.positions import alibi_slopes, rotate_by_position, sinusoidal_positions
from jaxgpt.text import bpe
from jaxgpt.text.batch import shifted
from jaxgpt.text.batches import window_starts
from jaxgpt.text.corpus import builtin_documents
from jaxgpt.text.download import DOWNLOADS, cache_folder

# %% [markdown]
# ## 2.2 Tokens
#
# Our text is the beginning of "The Verdict", a short story that Edith Wharton published in 1908. The book
# reads the whole story.

# %%
beginning = (
    "I HAD always thought Jack Gisburn rather a cheap genius--though a good fellow enough--so it was no "
    "great surprise to me to hear that, in the height of his glory, he had dropped his painting, married a "
    "rich widow, and established himself in a villa on the Riviera. (Though I rather thought it would have "
    "been Rome or Florence.)"
)

# %% [markdown]
# The simplest way to cut a text into pieces is to cut it at its spaces. The parentheses in the pattern keep
# the spaces as pieces of their own.

# %%
pieces = re.split(r"(\s)", "Hello, world. This, is a test.")
assert_printed(pieces, ["Hello,", " ", "world.", " ", "This,", " ", "is", " ", "a", " ", "test."])
pieces

# %% [markdown]
# The punctuation still sticks to the words. So we cut at punctuation too, and throw the spaces away.


# %%
def words_of(text):
    pieces = re.split(r"""([,.:;?_!"()']|--|\s)""", text)
    return [piece.strip() for piece in pieces if piece.strip()]


words = words_of("Hello, world. Is this-- a test?")
assert_printed(words, ["Hello", ",", "world", ".", "Is", "this", "--", "a", "test", "?"])
words

# %% [markdown]
# In the same way the story becomes tokens.

# %%
words = words_of(beginning)
assert_printed(
    " ".join(words[:30]),
    "I HAD always thought Jack Gisburn rather a cheap genius -- though a good fellow enough -- so it was no "
    "great surprise to me to hear that , in",
)
print(len(words), "tokens, which begin with", words[:8])

# %% [markdown]
# ## 2.3 Token ids
#
# A vocabulary is a table that gives each different token a number, its id. Here the tokens are put into
# alphabetical order first, as in the book.

# %%
vocabulary = {word: number for number, word in enumerate(sorted(set(words)))}
print(len(vocabulary), "different tokens:", dict(list(vocabulary.items())[:8]))

# %% [markdown]
# To encode a text, we look up the id of each token. To decode it, we look up the token of each id, and take
# away the spaces that stand before punctuation.


# %%
def encoded(text, vocabulary):
    return [vocabulary[word] for word in words_of(text)]


def decoded(ids, vocabulary):
    words = {number: word for word, number in vocabulary.items()}
    return re.sub(r"""\s+([,.:;?!"()'])""", r"\1", " ".join(words[number] for number in ids))


ids = encoded("he had married a rich widow, a good fellow.", vocabulary)
print(ids)
decoded(ids, vocabulary)

# %% [markdown]
# ## 2.4 Special tokens
#
# A word that is not in the vocabulary cannot be encoded.

# %%
try:
    encoded("Hello, do you like tea?", vocabulary)
except KeyError as error:
    print("The vocabulary has no", error)

# %% [markdown]
# The book adds two special tokens. `<|unk|>` stands for each unknown word, and `<|endoftext|>` stands
# between two texts that have nothing to do with one another.


# %%
def with_special_tokens(vocabulary):
    return vocabulary | {"<|endoftext|>": len(vocabulary), "<|unk|>": len(vocabulary) + 1}


def encoded_with_unknown(text, vocabulary):
    return [vocabulary.get(word, vocabulary["<|unk|>"]) for word in words_of(text)]


two_texts = "Hello, do you like tea? <|endoftext|> In the sunlit terraces of the palace."
extended = with_special_tokens(vocabulary)
decoded(encoded_with_unknown(two_texts, extended), extended)

# %% [markdown]
# The ids that the book prints belong to the vocabulary of the whole story. `jaxgpt prepare the-verdict --out
# DIR` fetches the story once. Where it has been fetched, the next two cells compare those ids as well.

# %%
path = cache_folder() / DOWNLOADS["the-verdict"].file
story = path.read_text(encoding="utf-8") if path.is_file() else ""
print(f"The story has {len(story)} characters." if story else "The story has not been fetched.")

# %%
if story:
    assert_printed(len(story), 20479)
    assert_printed(len(words_of(story)), 4690)
    whole = {word: number for number, word in enumerate(sorted(set(words_of(story))))}
    assert_printed(len(whole), 1130)
    ids = encoded('"It\'s the last he painted, you know," Mrs. Gisburn said with pardonable pride.', whole)
    assert_printed(
        ids, [1, 56, 2, 850, 988, 602, 533, 746, 5, 1126, 596, 5, 1, 67, 7, 38, 851, 1108, 754, 793, 7]
    )
    whole = with_special_tokens(whole)
    assert_printed(len(whole), 1132)
    assert_printed([whole["younger"], whole["<|endoftext|>"], whole["<|unk|>"]], [1127, 1130, 1131])
    ids = encoded_with_unknown(two_texts, whole)
    assert_printed(ids, [1131, 5, 355, 1126, 628, 975, 10, 1130, 55, 988, 956, 984, 722, 988, 1131, 7])
    assert_printed(len(jaxgpt.load_tokenizer("gpt2").encode(story)), 5145)

# %% [markdown]
# ## 2.5 Byte-pair encoding
#
# GPT-2 needs no token for unknown words. It begins with single bytes, of which every text is made, and merges
# neighbours into longer tokens as long as it knows how. jaxgpt has GPT-2's vocabulary of 50,257 tokens in its
# package, so that nothing is fetched. Its `encoding` is an object of OpenAI's library tiktoken.

# %%
tokenizer = jaxgpt.load_tokenizer("gpt2")
text = "Hello, do you like tea? <|endoftext|> In the sunlit terracesof someunknownPlace."
ids = tokenizer.encoding.encode(text, allowed_special={"<|endoftext|>"})
assert_printed(ids[:8], [15496, 11, 466, 345, 588, 8887, 30, 220])
assert_printed(ids[8:], [50256, 554, 262, 4252, 18250, 8812, 2114, 1659, 617, 34680, 27271, 13])
assert_printed(tokenizer.vocab, 50257)
print([tokenizer.decode([number]) for number in ids])
assert tokenizer.decode(ids) == text

# %% [markdown]
# `tokenizer.encode` treats the characters `<|endoftext|>` like any others, because a text that somebody sends
# must not be able to end the conversation. Only code adds the special token.

# %%
print([tokenizer.decode([number]) for number in tokenizer.encode("<|endoftext|>")])
print("The end of a text is", tokenizer.end_of_text)

# %% [markdown]
# ### The encoding by hand
#
# The vocabulary gives each token a rank, which is also its id. Of all neighbours that together are a token,
# the two whose token has the lowest rank are merged first. This goes on until no two neighbours are a token.


# %%
def encoded_by_hand(word, ranks, *, show=False):
    parts = [bytes([byte]) for byte in word.encode()]
    while len(parts) > 1:
        ranked = [ranks.get(left + right, math.inf) for left, right in pairwise(parts)]
        at = ranked.index(min(ranked))
        if ranked[at] == math.inf:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if show:
            print(" | ".join(part.decode() for part in parts))
    return [ranks[part] for part in parts]


encoded_by_hand(" terraces", tokenizer.ranks, show=True)

# %% [markdown]
# We compare this with tiktoken on the words of the built-in corpus, which is the language reference that
# comes with Python. A word has the space before it, as GPT-2 cuts texts.

# %%
corpus = " ".join(builtin_documents().values()).lower()
counts = Counter(" " + word for word in re.findall("[a-z]+", corpus))
compared = list(counts)[:checked_words]
for word in compared:
    assert encoded_by_hand(word, tokenizer.ranks) == tokenizer.encoding.encode_ordinary(word)
print(f"{len(compared)} words are encoded as tiktoken encodes them.")

# %% [markdown]
# ### Exercise 2.1: unknown words
#
# "Akwirw ier" is no word of any language. It is encoded in six tokens, and decoding gives it back.

# %%
ids = tokenizer.encode("Akwirw ier")
assert_printed(ids, [33901, 86, 343, 86, 220, 959])
for number in ids:
    print(f"{number:6} {tokenizer.decode([number])!r}")
assert tokenizer.decode(ids) == "Akwirw ier"

# %% [markdown]
# ### Learning a vocabulary
#
# A vocabulary is learned by the same merges. We count how often each pair of neighbours occurs, make the most
# frequent pair a new token, and begin again.


# %%
def most_frequent_pair(splits):
    pairs = Counter()
    for parts, count in splits.items():
        for pair in pairwise(parts):
            pairs[pair] += count
    return max(pairs, key=pairs.get)


def merge(parts, pair):
    joined, at = [], 0
    while at < len(parts):
        together = parts[at : at + 2] == pair
        joined.append(parts[at] + parts[at + 1] if together else parts[at])
        at += 2 if together else 1
    return tuple(joined)


# %%
splits = {tuple(word): count for word, count in counts.items()}
learned, lengths = [], [sum(len(parts) * count for parts, count in splits.items())]
for _ in range(merges):
    pair = most_frequent_pair(splits)
    learned.append("".join(pair))
    splits = {merge(parts, pair): count for parts, count in splits.items()}
    lengths.append(sum(len(parts) * count for parts, count in splits.items()))
print(learned[:20])

# %% [markdown]
# `jaxgpt tokenizer` learns vocabularies too, with a faster program. From the same words it learns the same
# tokens.

# %%
text = "".join(" " + word for word in re.findall("[a-z]+", corpus))
library = bpe.train(iter([text]), vocab=257 + merges)
from_library = [token.decode() for token, rank in library.ranks.items() if rank >= 256]
assert set(from_library) == set(learned)
print("Both have learned", len(learned), "tokens, such as", learned[-5:])

# %% [markdown]
# Each merge makes the text shorter. The first merges, of the most frequent pairs, help most.

# %%
plt.figure(figsize=(6, 3.2))
plt.plot(lengths)
plt.xlabel("merges")
plt.ylabel("tokens")
plt.title("How many tokens the built-in corpus needs")
plt.ylim(0)
plt.show()

# %% [markdown]
# ## 2.6 Windows
#
# A language model learns to predict the next token. The text itself says what is right: the targets are the
# inputs, moved by one token.

# %%
ids = tokenizer.encode(beginning)
sample, context = ids[50:], 4
inputs, targets = sample[:context], sample[1 : context + 1]
assert_printed(inputs, [290, 4920, 2241, 287])
assert_printed(targets, [4920, 2241, 287, 257])
for seen in range(1, context + 1):
    print(repr(tokenizer.decode(sample[:seen])), "->", repr(tokenizer.decode([sample[seen]])))

# %% [markdown]
# A long text is cut into windows. The context says how many tokens a window has, and the stride says how many
# tokens later the next one begins. `window_starts` knows where windows begin, and `shifted` makes inputs and
# targets of them; training uses the same two functions.


# %%
def windows_of(ids, *, context, stride):
    starts = window_starts(len(ids), context, stride)
    return shifted(np.stack([ids[start : start + context + 1] for start in starts]))


batch = windows_of(ids, context=4, stride=1)
assert_printed(batch.inputs_BT[0], [40, 367, 2885, 1464])
assert_printed(batch.targets_BT[0], [367, 2885, 1464, 1807])
assert_printed(batch.inputs_BT[1], [367, 2885, 1464, 1807])
assert_printed(batch.targets_BT[1], [2885, 1464, 1807, 3619])
print(batch.inputs_BT.shape)

# %% [markdown]
# With a stride of 4 the windows stand side by side, and each token is an input once, but for the few that are
# left at the end.

# %%
batch = windows_of(ids, context=4, stride=4)
assert_printed(
    batch.inputs_BT[:8],
    [
        [40, 367, 2885, 1464],
        [1807, 3619, 402, 271],
        [10899, 2138, 257, 7026],
        [15632, 438, 2016, 257],
        [922, 5891, 1576, 438],
        [568, 340, 373, 645],
        [1049, 5975, 284, 502],
        [284, 3285, 326, 11],
    ],
)
batch.inputs_BT[:8]

# %% [markdown]
# The targets are the same windows, one token later.

# %%
assert_printed(
    batch.targets_BT[:8],
    [
        [367, 2885, 1464, 1807],
        [3619, 402, 271, 10899],
        [2138, 257, 7026, 15632],
        [438, 2016, 257, 922],
        [5891, 1576, 438, 568],
        [340, 373, 645, 1049],
        [5975, 284, 502, 284],
        [3285, 326, 11, 287],
    ],
)
batch.targets_BT[:8]

# %% [markdown]
# The picture shows which tokens the first windows read. A small stride reads each token in several windows.

# %%
figure, panels = plt.subplots(1, 3, figsize=(9, 2.6), sharey=True, layout="constrained")
for panel, stride in zip(panels, (1, 2, 4), strict=True):
    read = np.zeros((6, 26))
    for number, start in enumerate(list(window_starts(len(ids), 4, stride))[:6]):
        read[number, start : start + 4] = 1
    panel.imshow(read, cmap="Blues", vmax=1.4, aspect="auto")
    panel.set(title=f"stride {stride}", xlabel="token")
panels[0].set_ylabel("window")
plt.show()

# %% [markdown]
# ### Exercise 2.2: other windows
#
# Two settings that the book asks for: a context of 2 with a stride of 2, and a context of 8 with a stride
# of 2.

# %%
short = windows_of(ids, context=2, stride=2).inputs_BT[:4]
assert_printed(short, [[40, 367], [2885, 1464], [1807, 3619], [402, 271]])
overlapping = windows_of(ids, context=8, stride=2).inputs_BT[:4]
assert_printed(
    overlapping,
    [
        [40, 367, 2885, 1464, 1807, 3619, 402, 271],
        [2885, 1464, 1807, 3619, 402, 271, 10899, 2138],
        [1807, 3619, 402, 271, 10899, 2138, 257, 7026],
        [402, 271, 10899, 2138, 257, 7026, 15632, 438],
    ],
)
overlapping

# %% [markdown]
# ## 2.7 Token embeddings
#
# An embedding is a vector that stands for a token. All of them together are a table with a row for each id,
# which begins at random and is learned. `TorchGenerator` draws the random numbers that PyTorch draws after
# `torch.manual_seed(123)`, so that our table is the one in the book.

# %%
table_VD = TorchGenerator(123).normal(6, 3)
assert_printed(
    table_VD,
    [
        [0.3374, -0.1778, -0.1690],
        [0.9178, 1.5810, 1.3010],
        [1.2753, -0.2010, -0.1606],
        [-0.4015, 0.9666, -1.1481],
        [-1.1589, 0.3255, -0.6315],
        [-2.8400, -0.7849, -1.4096],
    ],
)
table_VD

# %% [markdown]
# To embed a token means to take its row.

# %%
tokens_T = jnp.array([2, 3, 5, 1])
assert_printed(table_VD[3], [-0.4015, 0.9666, -1.1481])
embedded_TD = table_VD[tokens_T]
assert_printed(
    embedded_TD,
    [
        [1.2753, -0.2010, -0.1606],
        [-0.4015, 0.9666, -1.1481],
        [-2.8400, -0.7849, -1.4096],
        [0.9178, 1.5810, 1.3010],
    ],
)
embedded_TD

# %% [markdown]
# ### A lookup is a product
#
# Write an id as a vector that is 1 at the id's place and 0 elsewhere. The product of this one-hot vector with
# the table is the row, because all other rows are multiplied by 0. The lookup gives the same and computes
# less.

# %%
table_VD = TorchGenerator(123).normal(4, 5)
assert_printed(
    table_VD,
    [
        [0.3374, -0.1778, -0.3035, -0.5880, 1.5810],
        [1.3010, 1.2753, -0.2010, -0.1606, -0.4015],
        [0.6957, -1.8061, -1.1589, 0.3255, -0.6315],
        [-2.8400, -0.7849, -1.4096, -0.4076, 0.7953],
    ],
)
tokens_T = jnp.array([2, 3, 1])
one_hot_TV = jax.nn.one_hot(tokens_T, 4)
assert_printed(one_hot_TV, [[0, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0]])
np.testing.assert_array_equal(one_hot_TV @ table_VD, table_VD[tokens_T])
one_hot_TV @ table_VD

# %% [markdown]
# A linear layer of PyTorch stores its table the other way round, (out, in), and draws other random numbers.
# With these, too, the product with a one-hot vector takes one column of the table.

# %%
(weight,) = linear(TorchGenerator(123), 4, 5, bias=False)
assert_printed(
    weight,
    [
        [-0.2039, 0.0166, -0.2483, 0.1886],
        [-0.4260, 0.3665, -0.3634, -0.3975],
        [-0.3159, 0.2264, -0.1847, 0.1871],
        [-0.4244, -0.3034, -0.1836, -0.0983],
        [-0.3814, 0.3274, -0.1179, 0.1605],
    ],
)
np.testing.assert_array_equal((one_hot_TV @ weight.T)[0], weight[:, 2])

# %% [markdown]
# A table is learned by gradients. Only the rows of tokens that occur get any.

# %%
gradient_VD = jax.grad(lambda table_VD: table_VD[tokens_T].sum())(jnp.asarray(table_VD))
gradient_VD

# %% [markdown]
# ## 2.8 Positions
#
# A token's embedding is the same wherever the token stands. So that a model can tell positions apart, GPT-2
# has a second table with a vector for each position, and adds it. Here the vectors have 256 numbers.

# %%
keys = jax.random.split(jax.random.key(123))
token_table_VD = jax.random.normal(keys[0], (tokenizer.vocab, 256))
position_table_TD = jax.random.normal(keys[1], (4, 256))
tokens_BT = batch.inputs_BT[:8]
assert_printed(tokens_BT.shape, [8, 4])
assert_printed(token_table_VD[tokens_BT].shape, [8, 4, 256])
assert_printed(position_table_TD.shape, [4, 256])
input_BTD = token_table_VD[tokens_BT] + position_table_TD
assert_printed(input_BTD.shape, [8, 4, 256])
input_BTD.shape

# %% [markdown]
# In jaxgpt's GPT the same two tables are called `wte` and `wpe`, as in GPT-2. The token table has some rows
# more than the vocabulary has tokens, because their number is rounded up to a multiple of 128: it can then be
# divided evenly between devices.

# %%
config = jaxgpt.GPTConfig(layers=1, heads=4, width=256, context=4)
params = jax.jit(jaxgpt.define(config).init)(jax.random.key(0))
print({name: params[name]["embedding"].shape for name in ("wte", "wpe")})

# %% [markdown]
# ### Absolute and relative positions
#
# GPT-2's positions are absolute: each position has its own vector. The first Transformer used absolute
# positions that are not learned but computed, from sines and cosines of many wavelengths.

# %%
positions_TD = sinusoidal_positions(jnp.arange(64)[None], 64)[0]
plt.figure(figsize=(6, 3.6))
plt.imshow(positions_TD, cmap="RdBu", aspect="auto")
plt.colorbar(label="value")
plt.xlabel("column of the vector")
plt.ylabel("position")
plt.title("Sinusoidal position embeddings")
plt.show()

# %% [markdown]
# Relative positions say how far two tokens are apart. Rotary positions turn each query and key by an angle
# that grows with its position. Their dot product then depends on the distance alone: moving both by 100
# positions changes nothing.


# %%
def score(query_position, key_position):
    q, k = (jnp.ones((1, 1, 1, 32)) for _ in range(2))
    q = rotate_by_position(q, jnp.array([[query_position]]))
    return float((q * rotate_by_position(k, jnp.array([[key_position]]))).sum())


distances = range(32)
near = [score(distance, 0) for distance in distances]
far = [score(100 + distance, 100) for distance in distances]
np.testing.assert_allclose(near, far, atol=1e-3)

# %% [markdown]
# ALiBi is simpler still: it lowers the score of a key by its distance, in each head by another slope.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.plot(distances, near, label="positions 0 and up")
left.plot(distances, far, "--", label="positions 100 and up")
left.set(title="Rotary", xlabel="distance", ylabel="score")
left.legend()
for head, slope in enumerate(alibi_slopes(4)):
    right.plot(distances, -slope * np.arange(32), label=f"head {head}")
right.set(title="ALiBi", xlabel="distance", ylabel="added to the score")
right.legend()
plt.show()

# %% [markdown]
# All four kinds are settings of a model: `GPTConfig(position=...)` takes `learned`, `sinusoidal`, `rotary` or
# `alibi`.
#
# ## What we have now
#
# Text has become windows of ids, and ids have become vectors that know their positions. `jaxgpt prepare`
# does all of this for files of any size. The next notebook lets the vectors look at one another.
