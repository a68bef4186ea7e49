"""Sequences to copy and to reverse: their rows, by hand, and what decides them."""

import dataclasses

import numpy as np
import pytest

from jaxgpt.errors import ConfigError
from jaxgpt.text.sequences import Sequences, right

DATA = Sequences(task="reverse", shortest=2, longest=4, letters=5)


def test_rows_by_hand() -> None:
    pairs = DATA.pairs([[3, 4, 5], [6, 7]])
    np.testing.assert_array_equal(pairs.source_BS, [[3, 4, 5, 2, 0], [6, 7, 2, 0, 0]])
    np.testing.assert_array_equal(pairs.targets_BT, [[5, 4, 3, 2, 0], [7, 6, 2, 0, 0]])
    np.testing.assert_array_equal(pairs.inputs_BT, [[1, 5, 4, 3, 2], [1, 7, 6, 2, 0]])
    np.testing.assert_array_equal(pairs.weights_BT, [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    copied = dataclasses.replace(DATA, task="copy").pairs([[3, 4, 5]])
    np.testing.assert_array_equal(copied.targets_BT, copied.source_BS)


def test_seed_step_and_row_decide_what_is_drawn() -> None:
    whole = DATA.rows(5, 0, 400)
    np.testing.assert_array_equal(DATA.rows(5, 7, 9).source_BS, whole.source_BS[7:9])
    assert (DATA.rows(6, 0, 400).source_BS != whole.source_BS).any()
    lengths_B = whole.weights_BT.sum(axis=1) - 1
    assert set(lengths_B) == {2, 3, 4} and set(whole.source_BS.ravel()) == {0, *range(2, 8)}
    assert np.unique(whole.source_BS, axis=0).shape[0] > 200


def test_pairs_of_one_length_are_others_than_those_of_training() -> None:
    pairs = DATA.of_length(3, 50)
    assert pairs.source_BS.shape == (50, 5) and (pairs.source_BS[:, 3] == 2).all()
    trained_BS = dataclasses.replace(DATA, shortest=3, longest=3).rows(0, 0, 50).source_BS
    assert (pairs.source_BS[:, :4] != trained_BS).any(axis=1).mean() > 0.9


def test_a_sequence_is_right_where_no_token_is_wrong_up_to_its_end() -> None:
    targets_BT = np.array([[5, 4, 2, 0], [5, 4, 2, 0], [5, 4, 2, 0], [5, 4, 3, 2]])
    written_BT = np.array([[5, 4, 2, 9], [5, 3, 2, 0], [5, 4, 4, 2], [5, 4, 3, 2]])
    np.testing.assert_array_equal(right(written_BT, targets_BT), [True, False, False, True])


def test_a_wrong_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"longest = 2: it must be at least as much as shortest \(3\)"):
        Sequences(shortest=3, longest=2)
    with pytest.raises(ConfigError, match="task = 'sort' is not one of 'copy', 'reverse'"):
        Sequences(task="sort", longest=3)  # type: ignore[arg-type]
