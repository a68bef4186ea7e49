"""The comparison of what we compute with what the book prints. docs/book.md lists all of them."""

from typing import Any

import numpy as np
from jax.typing import ArrayLike


def assert_printed(ours: ArrayLike | str | list[str], printed: Any, *, digits: int = 4) -> None:
    """Raise AssertionError unless `ours` is what the book prints.

    `printed` is a number, a text, or a list of them, nested as deep as `ours` has axes. Whole numbers and
    texts must be equal. Other numbers must be equal after they are rounded to `digits` digits behind the
    point; one in the middle between two rounded numbers may be rounded either way.
    """
    found, expected = np.asarray(ours), np.asarray(printed)
    if found.shape != expected.shape:
        raise AssertionError(f"ours has the shape {found.shape}, the printed one {expected.shape}")
    if expected.dtype.kind == "f":
        same = np.isclose(found, expected, rtol=0, atol=0.5 * 10.0**-digits + min(1e-6, 0.1 * 10.0**-digits))
    else:
        same = found == expected
    if not np.all(same):
        raise AssertionError(f"ours:\n{found}\nprinted:\n{expected}\n{np.sum(~same)} differ")
