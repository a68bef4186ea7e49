import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.model.positions import alibi_slopes, rotate_by_position, sinusoidal_positions


def test_sinusoids_by_hand() -> None:
    row = sinusoidal_positions(jnp.array([[3]]), 4)[0, 0]
    np.testing.assert_allclose(row, [np.sin(3), np.cos(3), np.sin(0.03), np.cos(0.03)], rtol=1e-5)


def test_rotated_products_depend_on_distance_alone() -> None:
    q, k = (jax.random.normal(key, (1, 1, 2, 8)) for key in jax.random.split(jax.random.key(0)))

    def product(at_q: int, at_k: int) -> jax.Array:
        turned = [rotate_by_position(x, jnp.array([[at]])) for x, at in ((q, at_q), (k, at_k))]
        return (turned[0] * turned[1]).sum(-1)

    np.testing.assert_allclose(product(9, 4), product(105, 100), rtol=1e-4)
    assert not np.allclose(product(9, 4), product(9, 5), rtol=1e-2)
    np.testing.assert_allclose(product(0, 0), (q * k).sum(-1), rtol=1e-6)


@pytest.mark.parametrize(
    ("heads", "slopes"),
    [
        (8, [2.0**-i for i in range(1, 9)]),
        (4, [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]),
        (6, [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]),  # four, then every other of eight
    ],
)
def test_alibi_slopes_by_hand(heads: int, slopes: list[float]) -> None:
    np.testing.assert_allclose(alibi_slopes(heads), slopes, rtol=1e-6)
