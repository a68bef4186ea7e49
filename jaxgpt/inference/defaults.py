"""How text is written where nothing else is said, in Python and on the command line alike. Imports no JAX."""

import random

MAX_NEW_TOKENS = 100
TEMPERATURE = 0.8
TOP_K = 50


def random_seed() -> int:
    """A seed for a text that need not come out the same again; whoever draws it tells it, so that it can."""
    return random.getrandbits(31)
