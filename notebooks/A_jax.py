# %% [markdown]
# # A. JAX for readers of the book's appendix on PyTorch
#
# Appendix A of "Build a Large Language Model (From Scratch)" introduces PyTorch: tensors, automatic
# differentiation, layers, a training loop, and several devices. This notebook takes the same way in JAX,
# with the same examples. PyTorch's random numbers come from a generator that NumPy has too, so that the
# same seed gives the same weights, and nearly every number that the appendix prints comes out.

# %%
# In Colab this cell installs jaxgpt. Elsewhere it does nothing.
import importlib.util
import subprocess
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("jaxgpt") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "jaxgpt[plots]"], check=True)
    print("Now choose Runtime > Restart session in Colab's menu, and run this notebook from its first cell.")

# %% tags=["parameters", "eight-devices"]
epochs = 3  # of the training loop; the printed losses are those of 3

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxgpt.book.printed import assert_printed
from jaxgpt.book.torch_random import TorchGenerator, linear, shuffled_epoch
from jaxgpt.config import MeshConfig
from jaxgpt.parallel import mesh_of

jax.config.update("jax_default_matmul_precision", "highest")  # float32 products on GPUs and TPUs too

# %% [markdown]
# ## Arrays
#
# JAX's arrays look like NumPy's: a number of axes, a shape, and one type for all values. Whole numbers have
# 32 bits unless told otherwise, where PyTorch takes 64.

# %%
numbers = jnp.array([1, 2, 3])
floats = jnp.array([1.0, 2.0, 3.0])
print(numbers.dtype, floats.dtype, numbers.astype(jnp.float32).dtype)

# %%
matrix = jnp.array([[1, 2, 3], [4, 5, 6]])
assert_printed(matrix.shape, [2, 3])
assert_printed(matrix.reshape(3, 2), [[1, 2], [3, 4], [5, 6]])
assert_printed(matrix.T, [[1, 4], [2, 5], [3, 6]])
assert_printed(matrix @ matrix.T, [[14, 32], [32, 77]])

# %% [markdown]
# An array never changes. What is `x[0] = 10` in PyTorch makes a new array in JAX. Inside a compiled
# function the compiler reuses the memory of the old one.

# %%
try:
    floats[0] = 10.0
except TypeError as error:
    print(str(error).splitlines()[0])
print(floats.at[0].set(10.0), floats)

# %% [markdown]
# ## Gradients
#
# In PyTorch a result remembers how it was computed, and `loss.backward()` walks back through that. In JAX,
# `jax.grad` takes a *function* and gives another one, which returns the gradient. The book's example is a
# logistic regression with one weight and one bias.


# %%
def loss_of(weight, bias):
    """The cross-entropy of the label 1 for the input 1.1."""
    a = jax.nn.sigmoid(weight * 1.1 + bias)
    return -jnp.log(a)


gradients = jax.grad(loss_of, argnums=(0, 1))(2.2, 0.0)
assert_printed(loss_of(2.2, 0.0), 0.0852)
assert_printed(gradients[0], -0.0898)
assert_printed(gradients[1], -0.0817)

# %% [markdown]
# Differences say the same, less exactly. Because a gradient is a function again, it has a gradient too.

# %%
step = 1e-2
difference = (loss_of(2.2 + step, 0.0) - loss_of(2.2 - step, 0.0)) / (2 * step)
np.testing.assert_allclose(difference, gradients[0], rtol=1e-3)
print(difference, "second derivative:", jax.grad(jax.grad(loss_of))(2.2, 0.0))

# %% [markdown]
# ## A network is a function of its parameters
#
# A PyTorch module holds its weights. In JAX the weights are an argument: lists and dicts of arrays, which
# every transformation of JAX understands. This is the appendix's network, with two hidden layers of 30 and
# 20 units.


# %%
def new_network(generator, inputs, outputs):
    """The weights and biases that the book's NeuralNetwork(inputs, outputs) draws."""
    sizes = [(inputs, 30), (30, 20), (20, outputs)]
    return [linear(generator, *pair, bias=True) for pair in sizes]


def logits_of(network, x):
    """The outputs of the network for inputs [..., inputs]."""
    for weight, bias in network[:-1]:
        x = jax.nn.relu(x @ weight.T + bias)
    weight, bias = network[-1]
    return x @ weight.T + bias


# %%
network = new_network(TorchGenerator(123), 50, 3)
assert_printed(sum(leaf.size for leaf in jax.tree.leaves(network)), 2213)
assert_printed(network[0][0].shape, [30, 50])
assert_printed(network[0][0][0, :3], [-0.0577, 0.0047, -0.0702])

# %%
x = TorchGenerator(123).rand(1, 50)
assert_printed(logits_of(network, x), [[-0.1262, 0.1080, -0.1792]])
assert_printed(jax.nn.softmax(logits_of(network, x)), [[0.3113, 0.3934, 0.2952]])

# %% [markdown]
# There is no `model.eval()` and no `torch.no_grad()`: nothing is remembered unless a gradient is asked for,
# and a function that drops values in training takes a random key as one more argument.
#
# ## jit: compile once, run often
#
# `jax.jit` runs a function once with placeholders that have a shape and a type but no values, writes down
# what it does, and compiles that. Calls with the same shapes run the compiled program. Python code inside
# runs only while it is written down, so that the line is printed once.


# %%
@jax.jit
def compiled(network, x):
    print("this is traced for the shape", x.shape)
    return logits_of(network, x)


for _ in range(3):
    np.testing.assert_allclose(compiled(network, x), logits_of(network, x), atol=1e-6)
compiled(network, jnp.zeros((4, 50)))

# %% [markdown]
# `jax.make_jaxpr` shows what was written down. There are no loops and no conditions in it: Python has
# unrolled them.

# %%
print(str(jax.make_jaxpr(loss_of)(2.2, 0.0)))

# %% [markdown]
# ## vmap: a function of one becomes a function of many
#
# We may write a function for one example, and let `jax.vmap` add the axis of the batch. So the gradient of
# every single example is one line, which PyTorch's `backward` does not give.


# %%
def loss_of_one(network, x, label):
    """The cross-entropy of one example."""
    return -jax.nn.log_softmax(logits_of(network, x))[label]


inputs = TorchGenerator(1).rand(5, 50)
of_each = jax.vmap(jax.grad(loss_of_one), in_axes=(None, 0, 0))(network, inputs, jnp.array([0, 1, 2, 0, 1]))
print([weight.shape for weight, _ in of_each])

# %% [markdown]
# ## Data, in PyTorch's order
#
# The appendix trains on five points of two classes, two points at a time, in an order that is drawn anew
# for each epoch. `shuffled_epoch` gives the order of PyTorch's `DataLoader`.

# %%
points = np.array([[-1.2, 3.1], [-0.9, 2.9], [-0.5, 2.6], [2.3, -1.1], [2.7, -1.5]], np.float32)
labels = np.array([0, 0, 0, 1, 1])
order = shuffled_epoch(TorchGenerator(123), len(points))
assert_printed(points[order[:2]], [[2.3, -1.1], [-0.9, 2.9]])
assert_printed(points[order[2:4]], [[-1.2, 3.1], [-0.5, 2.6]])
assert_printed(points[order[4:]], [[2.7, -1.5]])

# %% [markdown]
# ## The training loop
#
# In PyTorch a step is `zero_grad`, `backward` and `optimizer.step`. Here it is a function from the old
# weights to the new ones. Plain gradient descent is one subtraction for each array; `jax.tree.map` reaches
# all of them.


# %%
def mean_loss(network, x, label):
    """The mean cross-entropy of a batch."""
    return jax.vmap(loss_of_one, in_axes=(None, 0, 0))(network, x, label).mean()


@jax.jit
def train_step(network, x, label):
    """The network after one step with the learning rate 0.5, and the loss before it."""
    loss, gradient = jax.value_and_grad(mean_loss)(network, x, label)
    return jax.tree.map(lambda leaf, slope: leaf - 0.5 * slope, network, gradient), loss


# %%
generator = TorchGenerator(123)
trained, losses = new_network(generator, 2, 2), []
assert_printed(sum(leaf.size for leaf in jax.tree.leaves(trained)), 752)
for _ in range(epochs):
    order = shuffled_epoch(generator, len(points))
    for batch in (order[:2], order[2:4]):
        trained, loss = train_step(trained, points[batch], labels[batch])
        losses.append(float(loss))
assert_printed(losses, [0.75, 0.65, 0.44, 0.13, 0.03, 0.00], digits=2)

# %%
outputs = logits_of(trained, points)
assert_printed(outputs[:3], [[2.8569, -4.1618], [2.5382, -3.7548], [2.0944, -3.1820]])
assert_printed(outputs[3:], [[-1.4814, 1.4816], [-1.7176, 1.7342]])
assert_printed(jax.nn.softmax(outputs)[:3], [[0.9991, 0.0009], [0.9982, 0.0018], [0.9949, 0.0051]])
assert_printed(jax.nn.softmax(outputs)[3:], [[0.0491, 0.9509], [0.0307, 0.9693]])
assert_printed(outputs.argmax(axis=-1), [0, 0, 0, 1, 1])

# %% [markdown]
# In the plane of the points we see where the network has drawn the border.

# %%
grid = jnp.stack(jnp.meshgrid(jnp.linspace(-2, 4, 120), jnp.linspace(-3, 4, 120)), axis=-1)
share = jax.nn.softmax(logits_of(trained, grid))[..., 1]
plt.figure(figsize=(5, 4))
plt.contourf(grid[..., 0], grid[..., 1], share, levels=11, cmap="coolwarm", alpha=0.6)
plt.colorbar(label="probability of class 1")
plt.scatter(points[:, 0], points[:, 1], c=labels, cmap="coolwarm", edgecolors="black")
plt.xlabel("first value")
plt.ylabel("second value")
plt.show()

# %% [markdown]
# ## Several devices
#
# PyTorch starts a process for each GPU (DistributedDataParallel). In JAX one program sees all devices. A
# *mesh* names them, and a sharding says which axis of an array is split over them. The program stays as it
# is: the compiler adds what the devices must tell one another. The tests of this notebook simulate eight
# devices on a processor; elsewhere there are as many as the machine has.

# %%
mesh = mesh_of(MeshConfig(), jax.devices())
batch = NamedSharding(mesh, PartitionSpec("data"))
copied = NamedSharding(mesh, PartitionSpec())
rows = jax.device_put(np.tile(points, (8, 1)), batch)
their_labels = jax.device_put(np.tile(labels, 8), batch)
print(len(jax.devices()), "devices;", rows.sharding.shard_shape(rows.shape), "of", rows.shape, "on each")

# %%
start = new_network(TorchGenerator(123), 2, 2)
on_one, loss_on_one = train_step(start, np.tile(points, (8, 1)), np.tile(labels, 8))
on_all, loss_on_all = train_step(jax.device_put(start, copied), rows, their_labels)
np.testing.assert_allclose(loss_on_all, loss_on_one, rtol=1e-6)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), on_all, on_one)
print("the same step on one device and on", len(on_all[0][0].sharding.device_set))

# %% [markdown]
# ## From here to jaxgpt
#
# The model of jaxgpt is what this notebook did, at size: `jaxgpt.define(config)` gives pure functions, the
# parameters are a nested dict, the training step is one compiled function from state to state, and a mesh
# with the axes `data`, `fsdp` and `tensor` says where everything lies. Only the layers inside the model are
# Flax modules.
#
# | PyTorch, in the appendix | JAX |
# |---|---|
# | `loss.backward()` | `jax.grad(loss_of)` |
# | `torch.nn.Module` with its weights | a function, and a nested dict of arrays |
# | `optimizer.step()` | new weights are returned |
# | `torch.manual_seed(123)` | a key as an argument: `jax.random.key(123)` |
# | `model.eval()`, `torch.no_grad()` | no key, no `grad` |
# | `torch.compile` | `jax.jit` |
# | `DataLoader` | any iterator of NumPy arrays |
# | `DistributedDataParallel` | a mesh and a sharding |
