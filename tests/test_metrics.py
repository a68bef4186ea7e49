"""The metrics file and the TensorBoard sink."""

import os
import struct
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.errors import ConfigError, DataError, StorageError
from jaxgpt.log import read_rows
from jaxgpt.training.metrics import MetricsLog, TensorBoardSink, check_tensorboard


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def written(path, *steps):
    log = MetricsLog(path)
    for step in steps:
        log.write(step, {"loss": 10 / step})
    return log


def test_rows_come_back_in_order_with_their_step_first(path):
    log = MetricsLog(path)
    log.write(10, {"loss": 2.5, "tokens_per_second": 1000})
    log.write(20, {"sample": "It was\na `dark` night \u2028\ud800 \u00e9"})
    assert log.rows() == [
        {"step": 10, "loss": 2.5, "tokens_per_second": 1000},
        {"step": 20, "sample": "It was\na `dark` night \u2028\ud800 \u00e9"},
    ]
    assert path.read_text().startswith('{"step": 10,')
    assert path.read_bytes().count(b"\n") == 2


@settings(deadline=None)  # a busy machine is not a failure
@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_a_float32_loss_reads_back_bit_for_bit(tmp_path_factory, loss):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    MetricsLog(path).write(1, {"loss": np.float32(loss), "wide": loss})
    (row,) = read_rows(path)
    assert struct.pack("f", row["loss"]) == struct.pack("f", loss)
    assert struct.pack("d", row["wide"]) == struct.pack("d", loss)


def test_numpy_and_jax_scalars_are_written_as_numbers(path):
    import jax.numpy as jnp

    MetricsLog(path).write(
        1, {"a": np.int64(3), "b": np.float32(0.1), "c": jnp.float32(0.1), "d": jnp.int32(7)}
    )
    assert (
        path.read_text()
        == '{"step": 1, "a": 3, "b": 0.10000000149011612, "c": 0.10000000149011612, "d": 7}\n'
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("-inf")])
def test_a_number_that_is_not_finite_is_refused_and_leaves_no_trace(path, value):
    log = written(path, 1)
    with pytest.raises(ValueError, match=r"grad_norm = .* is not finite"):
        log.write(2, {"loss": 1.0, "grad_norm": value})
    assert [row["step"] for row in log.rows()] == [1]


def test_each_row_is_in_the_file_when_write_returns(path):
    log = MetricsLog(path)
    for step in (1, 2):
        log.write(step, {"loss": 1.0})
        assert len(path.read_bytes().splitlines()) == step


def test_opening_after_a_kill_at_any_byte_of_a_write_drops_that_row_and_nothing_else(path):
    written(path, 1, 2, 3)
    whole = path.read_bytes()
    two_rows = whole[: whole[:-1].rfind(b"\n") + 1]
    for end in range(len(two_rows), len(whole)):
        path.write_bytes(whole[:end])
        log = MetricsLog(path)
        assert path.read_bytes() == two_rows
        log.write(3, {"loss": 10 / 3})
        assert path.read_bytes() == whole


def test_reading_leaves_out_a_torn_line_and_does_not_touch_it(path):
    written(path, 1)
    with path.open("ab") as file:
        file.write(b'{"step": 2, "lo')
    before = path.read_bytes()
    assert [row["step"] for row in read_rows(path)] == [1]
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", ["", "nonsense", "[1]", '{"loss": 1.0}', '{"step": "7"}', "\ufffd"])
def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(path, line):
    written(path, 1)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + '\n{"step": 3}\n')
    with pytest.raises(DataError, match="line 2 is not a JSON object"):
        MetricsLog(path)


def test_cutting_back_drops_later_rows_only_and_writing_goes_on(path):
    log = written(path, 1, 2, 3, 4)
    before = path.read_bytes().splitlines(keepends=True)
    log.cut_back(2)
    assert path.read_bytes() == b"".join(before[:2])
    log.write(3, {"loss": 10 / 3})
    assert path.read_bytes() == b"".join(before[:3])


def test_cutting_back_to_the_last_step_leaves_the_file_alone(path):
    log = written(path, 1, 2)
    inode = path.stat().st_ino
    log.cut_back(2)
    assert path.stat().st_ino == inode


def test_a_kill_while_cutting_back_leaves_all_rows(path, monkeypatch):
    log = written(path, 1, 2, 3)
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        log.cut_back(1)
    assert path.read_bytes() == before


def test_a_folder_that_is_not_there_is_a_storage_error_that_names_the_file(tmp_path):
    with pytest.raises(StorageError, match=r"absent/metrics\.jsonl.*No such file"):
        MetricsLog(tmp_path / "absent" / "metrics.jsonl")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the full device is Linux's")
def test_a_full_disk_is_a_storage_error(path):
    log = written(path, 1)
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left"):
        log.write(2, {"loss": 1.0})


def test_tensorboard_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match=r"pip install 'jaxgpt\[tensorboard\]'"):
        check_tensorboard()


def tensorboard_events(folder):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    (file,) = folder.iterdir()
    events, data = [], file.read_bytes()
    while data:  # TFRecord: length (8 bytes), its checksum (4), the event, its checksum (4)
        (length,) = struct.unpack("<Q", data[:8])
        events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_tensorboard_records_numbers_and_texts_at_their_steps(tmp_path):
    pytest.importorskip("tensorboardX")
    sink = TensorBoardSink(tmp_path)
    sink.write(7, {"loss": np.float32(2.5), "sample": "It was"})
    sink.close()
    events = tensorboard_events(tmp_path)
    values = {(event.step, value.tag): value for event in events for value in event.summary.value}
    assert values[7, "loss"].simple_value == 2.5
    assert any(
        b"It was" in value.tensor.string_val[0]
        for (step, _), value in values.items()
        if step == 7 and value.HasField("tensor")
    )


def test_a_resumed_tensorboard_hides_the_steps_after_the_restored_one(tmp_path):
    pytest.importorskip("tensorboardX")
    TensorBoardSink(tmp_path, resumed_at=7).close()
    start = [
        event.step
        for event in tensorboard_events(tmp_path)
        if event.session_log.status == event.session_log.START
    ]
    assert start == [8]  # TensorBoard drops what other event files hold from this step on
