"""PyTorch's random numbers on a CPU, in NumPy: what follows `torch.manual_seed(seed)`, number for number.

The generator is the 32-bit Mersenne Twister (Matsumoto & Nishimura 1998), which NumPy has too. How PyTorch
makes numbers of its bits was read from aten/src/ATen/core/DistributionsHelper.h, TransformationHelper.h and
native/cpu/DistributionTemplates.h. Everything is exact but `normal`: PyTorch takes logarithms and cosines
from its own vectorised functions, so that the last bit or two of a number may differ.
"""

import math

import numpy as np

BLOCK = 16  # PyTorch makes this many normal numbers at a time


class TorchGenerator:
    """The state of PyTorch's generator on a CPU."""

    def __init__(self, seed: int) -> None:
        """Begin as `torch.manual_seed(seed)` does."""
        self._twister = np.random.RandomState(seed % 2**32)
        self._kept: float | None = None

    def rand(self, *shape: int) -> np.ndarray:
        """`torch.rand(*shape)`: float32 numbers from 0 up to 1."""
        bits = self._bits(math.prod(shape)) & np.uint32(2**24 - 1)
        return (bits.astype(np.float32) * np.float32(2.0**-24)).reshape(shape)

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray:
        """`torch.empty(*shape).uniform_(low, high)`. The product and the sum are rounded once, together."""
        first, last = np.float32(low), np.float32(high)
        numbers: np.ndarray = self.rand(*shape) * np.float64(last - first) + np.float64(first)
        return numbers.astype(np.float32)

    def normal(self, *shape: int) -> np.ndarray:
        """`torch.randn(*shape)`: float32 numbers of mean 0 and standard deviation 1."""
        count = math.prod(shape)
        if count < BLOCK:
            return np.array([self._single_normal() for _ in range(count)], np.float32).reshape(shape)
        numbers = self.rand(count)
        whole = count - count % BLOCK
        numbers[:whole] = _box_muller(numbers[:whole])
        if whole < count:
            numbers[-BLOCK:] = _box_muller(self.rand(BLOCK))
        return numbers.reshape(shape)

    def bernoulli(self, probability: float, *shape: int) -> np.ndarray:
        """`torch.empty(*shape).bernoulli_(probability)` as bool, where PyTorch does not leave it to MKL.

        Dropout keeps what is true here, with a probability of 1 - rate.
        """
        return (self._doubles(math.prod(shape)) < probability).reshape(shape)

    def multinomial(self, probabilities_V: np.ndarray) -> int:
        """`torch.multinomial(probabilities, 1)`, where PyTorch does not leave its random times to MKL.

        Each choice runs for an exponential time of mean 1 / probability, and the first one wins.
        """
        times_V = -np.log1p(-self._doubles(len(probabilities_V)))
        return int(np.argmax(probabilities_V / times_V.astype(np.float32)))

    def randperm(self, count: int) -> np.ndarray:
        """`torch.randperm(count)`: the numbers below `count` in an order of their own (Fisher & Yates)."""
        order = np.arange(count)
        for place, bits in enumerate(self._bits(max(count - 1, 0)).tolist()):
            other = place + bits % (count - place)
            order[place], order[other] = order[other], order[place]
        return order

    def seed(self) -> int:
        """`torch.empty((), dtype=torch.int64).random_()`, with which data loaders seed others."""
        high, low = self._bits(2).tolist()
        return int((high << 32 | low) % 2**63)

    def _bits(self, count: int) -> np.ndarray:
        return self._twister.randint(0, 2**32, count, np.uint32)

    def _doubles(self, count: int) -> np.ndarray:
        """float64 numbers from 0 up to 1, of 53 bits each."""
        pairs = self._bits(2 * count).astype(np.uint64)
        bits = (pairs[0::2] << np.uint64(32) | pairs[1::2]) & np.uint64(2**53 - 1)
        return bits.astype(np.float64) * 2.0**-53

    def _single_normal(self) -> float:
        """One of two normal numbers that are made together; the other is kept for the next time."""
        if self._kept is not None:
            number, self._kept = self._kept, None
            return number
        turn, length = self._doubles(2).tolist()
        radius, angle = math.sqrt(-2 * math.log1p(-length)), 2 * math.pi * turn
        self._kept = radius * math.sin(angle)
        return radius * math.cos(angle)


def _box_muller(numbers: np.ndarray) -> np.ndarray:
    """Uniform float32 numbers become normal ones, the first eight of a block with its last eight.

    Source: Box & Muller 1958.
    """
    blocks = numbers.reshape(-1, BLOCK)
    radius = np.sqrt(-2 * np.log(1 - blocks[:, : BLOCK // 2]))
    angle = np.float32(2 * np.pi) * blocks[:, BLOCK // 2 :]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


def linear(generator: TorchGenerator, inputs: int, outputs: int, *, bias: bool) -> tuple[np.ndarray, ...]:
    """`torch.nn.Linear(inputs, outputs, bias)`: its weight (out, in) and, if asked for, its bias.

    The weight's bound is rounded as `kaiming_uniform_(weight, a=math.sqrt(5))` rounds it.
    """
    gain = math.sqrt(2 / (1 + math.sqrt(5) ** 2))
    bound = math.sqrt(3) * (gain / math.sqrt(inputs))
    weight = generator.uniform(-bound, bound, outputs, inputs)
    return (weight, generator.uniform(-(inputs**-0.5), inputs**-0.5, outputs)) if bias else (weight,)


def shuffled_epoch(generator: TorchGenerator, count: int) -> np.ndarray:
    """The order in which `DataLoader(..., shuffle=True)` reads so many examples once.

    The loader first draws a seed for its workers, also where it has none, and then one for the order.
    """
    generator.seed()
    return TorchGenerator(generator.seed()).randperm(count)
