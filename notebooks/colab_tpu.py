# %% [markdown]
# # GPT-2 on a Colab TPU
#
# This notebook takes GPT-2 through what jaxgpt does, on a TPU that Colab lends. It loads the model, looks
# inside, lets it write, teaches it to classify and to answer, trains a small model from nothing, and takes
# the result home.
#
# First choose **Runtime > Change runtime type** and a TPU there. The free one is a v5e with one chip. On a
# CPU the notebook runs as well, in a few minutes, with a small model in place of GPT-2.
#
# **No TPU has run this notebook yet.** It was run on a CPU, from the first cell to the last, with eight
# simulated devices. If a cell fails on your TPU, please open an issue.

# %%
# In Colab this cell installs jaxgpt, with versions of JAX and Flax that it is tested with. Elsewhere it does
# nothing.
import importlib.util
import subprocess
import sys
from importlib.metadata import version

pair = {"jax": "0.12.0.1", "flax": "0.12.12"}
if "google.colab" in sys.modules:
    if importlib.util.find_spec("jaxgpt") is None or any(version(name) != pair[name] for name in pair):
        exact = [f"{name}=={number}" for name, number in pair.items()]
        install = [sys.executable, "-m", "pip", "install", "-q", "jaxgpt[plots,tpu]", *exact]
        subprocess.run(install, check=True)
    imported = [name for name in ("jax", "numpy") if name in sys.modules]
    if any(sys.modules[name].__version__ != version(name) for name in imported):
        print(
            "Now choose Runtime > Restart session in Colab's menu, and run this notebook from its first cell."
        )

# %% [markdown]
# ## The device
#
# This cell says what JAX runs on. Where the maker states how fast a chip multiplies matrices, it says what to
# expect of training: programs for GPT-2 reach about a quarter of that speed, because its heads of 64 numbers
# fill only a part of a TPU's arithmetic units. Elsewhere the speed is measured.

# %%
import jax

import jaxgpt
from jaxgpt.doctor.machine import host_memory, memory_of
from jaxgpt.training.flops import measured_matmul_flops, peak_flops, train_flops_per_token

devices = jax.devices()
chip, chips = devices[0], len(devices)
room = memory_of(chip)
memory = f"{room[1] / 2**30:.1f} GiB each" if room else f"{(host_memory() or 0) / 2**30:.1f} GiB together"
print(f"{chips} x {chip.device_kind} with {memory}, JAX {jax.__version__}")
gpt2 = jaxgpt.load_recipe("gpt2").model
peak = peak_flops(chip.device_kind)
together = chips * peak if peak else measured_matmul_flops(gpt2, chip, seconds=0.2)
expected = 0.25 * together / train_flops_per_token(gpt2)
print(f"training GPT-2 with 124 million parameters: about {expected:,.0f} tokens a second are to be expected")

# %% tags=["parameters", "eight-devices"]
small = chip.platform == "cpu"  # a CPU gets a small model, which is trained on the spot
public = "gpt2"  # what others download: gpt2, gpt2-medium, gpt2-large or gpt2-xl
number_format = "float32" if small else "bfloat16"  # what TPUs multiply fastest
base_steps = 100  # of the small model's training
epochs = 8 if small else 3  # of fine-tuning
steps = 50 if small else 1000  # of training from nothing

# %%
import csv
import json
import shutil
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

# %%
from jaxgpt.config import MeshConfig
from jaxgpt.evaluation.plots import attention_maps, coloured_tokens, lens_map, loss_curves
from jaxgpt.inference import inside
from jaxgpt.inference.templates import template_of
from jaxgpt.log import latest, series
from jaxgpt.parallel import mesh_of
from jaxgpt.text.shown import token_texts

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Load GPT-2
#
# `jaxgpt.load` downloads half a gigabyte from the Hugging Face hub, once. On a CPU we train a small model
# instead, on the language reference of Python. Its tokens are bytes.

# %%
base = public
if small:
    base = str(folder / "base")
    brief = {"steps": base_steps, "eval_every": 0, "checkpoint_every": base_steps, "sample_tokens": 0}
    jaxgpt.train("nano", brief, out_dir=base)
lm = jaxgpt.load(base)
print(f"{base}: {lm.config.layers} layers, {lm.config.heads} heads, width {lm.config.width}")

# %% [markdown]
# ## How it reads
#
# The model gives a probability to every token that could come next. Here each token of a text is coloured by
# the probability that it had: the stronger the colour, the less it was expected. Point at a token for the
# number.

# %%
text = "The value of the expression is the value of the last expression"
ids = lm.tokenizer.encode(text)
logprobs_TV = jax.nn.log_softmax(lm.logits(np.array([ids]))[0])
told = [None, *(float(row_V[id]) for row_V, id in zip(logprobs_TV[:-1], ids[1:], strict=True))]
tokens = token_texts(ids, lm.tokenizer)
coloured_tokens(tokens, told)

# %% [markdown]
# These are the most probable tokens behind it.

# %%
for logprob, id in zip(*jax.lax.top_k(logprobs_TV[-1], 5), strict=True):
    print(f"{np.exp(logprob):6.1%} {lm.tokenizer.decode([int(id)])!r}")

# %% [markdown]
# Attention is how much each token looks at those before it. Each picture is a head of the first layer; each
# row is a token, and its columns are the tokens that it looks at.

# %%
begin = slice(0, 16)
weights_HTT = inside.attention_weights(lm.served, ids[begin], layer=0)
rows = -(-lm.config.heads // 4)
attention_maps(plt.figure(figsize=(11, 3 * rows), layout="constrained"), weights_HTT, tokens[begin])
plt.show()

# %% [markdown]
# The logit lens shows what the model would write if it ended after each of its layers. The bottom row has
# only the token itself to go by, and the top row is what the model does write.

# %%
lens = inside.logit_lens(lm.served, ids[begin], alternatives=1)
figure, axes = plt.subplots(figsize=(11, 2 + 0.35 * lm.config.layers), layout="constrained")
lens_map(axes, lens, tokens[begin], lm.tokenizer)
plt.show()

# %% [markdown]
# ## Write
#
# Three continuations, drawn with three seeds.

# %%
for seed in range(3):
    print(repr(lm.generate("The value of", max_new_tokens=40, temperature=0.8, top_k=40, seed=seed)))

# %% [markdown]
# ## Teach it to classify
#
# The messages are made up; a CSV file of your own with the columns `label` and `text` does as well. Adapters
# (LoRA) train in place of the model, and so need little memory. Notebook E explains them, and notebook 6 the
# classifier.

# %%
rng = np.random.default_rng(0)
words = {
    "when": ["tonight", "tomorrow", "on sunday", "at noon", "next week", "after work"],
    "what": ["phone", "ticket", "book", "coat", "bike", "ring", "holiday", "camera"],
    "code": [str(number) for number in range(80000, 80100)],
}
sentences = {
    "ham": ["are you free {when}?", "i won the {what} {when}", "bring {what} {code} {when}, please"],
    "spam": ["win a {what}: call {code}", "free {what} {when}, text {code}", "claim {what} {code} {when}"],
}
messages = set()
while len(messages) < 240:
    label = "ham" if len(messages) % 2 else "spam"
    drawn = {name: rng.choice(choices) for name, choices in words.items()}
    messages.add((label, rng.choice(sentences[label]).format(**drawn)))
with (folder / "messages.csv").open("w", newline="", encoding="utf-8") as file:
    csv.writer(file).writerows([("label", "text"), *sorted(messages)])

# %%
common = {"init_from": base, "trains": "lora", "lora.targets": ".*", "model.compute_dtype": number_format}
common |= {"optim.learning_rate": 2e-3 if small else 8e-4, "log_every": 5}
classifying = {"data.path": str(folder / "messages.csv"), "epochs": 3, "eval_every": 20}
classifier = jaxgpt.train("classify", common | classifying, out_dir=str(folder / "classifier"))

# %%
print(f"{latest(classifier.metrics, 'test_accuracy'):.1%} of the test messages are right")
for found in jaxgpt.classify(
    classifier.directory, ["free phone tonight, text 80042", "are you free at noon?"]
):
    print(found.label, {label: f"{share:.1%}" for label, share in found.probabilities.items()})

# %% [markdown]
# ## Teach it to answer
#
# Each entry has an instruction, an input and the right output. Notebook 7 explains what is trained. Your own
# file may have as many entries of as many kinds as you like. The small model of a CPU learns in this time
# what an answer looks like, and not yet which one is right.

# %%
listed = """apple boat book chair cloud coat cup desk dog door egg farm flag game garden hat hill horse house
island jar key king lake lamp lion map moon nail nest pen pond queen rat road rock room shoe song spoon star
stone table tiger tree wall wheel wind wing"""
nouns = listed.split()
kinds = {"What is the plural?": lambda word: f"{word}s", "Repeat the word.": str}
entries = [
    {"instruction": instruction, "input": noun, "output": answer(noun)}
    for noun in nouns
    for instruction, answer in kinds.items()
]
(folder / "entries.json").write_text(json.dumps(entries), encoding="utf-8")
answering = {"data.path": str(folder / "entries.json"), "template": "phi3", "epochs": epochs}
answering |= {"eval_every": 50, "sample_tokens": 20}
answerer = jaxgpt.train("instruct", common | answering, out_dir=str(folder / "answerer"))

# %%
template = template_of(lm.tokenizer, "phi3", folder, None)
for question in ("What is the plural?\napple", "Repeat the word.\nmoon"):
    prompt = lm.tokenizer.decode(template.ids([("user", question)]))
    answer = answerer.model.generate(prompt, max_new_tokens=20, temperature=0)
    print(f"{question!r} -> {answer!r}")

# %% [markdown]
# ## Train a model from nothing
#
# The recipe `nano` is small enough for anything. `model.layers`, `model.width` and `data.path` make it larger
# and give it a text of your own. When Colab ends the session, the same call with the same folder goes on
# where the last checkpoint is.

# %%
training = {"steps": steps, "eval_every": 25, "checkpoint_every": steps, "log_every": 5, "sample_tokens": 100}
training |= {"model.compute_dtype": number_format}
new = jaxgpt.train("nano", training, out_dir=str(folder / "new"))

# %% [markdown]
# Every run writes a report: losses, samples, speed, settings. These are its first lines. `report.html` beside
# it is a page with pictures.

# %%
print("\n".join((new.directory / "report.md").read_text(encoding="utf-8").splitlines()[:12]))
loss_curves(plt.subplots(figsize=(7, 3), layout="constrained")[1], new.metrics, unit="byte")
plt.show()

# %% [markdown]
# ## Several chips
#
# So far every device trained with a part of each batch. A model that is too large for one chip has its
# parameters divided as well, by `mesh.fsdp`. The free runtime of Colab has one chip, which keeps all of them.
# Notebooks on Kaggle get eight, a v5e-8, and so do slices of Cloud TPU.

# %%
parts = min(chips, 4)
mesh = mesh_of(MeshConfig(data=-1, fsdp=parts))
leaves = jax.tree.leaves(jaxgpt.load(base, mesh=mesh).params)
here = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves) / sum(leaf.nbytes for leaf in leaves)
print(f"{dict(mesh.shape)}: {here:.0%} of the parameters are on each device")

# %% [markdown]
# A run with divided parameters computes what the run above computed: its losses differ by rounding.

# %%
if chips > 1:
    options = {"mesh.fsdp": parts, "eval_every": 0, "sample_tokens": 0}
    again = jaxgpt.train("nano", training | options, out_dir=str(folder / "divided"))
    both = [np.array(series(run.metrics, "loss"))[:, 1] for run in (new, again)]
    difference = abs(both[0] - both[1]).max()
    assert difference < 0.1
    print(f"the losses of {steps} steps differ by {difference:.1g} at most")

# %% [markdown]
# ## Take it home
#
# The model that answers is written as a folder that `transformers` and other programs read as a GPT-2: the
# adapters are merged into it, and its tokenizer is beside it. In Colab the folder goes to your Drive, and to
# your computer as a ZIP file.

# %%
home = folder / "my-gpt2"
answerer.model.save(home, format="huggingface")
archive = shutil.make_archive(str(home), "zip", home)
assert jaxgpt.load(home).generate(prompt, max_new_tokens=20, temperature=0) == answer
print(sorted(path.name for path in home.iterdir()), f"{Path(archive).stat().st_size / 1e6:.1f} MB")

# %%
if "google.colab" in sys.modules:
    from google.colab import drive, files

    drive.mount("/content/drive")
    shutil.copytree(home, "/content/drive/MyDrive/my-gpt2", dirs_exist_ok=True)
    files.download(archive)

# %% [markdown]
# On your computer, `pip install jaxgpt` and then:
#
#     jaxgpt chat my-gpt2
#     jaxgpt serve my-gpt2
