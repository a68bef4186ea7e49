"""Checkpoints: what is restored is what was saved, to the bit, or an error; on any mesh."""

import errno
import gc
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import SingleDeviceSharding

from jaxgpt.config import GPTConfig, MeshConfig
from jaxgpt.errors import DataError, JaxgptError, MissingError, StorageError
from jaxgpt.model.gpt import Params
from jaxgpt.parallel import abstract, mesh_of, shardings
from jaxgpt.weights import checkpoint
from jaxgpt.weights.checkpoint import Checkpoints, finished_steps, latest_step, read_meta, restore
from jaxgpt.weights.digests import digests

Tree = dict[str, Any]


def target_of(tree: Any) -> Any:
    sharding = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def bits(tree: Any) -> list[tuple[Any, ...]]:
    """Every leaf's type, shape and bytes."""

    def plain(leaf: Any) -> np.ndarray:
        return np.asarray(
            jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        )

    return [(leaf.dtype, leaf.shape, plain(leaf).tobytes()) for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def tree() -> Tree:
    """A tree of dicts and tuples that holds every kind of leaf.

    There are float32 with a signed zero, bfloat16, an integer that float32 cannot hold, and a random key.
    """
    rng = np.random.default_rng(0)
    return {
        "kernel": jnp.asarray(rng.standard_normal((3, 5)), jnp.float32).at[0, 0].set(-0.0),
        "tuple": (jnp.arange(4, dtype=jnp.bfloat16), {"count": jnp.int32(16777217)}, ()),
        "ids": jnp.array([0, -1, 2**31 - 1], jnp.int32),
        "key": jax.random.key(7),
        "large": jnp.asarray(
            rng.standard_normal((50, 40)), jnp.float32
        ),  # small ones lie in a table with checksums
    }


@pytest.fixture(scope="module")
def saved(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(5, {"params": tree, "rest": {"step": jnp.int32(5)}}, {"position": {"seed": 1}})
    return folder


def test_what_was_saved_comes_back_to_the_bit(saved: Path, tree: Tree) -> None:
    restored = restore(saved, 5, "params", target_of(tree))
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
    assert bits(restored) == bits(tree)
    assert jax.random.uniform(restored["key"]) == jax.random.uniform(tree["key"])
    assert int(restore(saved, 5, "rest", target_of({"step": jnp.int32(0)}))["step"]) == 5
    assert read_meta(saved, 5)["position"] == {"seed": 1}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda tree: {name: leaf for name, leaf in tree.items() if name != "ids"}, "ids is not wanted"),
        (lambda tree: tree | {"extra": tree["ids"]}, "extra is not there, not int32[3]"),
        (lambda tree: tree | {"ids": tree["ids"][:2]}, "ids is int32[3], not int32[2]"),
        (lambda tree: tree | {"kernel": tree["kernel"].T}, "kernel is float32[3, 5], not float32[5, 3]"),
        (lambda tree: tree | {"ids": tree["ids"].astype(jnp.float32)}, "ids is int32[3], not float32[3]"),
        (lambda tree: tree | {"key": tree["ids"]}, "key is uint32[2], not int32[3]"),
        (
            lambda tree: tree | {"tuple": (jnp.zeros(4), {"count": jnp.float32(0)}, ())},
            "tuple/0 is bfloat16[4], not float32[4], tuple/1/count is int32[], not float32[]",
        ),
    ],
)
def test_a_target_unlike_what_was_saved_is_refused_and_never_cast(
    saved: Path, tree: Tree, change: Any, problem: str
) -> None:
    with pytest.raises(DataError, match=rf"checkpoint holds other arrays .*params\): {re.escape(problem)}; "):
        restore(saved, 5, "params", target_of(change(tree)))


@pytest.mark.parametrize(("step", "name"), [(6, "params"), (5, "average")])
def test_what_was_not_saved_is_missing(saved: Path, tree: Tree, step: int, name: str) -> None:
    with pytest.raises(MissingError, match="no checkpoint"):
        restore(saved, step, name, target_of(tree))


@pytest.mark.slow
def test_a_flipped_bit_is_an_error_or_changes_nothing(saved: Path, tree: Tree) -> None:
    """In every file of a checkpoint, at the ends and in between; what Orbax restores without a word too."""
    files = sorted(path for path in saved.rglob("*") if path.is_file())
    target, expected, refusals, tries = target_of(tree), bits(tree), [], 0
    rng = np.random.default_rng(0)
    for path in files:
        content = path.read_bytes()
        for place in {
            0,
            len(content) - 1,
            *rng.integers(0, len(content), 10 if "d" in path.parts else 4).tolist(),
        }:
            flipped = bytearray(content)
            flipped[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(flipped)
            tries += 1
            try:
                assert bits(restore(saved, 5, "params", target)) == expected, f"byte {place} of {path}"
            except DataError as error:
                refusals.append(str(error))
            finally:
                path.write_bytes(content)
    assert tries > 50 and len(refusals) > 10
    assert any(
        "other contents than were saved" in refusal for refusal in refusals
    )  # Orbax had nothing against it
    assert bits(restore(saved, 5, "params", target)) == expected


def test_an_array_that_cannot_be_read_is_named_and_nothing_else_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orbax alone leaves the reads of the others unfinished, and Python prints a traceback for each."""
    tree = {f"array {number}": jnp.full((64, 64), number, jnp.float32) for number in range(30)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, {"params": tree}, {})
    for path in (tmp_path / "5" / "params").rglob("d/*"):
        if path.stat().st_size > 64 * 64 * 4:
            path.unlink()
    printed: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    for _ in range(3):
        with pytest.raises(DataError, match=r'checkpoint is damaged .*: params: .*Error reading "array \d+/'):
            restore(tmp_path, 5, "params", target_of(tree))
        gc.collect()
    assert printed == []


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"digests": 1}', '{"digests": {"params": 1}}', '{"digests": {}}', "{", "", "[" * 100_000],
)
def test_a_damaged_table_is_a_data_error(saved: Path, tree: Tree, content: str) -> None:
    path = saved / "5" / "meta" / "metadata"
    before = path.read_text()
    path.write_text(content)
    try:
        with pytest.raises(DataError, match="meta"):
            restore(saved, 5, "params", target_of(tree))
    finally:
        path.write_text(before)


@pytest.fixture(scope="module")
def sharded(config: GPTConfig, params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's parameters, saved from a mesh of 8."""
    folder = tmp_path_factory.mktemp("sharded")
    placed = jax.device_put(params, shardings(params, mesh_of(MeshConfig(data=2, fsdp=2, tensor=2))))
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, {"params": placed}, {})
    return folder


@pytest.mark.parametrize("mesh", [(1, 1, 1), (1, 2, 1), (1, 1, 2), (1, 2, 2), (1, 4, 2)])
def test_a_checkpoint_of_eight_devices_is_the_same_on_any_mesh(
    params: Params, sharded: Path, mesh: tuple[int, int, int]
) -> None:
    data, fsdp, tensor = mesh
    devices = mesh_of(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])
    target = abstract(jax.eval_shape(lambda: params), devices)
    restored = restore(sharded, 1, "params", target)
    assert bits(restored) == bits(params)
    for leaf, want in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
        assert leaf.sharding.is_equivalent_to(want.sharding, leaf.ndim)
    assert digests(restored) == digests(params) == read_meta(sharded, 1)["digests"]["params"]


def words(dtype: Any) -> st.SearchStrategy[int]:
    return st.integers(0, 2 ** (8 * np.dtype(dtype).itemsize) - 1)


@settings(max_examples=60)
@given(st.data())
def test_one_changed_element_always_changes_the_digest(data: st.DataObject) -> None:
    """Bit patterns are compared, so -0.0 differs from 0.0 and one NaN from another."""
    dtype = data.draw(st.sampled_from([jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8]))
    word = {1: np.uint8, 2: np.uint16, 4: np.uint32}[np.dtype(dtype).itemsize]
    shape = data.draw(st.sampled_from([(), (5,), (2, 3), (2, 1, 2)]))
    values = data.draw(st.lists(words(dtype), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    before = np.array(values, word).reshape(shape)
    place = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    after = before.copy()
    after[place] = data.draw(words(dtype).filter(lambda value: value != before[place]))
    assert digests({"x": before.view(dtype)}) != digests({"x": after.view(dtype)})


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_every_pattern_of_a_stacked_16_bit_float_has_its_own_digest(dtype: Any) -> None:
    """The smallest numbers and the NaNs are where a conversion on the way would lose bits."""
    stacked = np.zeros((2, 1, 2), np.uint16)
    seen = set()
    for bits in [*range(8), 0x03FF, 0x7C01, 0x7E01, 0x7F80, 0x7F81, 0x7FC0, 0x7FC1, 0x8000, 0x8001, 0xFFC0]:
        stacked[1, 0, 1] = bits
        seen.add(digests({"x": stacked.view(dtype)})["x"])
    assert len(seen) == 18


@example([0, 1])
@given(st.lists(st.integers(0, 5), min_size=2, max_size=6))
def test_elements_in_another_place_change_the_digest(values: list[int]) -> None:
    before = np.array(values, np.int32)
    for after in (np.roll(before, 1), before[::-1].copy()):
        assert (digests({"x": before}) == digests({"x": after})) == (before == after).all()


def test_a_digest_tells_types_and_shapes_apart() -> None:
    zeros = [
        np.zeros(4, np.float32),
        np.zeros(4, np.int32),
        np.zeros((2, 2), np.float32),
        np.zeros((4, 1), np.float32),
    ]
    assert len({digests({"x": leaf})["x"] for leaf in zeros}) == 4


def small(step: int) -> Tree:
    return {"params": {"x": jnp.full(3, step, jnp.float32)}}


def test_an_unfinished_directory_is_not_the_latest_step(tmp_path: Path) -> None:
    assert latest_step(tmp_path) is None
    with Checkpoints(tmp_path) as checkpoints:
        assert latest_step(tmp_path) is None
        checkpoints.save(20, small(20), {})
        checkpoints.wait()
        for name in ("100", "latest", "30.orbax-checkpoint-tmp-1"):
            (tmp_path / name).mkdir()
        with pytest.warns(UserWarning, match=rf"{tmp_path / '100'} is not a finished checkpoint") as told:
            assert latest_step(tmp_path) == 20
        assert len(told) == 1
    with pytest.warns(UserWarning, match="100 is not a finished checkpoint"):
        assert latest_step(tmp_path) == 20
    with Checkpoints(
        tmp_path, keep=2
    ) as checkpoints:  # what lies in the way is replaced, and evicts nothing real
        checkpoints.save(40, small(40), {})
        checkpoints.save(100, small(100), {})
    assert latest_step(tmp_path) == 100
    restored = restore(tmp_path, 100, "params", target_of(small(0)["params"]))
    np.testing.assert_array_equal(restored["x"], [100, 100, 100])


def test_a_save_that_a_kill_ended_is_gone_after_the_next_start(tmp_path: Path) -> None:
    """Also where the next start saves at other steps, so that nothing takes its place."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(20, small(20), {})
    (tmp_path / "30.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    with Checkpoints(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["20"]


def test_a_save_is_done_when_every_file_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = set[Path]()
    monkeypatch.setattr(checkpoint, "sync", synced.add)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, small(10), {})
        checkpoints.wait()
        assert synced == {tmp_path, tmp_path / "10", *(tmp_path / "10").rglob("*")} and len(synced) > 9


def test_a_checkpoint_is_never_half_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is moved first. What is left where the process is killed meanwhile is gone after the next start."""
    with monkeypatch.context() as killed:
        killed.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None)
        with Checkpoints(tmp_path, keep=1) as checkpoints:
            for step in (10, 20):
                checkpoints.save(step, small(step), {})
    (half,) = (tmp_path / checkpoint.EVICTED).iterdir()
    shutil.rmtree(half / "params")
    assert half.name == "10" and finished_steps(tmp_path) == [20] and latest_step(tmp_path) == 20
    with Checkpoints(tmp_path, keep=1):
        assert [path.name for path in tmp_path.iterdir()] == ["20"]


@pytest.mark.parametrize(("keep", "left"), [(1, ["30"]), (2, ["20", "30"])])
def test_the_latest_are_kept(tmp_path: Path, keep: int, left: list[str]) -> None:
    with Checkpoints(tmp_path, keep=keep) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, small(step), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_the_best_is_kept_beside_the_latest_also_by_a_run_that_goes_on(tmp_path: Path) -> None:
    best = {10: 10, 20: 20, 30: 20, 40: 20, 50: 50, 60: 50}
    for steps, left in (
        ((10, 20, 30), {"20", "30"}),
        ((40,), {"20", "40"}),
        ((50,), {"50"}),
        ((60,), {"50", "60"}),
    ):
        saving = [0]
        with Checkpoints(tmp_path, keep=1, best=lambda saving=saving: best.get(saving[0])) as checkpoints:
            for saving[0] in steps:
                checkpoints.save(saving[0], small(saving[0]), {})
        assert {path.name for path in tmp_path.iterdir()} == left
        assert latest_step(tmp_path) == steps[-1]
    assert finished_steps(tmp_path) == [50, 60]
    restored = restore(tmp_path, 50, "params", target_of(small(0)["params"]))
    np.testing.assert_array_equal(restored["x"], [50, 50, 50])


def test_saved_arrays_may_be_donated_at_once(tmp_path: Path) -> None:
    items = {"params": {"x": jnp.arange(1_000_000, dtype=jnp.float32)}}
    expected, target = digests(items["params"]), target_of(items["params"])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, items, {})
        changed = jax.jit(lambda tree: jax.tree.map(jnp.negative, tree), donate_argnums=0)(items)
    assert digests(changed["params"]) != expected
    assert digests(restore(tmp_path, 1, "params", target)) == expected


@pytest.mark.parametrize("leave", ["wait", "exit"])
def test_a_full_disk_is_a_storage_error_however_one_hears_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(StorageError, match="No space left on device; make room") as caught, checkpoints:
        (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
        monkeypatch.setattr(checkpoints._manager, "wait_until_finished", full)
        if leave == "wait":
            checkpoints.wait()
    assert caught.value.exit_code == 74 and str(tmp_path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []  # nothing is left of it


def test_an_error_inside_is_not_hidden_by_a_failed_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(StorageError) as caught, checkpoints:
        monkeypatch.setattr(checkpoints._manager, "wait_until_finished", full)
        raise JaxgptError("stopped", why="a signal came", fix="run again")
    assert "stopped" in str(
        caught.value.__context__.__context__
    )  # and the failed save says that it is not on disk


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with (
        pytest.raises(StorageError, match="checkpoint not saved"),
        Checkpoints(tmp_path / "file") as checkpoints,
    ):
        checkpoints.save(1, small(1), {})


def test_a_folder_lost_during_the_run_is_a_storage_error(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    with pytest.raises(StorageError, match="checkpoint not saved"), Checkpoints(folder) as checkpoints:
        folder.rmdir()
        folder.write_text("not a directory")
        checkpoints.save(1, small(1), {})
        checkpoints.wait()


PROGRAM = """
import sys, pathlib, jax.numpy as jnp
from jaxgpt.weights.checkpoint import Checkpoints
with Checkpoints(pathlib.Path(sys.argv[1])) as checkpoints:
    checkpoints.save(3, {"params": {"x": jnp.arange(3_000_000.0)}}, {})
    if len(sys.argv) > 2:
        raise SystemExit(1)
"""


@pytest.mark.parametrize("failing", [False, True])
def test_leaving_finishes_the_save(tmp_path: Path, failing: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), *["fail"] * failing], capture_output=True
    )
    assert done.returncode == int(failing), done.stderr
    assert latest_step(tmp_path) == 3
    target = target_of({"x": jnp.zeros(3_000_000)})
    np.testing.assert_array_equal(
        restore(tmp_path, 3, "params", target)["x"], np.arange(3e6, dtype=np.float32)
    )
