"""The planner's search: what it tries, what it passes over and what it prefers, and the verb around it."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import exit_code

from jaxgpt.config import GPTConfig, MeshConfig, TrainConfig, load_recipe, recipe_text
from jaxgpt.errors import ConfigError, JaxgptError
from jaxgpt.training import plan as planner
from jaxgpt.training.plan_search import KEEPS, Setting, Space, Trial, search
from jaxgpt.training.topology import Topology

TINY = GPTConfig(vocab=200, context=256, layers=2, heads=2, width=16)
RECIPE = TrainConfig(model=TINY, batch=16, accumulate=4, steps=50, backward_keeps="all")
SPACE = Space(RECIPE, Topology.named("v5e:2x4"))
OWN = Setting((8, 1, 1), 16, 4, "all", 0)


def figures(*, fits: bool | None = True, seconds: float | None = 1.0, **more: Any) -> dict[str, Any]:
    """What a plan says that a search looks at."""
    memory = {"fits": fits, "total": more.pop("total", 1.0), "missing": more.pop("missing", 0.0)}
    return {"memory": memory, "step_seconds": seconds, "cycles": None, "sent_per_chip": 0.0} | more


def supposed(setting: Setting, limit: float = 30.0) -> dict[str, Any]:
    """A chip that is quicker with larger batches and with more kept, until they no longer fit."""
    rows = setting.batch / (setting.mesh[0] * setting.mesh[1])
    kept = KEEPS.index(setting.keeps)
    total = 8 / setting.mesh[1] + rows * (1 + 2 * kept) + (0 if setting.chunk else rows)
    seconds = 1 + 1 / rows + 0.3 / (1 + kept) + (0.05 if setting.chunk else 0) + 0.02 * setting.mesh[1]
    return figures(fits=total <= limit, seconds=seconds, total=total, missing=total - limit)


def every_setting() -> list[Setting]:
    """All that a search could come to from here."""
    meshes = [at.mesh for at in SPACE.meshes(OWN)]
    each = itertools.product(meshes, (4, 8, 16, 32, 64), KEEPS, (0, 128))
    return [
        Setting(mesh, batch, 64 // batch, keeps, chunk)
        for mesh, batch, keeps, chunk in each
        if batch % (mesh[0] * mesh[1]) == 0
    ]


@pytest.mark.parametrize("limit", [10.0, 13.0, 30.0, 60.0, 1000.0])
def test_a_search_finds_the_best_within_2_percent_and_compiles_less_than_a_third(limit: float) -> None:
    everything = every_setting()
    best = min((Trial(at, supposed(at, limit)) for at in everything), key=lambda trial: trial.rank)
    found = search(SPACE, lambda at: supposed(at, limit))
    assert found[0].figures["memory"]["fits"] and best.figures["memory"]["fits"]
    assert found[0].figures["step_seconds"] <= 1.02 * best.figures["step_seconds"]
    assert [trial.rank for trial in found] == sorted(trial.rank for trial in found)
    tried = [trial.setting for trial in found if trial.figures]
    assert len(set(tried)) == len(tried) <= len(everything) / 3 and set(tried) <= set(everything)
    over = [trial.setting for trial in found if not trial.figures]
    assert not any(supposed(at, limit)["memory"]["fits"] for at in over)


def test_what_needs_no_less_than_what_did_not_fit_is_passed_over() -> None:
    asked: list[Setting] = []

    def measure(setting: Setting) -> dict[str, Any]:
        asked.append(setting)
        fits = setting.batch < 16 and setting.keeps == "nothing"
        return figures(fits=fits, seconds=1 / setting.batch, missing=float(setting.batch))

    found = search(SPACE, measure)
    missed = [trial.setting for trial in found if trial.lacks_memory]
    for at, setting in enumerate(asked):
        assert not any(setting.needs_no_less_than(before) for before in missed if before in asked[:at])
    assert found[0].setting[1:4] == (8, 8, "nothing")
    assert [trial.figures for trial in found if trial.setting not in asked] == [{}] * (
        len(found) - len(asked)
    )
    assert len(asked) < len(found)


def test_a_mesh_that_turns_out_better_is_searched_like_the_first_one() -> None:
    """More can be kept on shards only, and that they are better shows first where nothing is kept."""

    def measure(at: Setting) -> dict[str, Any]:
        sharded = at.mesh == (1, 8, 1)
        fits = sharded or at.keeps == "nothing"
        return figures(fits=fits, seconds=2 - 0.1 * KEEPS.index(at.keeps) - 0.01 * sharded, missing=1.0)

    assert search(SPACE, measure)[0].setting[:4:3] == ((1, 8, 1), "all")


@pytest.mark.parametrize(
    ("changed", "no_less"),
    [
        ({}, True),
        ({"batch": 32, "accumulate": 2}, True),
        ({"batch": 8, "accumulate": 8}, False),
        ({"keeps": "products"}, False),
        ({"chunk": 128}, False),
        ({"mesh": (1, 8, 1)}, False),
        ({"batch": 64, "accumulate": 1}, False),  # one micro-batch keeps no sum of gradients besides
    ],
)
def test_only_what_is_alike_is_compared(changed: dict[str, Any], no_less: bool) -> None:
    assert OWN._replace(**changed).needs_no_less_than(OWN) is no_less


def test_parameters_that_do_not_fit_are_not_compiled() -> None:
    large = dataclasses.replace(RECIPE, model=load_recipe("gpt2-xl").model)
    space = Space(large, Topology.named("v5e:2x4"))
    found = search(space, lambda at: figures(seconds=at.mesh[1]))
    tried = {trial.setting.mesh for trial in found if trial.figures}
    assert tried == {(1, 8, 1)}, "whole copies take 18.7 GB of 17.2"
    averaged = dataclasses.replace(RECIPE.optim, ema_decay=0.9)
    model = dataclasses.replace(TINY, vocab=80_000_000)  # 5.1 GB in float32
    for optim, fits in ((RECIPE.optim, True), (averaged, False)):
        recipe = dataclasses.replace(RECIPE, model=model, optim=optim)
        assert Space(recipe, Topology.named("v5e:2x4")).has_room(OWN) is fits
    assert Space(large, Topology.named("cpu:8")).has_room(OWN), "nobody says what this CPU has"


def test_what_fits_comes_first_by_time_then_memory_and_what_lacks_least_before_what_lacks_more() -> None:
    ranked = [
        figures(seconds=1.0, total=5.0),
        figures(seconds=1.0, total=6.0),
        figures(seconds=2.0, total=1.0),
        figures(fits=False, seconds=None, missing=1.0),
        figures(fits=False, seconds=None, missing=2.0),
        {"error": "its process ended"},
        {},
    ]
    backwards = ranked[::-1]
    order = sorted(backwards, key=lambda each: Trial(OWN, each).rank)
    assert order == ranked
    without_times = [figures(fits=None, seconds=None, total=total) for total in (2.0, 1.0)]
    assert min(without_times, key=lambda each: Trial(OWN, each).rank)["memory"]["total"] == 1.0
    cycles = [figures(cycles=c, total=t) for c, t in ((9, 1.0), (8, 2.0))]
    assert min(cycles, key=lambda each: Trial(OWN, each).rank)["cycles"] == 8


def test_a_step_keeps_its_sequences_and_suits_the_slice() -> None:
    for along in (SPACE.ways, SPACE.meshes, SPACE.larger, SPACE.smaller):
        for setting in along(OWN):
            recipe = setting.applied(RECIPE)
            assert recipe.sequences == 64 and recipe.batch % (setting.mesh[0] * setting.mesh[1]) == 0
            assert Setting.of(recipe, Topology.named("cpu:8")) == setting
    assert [at.batch for at in SPACE.larger(OWN)] == [32, 64] and [at.batch for at in SPACE.smaller(OWN)] == [
        8
    ]
    assert len(list(SPACE.ways(OWN))) == 6 and OWN in SPACE.ways(OWN)
    assert {at.mesh for at in SPACE.meshes(OWN)} == {(8, 1, 1), (1, 8, 1), (1, 4, 2)}
    many = Space(dataclasses.replace(RECIPE, batch=256), Topology.named("v5e:8x8"))
    assert (8, 8, 1) in {at.mesh for at in many.meshes(many.start)}


def test_a_search_begins_with_the_recipe_or_the_nearest_that_suits_the_slice() -> None:
    assert SPACE.start == OWN
    leaves_open = dataclasses.replace(RECIPE, backward_keeps="auto")
    assert SPACE._replace(recipe=leaves_open).start == OWN._replace(keeps="products")
    assert Space(leaves_open, Topology.named("cpu:8")).start == OWN
    small = dataclasses.replace(RECIPE, batch=4, accumulate=4)
    assert Space(small, Topology.named("cpu:8")).start == Setting((8, 1, 1), 8, 2, "all", 0)
    assert Space(small, Topology.named("cpu:32")).start == Setting((1, 16, 2), 16, 1, "all", 0)
    with pytest.raises(ConfigError, match=r"= 16: so many sequences do not divide over the 64 chips"):
        _ = Space(small, Topology.named("cpu:64")).start
    with pytest.raises(ConfigError, match="does not multiply to the 8 devices"):
        _ = Space(dataclasses.replace(RECIPE, mesh=MeshConfig(fsdp=3)), Topology.named("cpu:8")).start


def test_a_recipe_is_written_as_it_is_read(tmp_path: Path) -> None:
    recipe = load_recipe("gpt2")
    assert isinstance(recipe, TrainConfig)
    for settings in (
        {},
        {"data.path": 'a "b" \\ \n\t\x7f ö', "optim.learning_rate": 1e-30, "model.bias": False},
        {"evaluation.tasks": ["lambada", "hellaswag"], "mesh.fsdp": 8, "mesh.data": 1, "data.stride": 3},
    ):
        written = load_recipe("gpt2", settings)
        assert isinstance(written, TrainConfig)
        (tmp_path / "a.toml").write_text(recipe_text(written, "what\nit is"), encoding="utf-8")
        assert load_recipe(str(tmp_path / "a.toml")) == written
    assert recipe_text(TrainConfig(steps=7, mesh=MeshConfig(fsdp=2)), "a\n\nb") == (
        "# a\n#\n# b\nsteps = 7\n\n[mesh]\nfsdp = 2\n"
    )


SEARCHED = ["plan", "nano", "--topology", "v5e:2x4", "--search"]


def suppose_chips(monkeypatch: pytest.MonkeyPatch, limit: float) -> None:
    """A compiler that answers at once, and gives up on `tensor`."""

    def compiled(recipe: TrainConfig, topology: Topology, *, cache: bool) -> dict[str, Any]:
        setting = Setting.of(recipe, topology)
        if setting.mesh[2] > 1:
            raise JaxgptError("compiling failed", why="its process ended", fix="report it")
        memory = supposed(setting, limit)["memory"] | {"limit": limit, "at_least": False}
        facts = {"device_kind": "TPU v5 lite", "mesh": {"data": 8}, "compile_seconds": 1.0, "memory": memory}
        unknown = dict.fromkeys(("collectives", "kernels", "bytes_accessed"))
        return facts | unknown | {"cycles": 1e9 * supposed(setting)["step_seconds"], "from_cache": False}

    monkeypatch.setattr(planner, "compiled_elsewhere", compiled)
    monkeypatch.setattr(Topology, "environment", lambda self: {})


def test_a_search_from_the_command_line_writes_the_best_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suppose_chips(monkeypatch, 4.0)
    recipe, every = tmp_path / "best.toml", tmp_path / "all.json"
    assert exit_code(*SEARCHED, "--write", recipe, "--json", every) == 0
    shown, written, best = capsys.readouterr(), json.loads(every.read_text()), load_recipe(str(recipe))
    assert isinstance(best, TrainConfig)
    assert (
        Setting.of(best, Topology.named("cpu:8")).settings
        == written["best"]
        == written["tried"][0]["settings"]
    )
    assert best == load_recipe("nano", written["best"]), "nothing else has changed"
    assert written["tried"][0]["memory"]["fits"] and "error" in written["tried"][-1]
    flags = f"--mesh.data 1 --mesh.fsdp 8 --mesh.tensor 1 --batch {best.batch}"
    assert f"{len(written['tried'])} settings; " in shown.out and f"The best one: {flags}" in shown.out
    assert "not compiled: compiling failed: its process ended" in shown.err
    assert "# The fastest setting for v5e:2x4" in recipe.read_text()


@pytest.mark.parametrize(("preset", "said"), [("nano", "are missing"), ("gpt2-xl", "alone is more than")])
def test_a_search_without_success_says_so_and_writes_no_recipe(
    preset: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    suppose_chips(monkeypatch, 0.1)
    slice_ = "v5e:2x4" if preset == "nano" else "v5e:1"
    argv = ["plan", preset, "--topology", slice_, "--search", "--write", tmp_path / "best.toml"]
    assert exit_code(*argv) == 2
    error = capsys.readouterr().err
    assert said in error and "nothing that was tried fits" in error and not list(tmp_path.iterdir())


def test_a_recipe_is_written_only_by_a_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("plan", "nano", "--topology", "cpu:8", "--write", tmp_path / "a.toml") == 2
    assert "give --search, or leave --write out" in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_over_devices_of_this_cpu_takes_what_needs_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sizes = ["--model.layers", "2", "--model.width", "16", "--model.heads", "2", "--model.context", "64"]
    every = tmp_path / "all.json"
    argv = ["plan", "nano", "--topology", "cpu:2", "--batch", "2", *sizes, "--search", "--json", every]
    assert exit_code(*argv) == 0
    tried = json.loads(every.read_text())["tried"]
    totals = [trial["memory"]["total"] for trial in tried]
    assert totals == sorted(totals) and tried[0]["settings"]["mesh.data"] == 1, "shards take less than copies"
    assert len({(*trial["settings"].values(),) for trial in tried}) == len(tried) >= 5
    capsys.readouterr()
