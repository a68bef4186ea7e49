"""The order in which few examples are read: each once an epoch, in an order of its own. NumPy alone."""

import functools
from collections.abc import Iterable

import numpy as np


def shuffled(places: Iterable[int], count: int, seed: int) -> list[int]:
    """The numbers of the examples at these places of the endless sequence of epochs.

    There are `count` examples. Whoever knows the place knows the example: a run that is resumed needs nothing
    else.
    """
    found = []
    for place in places:
        epoch, within = divmod(place, count)
        found.append(int(_order(seed, epoch, count)[within]))
    return found


@functools.lru_cache(maxsize=2)  # a batch may end one epoch and begin the next
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)
