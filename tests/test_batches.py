"""Windows are the book's; batches are a function of data, seed and step, and of nothing else."""

from pathlib import Path

import numpy as np
import pytest

from jaxgpt.errors import DataError
from jaxgpt.text.batch import Batch, check_ids, shifted
from jaxgpt.text.batches import TrainingBatches, ValidationBatches, Windows
from jaxgpt.text.prepare import prepare
from jaxgpt.text.shards import ShardWriter, TokenStream, open_split

V = 1000


@pytest.fixture
def stream(tmp_path: Path) -> TokenStream:
    """101 tokens, each its own position, in shards of 7."""
    return stream_of(tmp_path, 101)


def stream_of(folder: Path, tokens: int, *, shard_tokens: int = 7) -> TokenStream:
    folder.mkdir(exist_ok=True)
    writer = ShardWriter(folder, "train", "uint16", shard_tokens=shard_tokens)
    writer.append(np.arange(tokens))
    return TokenStream([folder / shard.file for shard in writer.finish()])


def training(
    stream: TokenStream, *, context: int = 10, stride: int = 10, sequences: int = 4, seed: int = 0, vocab=V
):
    return TrainingBatches(
        stream, context=context, stride=stride, sequences=sequences, seed=seed, vocab=vocab
    )


def starts(batches: TrainingBatches, steps: range) -> list[int]:
    """Where the windows of these steps start; a token is its own position."""
    rows = [batches.rows(step, 0, batches.sequences).inputs_BT[:, 0] for step in steps]
    return np.concatenate(rows).tolist()


@pytest.mark.parametrize(("context", "stride"), [(4, 1), (4, 4), (10, 3), (25, 25), (100, 1)])
def test_windows_are_the_books_also_across_shards(stream: TokenStream, context: int, stride: int) -> None:
    tokens = stream.read(0, len(stream)).tolist()
    inputs, targets = [], []
    for i in range(0, len(tokens) - context, stride):  # Raschka 2024, listing 2.5, GPTDatasetV1
        inputs.append(tokens[i : i + context])
        targets.append(tokens[i + 1 : i + context + 1])
    windows = Windows(stream, context, stride, V)
    batch = shifted(np.stack([windows[i] for i in range(len(windows))]))
    np.testing.assert_array_equal(batch.inputs_BT, inputs)
    np.testing.assert_array_equal(batch.targets_BT, targets)
    assert (batch.weights_BT == 1).all() and batch.inputs_BT.dtype == np.int32


def test_every_window_comes_once_an_epoch_and_each_epoch_has_its_own_order(stream: TokenStream) -> None:
    batches = training(stream, stride=5, sequences=1)  # starts 0, 5, ..., 90
    assert batches.windows == 19
    epochs = [starts(batches, range(19 * n, 19 * (n + 1))) for n in range(3)]
    assert all(sorted(epoch) == list(range(0, 91, 5)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0] and epochs[0] != sorted(epochs[0])


def test_the_seed_decides_the_order(stream: TokenStream) -> None:
    steps = range(10)
    assert starts(training(stream, seed=1), steps) == starts(training(stream, seed=1), steps)
    assert starts(training(stream, seed=1), steps) != starts(training(stream, seed=2), steps)
    assert sorted(starts(training(stream, seed=2**32 - 1), range(5)))[::2] == list(
        range(0, 91, 10)
    )  # 2 epochs of 10


def joined(parts: list[Batch]) -> Batch:
    return Batch(*(np.concatenate([part[i] for part in parts]) for i in range(3)))


@pytest.mark.parametrize("cuts", [[0, 1, 2, 3, 4, 5, 6], [0, 3, 6], [0, 2, 6]])
def test_a_global_batch_does_not_depend_on_who_reads_which_rows(stream: TokenStream, cuts: list[int]) -> None:
    whole = training(stream, sequences=6).rows(3, 0, 6)
    processes = [training(stream, sequences=6) for _ in cuts[1:]]
    spans = zip(processes, cuts[:-1], cuts[1:], strict=True)
    parts = joined([process.rows(3, start, stop) for process, start, stop in spans])
    for a, b in zip(parts[:3], whole[:3], strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_position_in_the_data_is_one_integer(stream: TokenStream) -> None:
    """A step has its batch whatever was read before it, far into later epochs too."""
    read_on = training(stream)
    expected = {step: starts(read_on, range(step, step + 1)) for step in range(20)}
    for step in (19, 7, 0, 12):
        assert starts(training(stream), range(step, step + 1)) == expected[step]


def test_rows_of_a_global_batch_follow_one_another_in_the_shuffled_stream(stream: TokenStream) -> None:
    assert starts(training(stream, sequences=5), range(4)) == starts(training(stream, sequences=2), range(10))


def test_a_row_says_where_it_was_read(stream: TokenStream) -> None:
    batches = training(stream, stride=3, sequences=5)
    for step in (0, 4):
        rows = batches.rows(step, 0, 5)
        for row, (place, [ids]) in enumerate(batches.origins(step)):
            assert ids == [*rows.inputs_BT[row].tolist(), int(rows.targets_BT[row, -1])]
            assert place == {"file": f"train_{ids[0] // 7:06d}.bin", "token": ids[0] % 7}


@pytest.mark.parametrize(
    ("tokens", "context", "sequences"), [(101, 10, 4), (100, 10, 4), (102, 10, 3), (2, 10, 4)]
)
def test_validation_predicts_every_token_but_the_first_once(
    tmp_path: Path, tokens: int, context: int, sequences: int
) -> None:
    batches = ValidationBatches(stream_of(tmp_path, tokens), context=context, sequences=sequences, vocab=V)
    targets, inputs = [], []
    for number in range(len(batches)):
        batch = batches.rows(number, 0, sequences)
        assert batch.inputs_BT.shape == (sequences, context)
        assert set(np.unique(batch.weights_BT)) <= {0, 1} and batch.weights_BT.any()
        targets += batch.targets_BT[batch.weights_BT == 1].tolist()
        inputs += batch.inputs_BT[batch.weights_BT == 1].tolist()
        for a, b in zip(
            joined([batches.rows(number, n, n + 1) for n in range(sequences)])[:3], batch[:3], strict=True
        ):
            np.testing.assert_array_equal(a, b)
    assert targets == list(range(1, tokens)) and inputs == list(range(tokens - 1))


def test_padding_is_ids_the_model_can_read(tmp_path: Path) -> None:
    last = ValidationBatches(stream_of(tmp_path, 12), context=10, sequences=4, vocab=V).rows(0, 0, 4)
    assert last.weights_BT.sum() == 11 and (last.inputs_BT[2:] == 0).all()


@pytest.mark.parametrize("wrong", [-1, 61, 100])
def test_an_id_outside_the_vocabulary_is_named(wrong: int) -> None:
    with pytest.raises(DataError, match=rf"token id {wrong}: the vocabulary has 61 ids"):
        check_ids(np.array([0, wrong, 60]), 61)
    assert check_ids(np.array([0, 60]), 61).tolist() == [0, 60] and len(check_ids(np.array([]), 61)) == 0


def test_neither_split_passes_on_ids_outside_the_vocabulary(stream: TokenStream) -> None:
    with pytest.raises(DataError, match="the vocabulary has 50 ids"):
        starts(training(stream, vocab=50), range(3))
    with pytest.raises(DataError, match="token id 50: the vocabulary has 50 ids"):
        ValidationBatches(stream, context=10, sequences=4, vocab=50).rows(1, 0, 1)


def test_a_text_too_short_for_one_prediction_is_refused(tmp_path: Path) -> None:
    assert training(stream_of(tmp_path / "11", 11)).windows == 1
    with pytest.raises(DataError, match=r"training split of 10 tokens: 11 are needed"):
        training(stream_of(tmp_path / "10", 10))
    with pytest.raises(DataError, match=r"validation split of 1 tokens: 2 are needed"):
        ValidationBatches(stream_of(tmp_path / "1", 1), context=10, sequences=4, vocab=V)


def test_training_and_validation_share_no_position_of_a_document(tmp_path: Path) -> None:
    """In a text whose characters all differ, each character is in exactly one of the two splits."""
    text = "".join(chr(0x4E00 + n) for n in range(1000))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    manifest = prepare([str(tmp_path / "text.txt")], tmp_path / "out", tokenizer="bytes", val_fraction=0.2)
    splits = [open_split(tmp_path / "out", split) for split in ("train", "val")]
    train, val = (
        bytes(id for id in split.read(0, len(split)).tolist() if id < 256).decode() for split in splits
    )
    assert manifest.end_of_text == 256 and train + val == text and len(val) == 200
