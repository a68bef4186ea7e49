"""The planner: collectives counted by hand and in compiled programs, and the verb as people use it."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from command_line import exit_code
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgpt.config import GPTConfig, MeshConfig, TrainConfig
from jaxgpt.errors import ConfigError, JaxgptError
from jaxgpt.parallel import mesh_of
from jaxgpt.training import plan as planner
from jaxgpt.training import plan_cache
from jaxgpt.training.flops import count_parameters, train_flops_per_token
from jaxgpt.training.paper import on_paper
from jaxgpt.training.plan import compiled, plan
from jaxgpt.training.program_text import Collective, collectives, estimated_cycles, kernels
from jaxgpt.training.topology import CHIPS, Topology
from jaxgpt.verbs.plan_table import _shown_part


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "jaxgpt" / "plans"


def error_of(capsys: pytest.CaptureFixture[str], code: int, *argv: Any) -> str:
    """The error that a command line ends with, which is this code's."""
    assert exit_code(*argv) == code
    return capsys.readouterr().err


LOOP = """HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%less (p: (s32[], f32[4,6])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%inner (p: (s32[], f32[4,6])) -> (s32[], f32[4,6]) {
  %r = f32[4,6]{1,0:T(8,128)} all-reduce(%x), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  %f = f32[4,6] fusion(%r), kind=kLoop, calls=%fused, backend_config={"window":{},"estimated_cycles":"100"}
}

%outer (p: (s32[], f32[4,6])) -> (s32[], f32[4,6]) {
  %s = bf16[16]{0} reduce-scatter(%y), replica_groups=[4,2]<=[2,2,2]T(0,2,1), dimensions={0}, to_apply=%add
  %w = (s32[], f32[4,6]) while(%t), condition=%less, body=%inner
}

ENTRY %main (p: f32[4,6]) -> f32[4,6] {
  %g = (f32[10]{0}, f32[20]{0}) all-gather-start(%z), replica_groups=[4,2]<=[8], dimensions={0}
  %d = f32[20]{0} all-gather-done(%g)
  %a = f32[5] all-reduce(%q), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  %p = f32[7]{0} collective-permute(%q), source_target_pairs={{0,1},{1,0},{2,3},{3,2}}
  %e = (f32[3]{0}, bf16[2]{0}) all-reduce(%m, %n), replica_groups={}, to_apply=%add
  %v = (s32[], f32[4,6]) while(%t), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %h = f32[7]{0} fusion(%q), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"7"}
}
"""


def test_collectives_are_counted_as_often_as_their_loop_turns() -> None:
    mesh = mesh_of(MeshConfig(data=2, fsdp=2, tensor=2))
    each = {(found.kind, found.axes): found for found in collectives(LOOP, mesh)}
    assert each == {
        key: Collective(*key, count, sent)
        for key, count, sent in (
            (("all-reduce", "data"), 15, 15 * 2 * 96 / 2),
            (("reduce-scatter", "fsdp"), 5, 5 * 32),
            (("all-gather", "tensor"), 1, 80 / 2),
            (("collective-permute", "tensor"), 1, 28),
            (("all-reduce", "data x fsdp x tensor"), 1, 2 * 16 * 7 / 8),
        )
    }
    assert [found.sent for found in collectives(LOOP, mesh)] == sorted(
        (found.sent for found in each.values()), reverse=True
    )


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("mesh['a'=8] {'a'}", "data x fsdp x tensor"),
        ("mesh['a'=2,'b'=2,'c'=2] {'b'}", "fsdp"),
        ("mesh['a'=2,'b'=4] {'a'}", "data"),
        ("mesh['a'=2,'b'=4] {'b':(2)2}", "tensor"),
        ("mesh['a'=4,'b'=2] {'a':(1)2,'b'}", "data x tensor"),
        ("mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}", "fsdp x tensor"),
        ("mesh['a'=1,'b'=4,'c'=2], device_ids=(0,4,1,5,2,6,3,7) {'b'}", "fsdp x tensor"),
        ("mesh['a'=1,'b'=4,'c'=2], device_ids=(0,4,1,5,2,6,3,7) {'c'}", "data"),
        ("[2,4]<=[8]", "fsdp x tensor"),
        ("[4,2]<=[2,4]T(1,0)", "data"),
    ],
)
def test_groups_of_devices_are_axes_of_the_mesh_in_every_spelling(groups: str, axes: str) -> None:
    head = "ENTRY %main () -> f32[8] {\n  %g = f32[8] all-reduce(%x), replica_groups="
    line = head + groups + ", to_apply=%add\n}"
    (found,) = collectives(line, mesh_of(MeshConfig(data=2, fsdp=2, tensor=2)))
    assert found.axes == axes
    with pytest.raises(ValueError, match="a form that is not known"):
        collectives(line.replace(groups, "other"), mesh_of(MeshConfig()))


def test_a_collective_in_parts_beside_several_fusions_is_one() -> None:
    """As the TPU's compiler writes it: each part in a computation of its own, all with one channel."""
    gather = "%g = f32[8] all-gather(%x), channel_id={}, replica_groups=[1,8]<=[8], dimensions={{0}}"
    part = f'  {gather.format(7)}, frontend_attributes={{chain_id="0"}}'
    parts = [f"%part.{n} (p: f32[1]) -> f32[8] {{\n{part}\n}}\n" for n in range(3)]
    calls = "\n".join(f"  %f.{n} = f32[8] fusion(%x), calls=%part.{n}" for n in range(3))
    apart = f"  {gather.format(1)}\n  {gather.format(1)}"
    program = "\n".join([*parts, f"ENTRY %main (p: f32[1]) -> f32[8] {{\n{calls}\n{apart}\n}}"])
    (found,) = collectives(program, mesh_of(MeshConfig(fsdp=8, data=1)))
    assert (found.number, found.sent) == (3, 3 * 32 * 7 / 8), "one in parts, two apart"


def test_a_reduction_of_which_a_device_takes_its_part_is_a_scatter() -> None:
    """As the TPU's compiler writes it. It sends half of what a reduction to whole arrays does."""
    reduce = "  %r = f32[32] all-reduce(%x), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add"
    part = f"%all-reduce-scatter.2.clone (x: f32[32]) -> f32[4] {{\n{reduce}\n}}\n"
    call = "  %f = f32[4] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.2.clone"
    program = f"{part}\nENTRY %main (p: f32[32]) -> f32[4] {{\n{call}\n}}"
    (found,) = collectives(program, mesh_of(MeshConfig(fsdp=8, data=1)))
    assert found == Collective("reduce-scatter", "fsdp", 1, 128 * 7 / 8)


WINDOWED = """
%less (p: (f32[6], u32[], u32[])) -> pred[] {
  %limit = u32[]{:T(128)} constant(8), metadata={op_name="jit(step)/dot_general"}
  %p = (f32[6]{0}, u32[]{:T(128)}, u32[]{:T(128)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=2
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT, metadata={op_name="jit(step)/dot_general"}
}

%body (p: (f32[6], u32[], u32[])) -> (f32[6], u32[], u32[]) {
  %two = u32[]{:T(128)} constant(2)
  %five = u32[]{:T(128)} constant(5)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=2
  %there = u32[]{:T(128)S(6)} add(%i, %five), metadata={op_name="jit(step)/dot_general"}
  %next = u32[]{:T(128)} add(%i, %two), metadata={op_name="jit(step)/dot_general"}
  %x = f32[6]{0} collective-permute(%q), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %y = f32[6]{0} collective-permute(%x), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  ROOT %t = (f32[6]{0:T(8)}, u32[]{:T(128)}, /*index=2*/u32[]{:T(128)}) tuple(%y, %there, /*index=2*/%next)
}

ENTRY %main (p: f32[6]) -> f32[6] {
  %w = (f32[6], u32[], u32[]) while(%t), condition=%less, body=%body, metadata={op_name="jit(step)/dot"}
}
"""


@pytest.mark.parametrize(("body", "number"), [(WINDOWED, 8), (WINDOWED.replace("tant(2)", "tant(1)"), 16)])
def test_a_loop_whose_body_has_two_turns_turns_half_as_often(body: str, number: int) -> None:
    """As the TPU's compiler writes a product whose shards go round: `i < 8`, and two turns in the body."""
    (found,) = collectives(body, mesh_of(MeshConfig(data=2, fsdp=4)))
    assert (found.kind, found.number, found.sent) == ("collective-permute", number, number * 24)


def test_the_compilers_cycles_are_added_up() -> None:
    assert estimated_cycles(LOOP) == 5 * 3 * 100 + 7
    assert estimated_cycles(LOOP.replace("estimated_cycles", "other")) is None


def test_kernels_are_counted_which_the_compiler_does_not_estimate() -> None:
    called = LOOP.replace("fusion(%r), kind=kLoop", 'custom-call(%r), custom_call_target="tpu_custom_call"')
    assert (kernels(LOOP), kernels(called)) == (0, 5 * 3)


def test_the_collectives_of_a_compiled_program_are_those_it_must_have() -> None:
    """Ten products of a matrix that is split over `fsdp`, and a sum over `data`: in a loop, and unrolled."""
    mesh = mesh_of(MeshConfig(data=2, fsdp=4))
    x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    w = jax.ShapeDtypeStruct((10, 64, 64), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp")))

    def step(x: jax.Array, w: jax.Array) -> jax.Array:
        def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
            return jnp.tanh(x @ w), None

        return jax.lax.scan(layer, x, w)[0].sum()

    found = collectives(jax.jit(step).lower(x, w).compile().as_text(), mesh)
    kinds = {(each.kind, each.axes): each for each in found}
    gathered = kinds["all-gather", "fsdp"]
    assert gathered.sent == pytest.approx(10 * 64 * 64 * 4 * 3 / 4) and gathered.number == 10
    assert kinds["all-reduce", "data"].sent == 4


@pytest.mark.parametrize(
    "name", ["v5e", "v5e:", "v5e:2x", "v5e:0x4", "v9:2x4", "cpu:2x4", "cpu:1000000", "8", "h100:2x4"]
)
def test_a_name_of_no_slice_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"it names no slice; write the chip \(v5e, v5p, v6e\)"):
        Topology.named(name)


def test_clocks_follow_from_the_peaks() -> None:
    """v5e's 1.5 GHz is published: Austin et al. 2025, "How to Scale Your Model", part 2."""
    clocks = {name: chip.clock / 1e9 for name, chip in CHIPS.items() if chip.clock}
    assert clocks == pytest.approx({"v5e": 1.5, "v5p": 1.75, "v6e": 1.75}, rel=0.01)


def test_slices_have_names_and_sizes() -> None:
    assert [Topology.named(name).size for name in ("cpu:8", "v5e:2x4", "v5p:2x2x2")] == [8, 8, 8]
    assert str(Topology.named("v6e:16x16")) == "v6e:16x16"


def test_a_missing_compiler_is_named_with_the_extra_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"libtpu, which is not installed; pip install 'jaxgpt\[plan\]'"):
        Topology.named("v5e:2x4").environment()


TINY = GPTConfig(vocab=200, context=16, layers=2, heads=2, width=16)
RECIPE = TrainConfig(model=TINY, batch=8, accumulate=2, steps=50)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_data_parallel_training_sends_twice_the_gradients_of_each_micro_batch(accumulate: int) -> None:
    """The theory of a ring. The loss and the weight are two numbers besides."""
    recipe = dataclasses.replace(RECIPE, accumulate=accumulate)
    found = compiled(recipe, Topology.named("cpu:8"))
    (reduced,) = found["collectives"]
    table = 4 * TINY.padded_vocab * TINY.width  # its gradient as a head, and as embeddings
    stored = table + 4 * (count_parameters(TINY) - TINY.vocab * TINY.width)
    assert (reduced["kind"], reduced["axes"]) == ("all-reduce", "data")
    assert reduced["sent"] == pytest.approx(accumulate * 2 * 7 / 8 * (stored + table), rel=0.01)
    paper = on_paper(recipe, Topology.named("h100:8"))
    (theory,) = paper["collectives"]
    assert reduced["sent"] == pytest.approx(theory["sent"] * (1 + table / stored), rel=0.01)
    memory = found["memory"]
    assert memory["arguments"] == pytest.approx(paper["memory"]["arguments"], rel=0.02), "and the batch"
    assert 3 * stored < memory["arguments"] < 3.2 * stored and memory["fits"] is None
    assert memory["total"] == sum(memory[name] for name in ("arguments", "outputs", "temporaries", "code"))
    assert memory["temporaries"] > stored, "the gradients"


def test_a_plan_reckons_with_what_the_maker_states(monkeypatch: pytest.MonkeyPatch) -> None:
    program = {
        "device_kind": "TPU v5 lite",
        "memory": {"fits": True},
        "collectives": [{"sent": 3e9}, {"sent": 1e9}],
        "cycles": None,
        "kernels": 0,
        "bytes_accessed": 8.19e9,
    }
    monkeypatch.setattr(planner, "compiled_elsewhere", lambda recipe, topology, cache: program)
    recipe = dataclasses.replace(RECIPE, model=dataclasses.replace(TINY, compute_dtype="bfloat16"))
    slice_, flops = Topology.named("v5e:2x4"), 16 * 16 * train_flops_per_token(TINY)
    found = plan(recipe, slice_, price=2.0)
    assert found["seconds"] == pytest.approx(
        {"arithmetic": flops / 8 / 197e12, "memory": 0.01, "links": 0.02, "cycles": None}
    )
    assert found["step_seconds"] == pytest.approx(0.02) and found["tokens_per_second"] == pytest.approx(
        12_800
    )
    assert found["utilisation"] == pytest.approx(flops / 0.02 / (8 * 197e12))
    assert found["train_seconds"] == pytest.approx(1.0) and found["cost"] == pytest.approx(2 * 8 / 3600)
    program["cycles"] = 3e8
    assert plan(recipe, slice_)["step_seconds"] == pytest.approx(3e8 / CHIPS["v5e"].clock)
    assert plan(recipe, slice_)["cost"] is None
    program["kernels"] = 4
    attention = 16 * 16 * 12 * TINY.layers * TINY.width * TINY.context / 8 / 197e12
    assert plan(recipe, slice_)["step_seconds"] - 3e8 / CHIPS["v5e"].clock == pytest.approx(
        attention, rel=1e-6, abs=1e-15
    )
    program["collectives"] = [{"sent": 200e9}]
    assert plan(recipe, slice_)["step_seconds"] == pytest.approx(1.0), "no chip is faster than its links"
    program["memory"] = {"fits": False}
    assert plan(recipe, slice_)["step_seconds"] is None


def test_gpus_are_reckoned_with_on_paper() -> None:
    """By hand: GPT-2 124M, 8 sequences of 1,024 on each of 8 GPUs, in bfloat16."""
    stored, tokens = 124_439_808 + 47 * 768, 8 * 1024
    model = GPTConfig(compute_dtype="bfloat16")
    recipe = TrainConfig(model=model, batch=64, backward_keeps="products")
    found = plan(recipe, Topology.named("h100:8"), price=2.0)
    logits = 2 * 4 * tokens * 50304
    assert found["memory"] == {
        "arguments": 12 * stored,
        "temporaries": 4 * stored + 12 * 11 * tokens * 768 * 2 + logits,
        "total": 16 * stored + 12 * 11 * tokens * 768 * 2 + logits,
        "limit": 80e9,
        "fits": None,
        "missing": 0.0,
        "at_least": True,
    }
    assert found["sent_per_chip"] == pytest.approx(2 * 2 * stored * 7 / 8)
    seconds = tokens * train_flops_per_token(model) / 989.5e12
    assert found["seconds"]["links"] == pytest.approx(found["sent_per_chip"] / 450e9)
    assert found["step_seconds"] == pytest.approx(seconds) and found["cost"] is not None

    def temporaries(**settings: Any) -> float:
        changed = on_paper(dataclasses.replace(recipe, **settings), Topology.named("h100:8"))
        return float(changed["memory"]["temporaries"])

    twice = on_paper(dataclasses.replace(recipe, accumulate=2), Topology.named("h100:8"))
    assert [(each["axes"], each["number"]) for each in twice["collectives"]] == [("data", 2)]
    averaged = dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, ema_decay=0.9))
    assert on_paper(averaged, Topology.named("h100:8"))["memory"]["arguments"] == 16 * stored
    assert temporaries() - temporaries(loss_chunk=256) == pytest.approx(0.75 * logits)
    assert temporaries(accumulate=2) - temporaries() == 4 * stored
    assert temporaries(backward_keeps="all") - temporaries() == pytest.approx(12 * 5 * tokens * 768 * 2)
    assert temporaries(mesh=MeshConfig(fsdp=8)) == pytest.approx(temporaries() - 4 * stored * 7 / 8)
    shared = on_paper(
        dataclasses.replace(recipe, mesh=MeshConfig(tensor=2, fsdp=2)), Topology.named("h200:8")
    )
    assert {(each["kind"], each["axes"]): each["sent"] for each in shared["collectives"]} == pytest.approx(
        {
            ("all-reduce", "data"): 2 * (2 * stored / 4) / 2,
            ("all-gather", "fsdp"): 2 * (2 * stored / 2) / 2,
            ("reduce-scatter", "fsdp"): (2 * stored / 2) / 2,
            ("all-reduce", "tensor"): 12 * 4 * 2 * (2 * tokens * 768 * 2) / 2,
        }
    )


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["gpt2-xl", "--topology", "h100:8", "--batch", "2048", "--backward-keeps", "all"], "are missing"),
        (
            ["gpt2", "--topology", "h100:5", "--batch", "5", "--mesh.tensor", "5"],
            "mesh does not divide the model",
        ),
        (["nano", "--topology", "h100:8", "--batch", "6"], "it does not divide over data x fsdp = 8"),
        (["nano", "--topology", "h100:16"], "plan for one machine: h100:8"),
        (["nano", "--topology", "a100:8", "--search"], "nothing here compiles for GPUs"),
    ],
)
def test_what_does_not_suit_gpus_is_refused(argv: list[str], said: str, capsys: Any) -> None:
    assert said in error_of(capsys, 2, "plan", *argv)


def test_a_plan_on_paper_says_so(capsys: Any) -> None:
    assert exit_code("plan", "nano", "--topology", "h200:1") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "nothing was compiled: every figure is the least that is needed" in shown
    assert ", of 131.32 GiB: it may fit" in shown and "memory of a chip at least" in shown
    assert "tokens a second" not in shown, "in float32 no peak is known"


TOO_LARGE = {
    "total": 18.5 * 2**30,
    "limit": 15.75 * 2**30,
    "fits": False,
    "missing": 2.75 * 2**30,
    "at_least": False,
}
ARRAY_TOO_LARGE = {
    "total": 26373783552.0,
    "limit": 17179869184.0,
    "fits": False,
    "missing": 9193914368.0,
    "at_least": True,
}


def a_compiler_that_says(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """Plan with a compiler that gives up with this message."""

    class Lowered:
        def compile(self) -> Any:
            raise RuntimeError(said)

    mesh = mesh_of(MeshConfig())
    monkeypatch.setattr(planner, "_lowered", lambda recipe, topology: (mesh, Lowered()))


@pytest.mark.parametrize(
    ("said", "memory"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.50G of 15.75G hbm.", TOO_LARGE),
        (
            "RESOURCE_EXHAUSTED: Allocation (size=26373783552) would exceed memory (size=17179869184) :: %s4",
            ARRAY_TOO_LARGE,
        ),
    ],
)
def test_what_the_compiler_says_of_too_large_programs_is_bytes(
    said: str, memory: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    a_compiler_that_says(monkeypatch, said)
    assert compiled(RECIPE, Topology.named("v5e:2x4"))["memory"] == memory


def test_other_errors_of_the_compiler_are_not_about_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    a_compiler_that_says(monkeypatch, "INTERNAL: Ran out of memory in memory space vmem")
    with pytest.raises(RuntimeError, match="vmem"):
        compiled(RECIPE, Topology.named("v5e:2x4"))


def test_what_ends_its_process_is_an_error_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(JaxgptError, match="its process ended with 1: it said nothing"):
        plan(RECIPE, Topology.named("cpu:8"))


PLANNED = [
    *("plan", "nano", "--topology", "cpu:4", "--model.layers", "1", "--model.width", "16"),
    *("--model.heads", "2", "--model.context", "16", "--mesh.fsdp", "2"),
]


def test_a_plan_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exit_code(*PLANNED, "--json", tmp_path / "plan.json") == 0
    figures, shown = json.loads((tmp_path / "plan.json").read_text()), capsys.readouterr().out
    assert figures["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1} and figures["chips"] == 4
    assert figures["tokens_per_step"] == 16 * 16 and figures["step_seconds"] is None
    assert {each["axes"] for each in figures["collectives"]} <= {"data", "fsdp", "data x fsdp"}
    assert "cpu:4: 4 x cpu (data=2 fsdp=2 tensor=1)" in shown and "all-gather over fsdp" in shown
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert exit_code(*PLANNED, "--out-dir", "elsewhere") == 0
    again = capsys.readouterr().out
    assert again.replace(", by an earlier plan", "").split() == shown.split() != again.split()
    assert "its process ended with 1" in error_of(capsys, 70, *PLANNED, "--no-cache")


def test_what_decides_a_program_decides_what_is_kept(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    made: list[TrainConfig] = []

    def compiled_now(recipe: TrainConfig, topology: Topology, environment: dict[str, str]) -> dict[str, Any]:
        made.append(recipe)
        return {"memory": {"total": len(made)}}

    def total(recipe: TrainConfig = RECIPE, topology: str = "cpu:8", **settings: Any) -> int:
        found = planner.compiled_elsewhere(dataclasses.replace(recipe, **settings), Topology.named(topology))
        return int(found["memory"]["total"])

    monkeypatch.setattr(planner, "_compiled_now", compiled_now)
    assert total() == total() == total(out_dir="elsewhere", log_every=3) == 1
    assert total(batch=16) == 2 and total(topology="cpu:4") == 3
    assert total(optim=dataclasses.replace(RECIPE.optim, ema_decay=0.5)) == 4
    with monkeypatch.context() as changed:
        changed.setenv("XLA_FLAGS", "--xla_dump_hlo_as_text")
        assert total() == 5
    with monkeypatch.context() as changed:
        changed.setattr(plan_cache, "_sources", lambda: "other sources")
        assert total() == 6
    with monkeypatch.context() as changed:
        changed.setattr("importlib.metadata.version", lambda name: "0.0")
        assert total() == 7
    (kept,) = (path for path in cache.iterdir() if json.loads(path.read_text())["memory"]["total"] == 1)
    for damaged in (b"", b"{", b"[]", b"\xff", b"{}"):
        kept.write_bytes(damaged)
        before = len(made)
        assert total() == total() == before + 1, "what cannot be read is compiled, and kept, again"


def test_a_cache_folder_that_cannot_be_written_is_done_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(planner, "_compiled_now", lambda *_: {"memory": {"total": 7}})
    found = planner.compiled_elsewhere(RECIPE, Topology.named("cpu:8"))
    assert found == {"memory": {"total": 7}, "from_cache": False}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--mesh.fsdp", "3"], "it does not multiply to the 4 devices"),
        (["--batch", "6"], "it does not divide over data x fsdp = 4"),
    ],
)
def test_a_recipe_that_does_not_suit_the_slice_is_refused(flags: list[str], said: str, capsys: Any) -> None:
    assert said in error_of(capsys, 2, *PLANNED, *flags)


def test_what_a_tpu_needs_is_what_is_in_use_at_one_time() -> None:
    """GPT-2 124M, 32 sequences on a v5e, by libtpu 0.0.41: it compiles, with 20.3 GiB of parts."""
    analysis = SimpleNamespace(
        argument_size_in_bytes=1494591488,
        output_size_in_bytes=1494200320,
        alias_size_in_bytes=1494198272,
        temp_size_in_bytes=20236733952,
        generated_code_size_in_bytes=20441088,
        peak_memory_in_bytes=15274664960,
    )
    memory = planner._memory(analysis, Topology.named("v5e:2x4"))
    assert memory["total"] == 15274664960 + 20441088 and memory["fits"] is True
    on_cpu = planner._memory(analysis, Topology.named("cpu:8"))
    assert on_cpu["total"] == 1494591488 + 2048 + 20236733952 + 20441088


def test_temporaries_that_share_their_room_say_so() -> None:
    memory = {"arguments": 2**30, "temporaries": 3 * 2**30, "total": 3 * 2**30}
    assert _shown_part(memory, "temporaries") == "3.00 GiB, not all of them at one time"
    assert _shown_part(memory | {"total": 4 * 2**30}, "temporaries") == "3.00 GiB"
    assert _shown_part(memory, "arguments") == "1.00 GiB"


@pytest.mark.parametrize(
    ("memory", "row", "why"),
    [
        (
            TOO_LARGE,
            "18.50 GiB by the compiler's account, of 15.75 GiB: it does NOT fit: 2.75 GiB are missing",
            "a chip needs 18.50 GiB, it has 15.75 GiB, and 2.75 GiB are missing",
        ),
        (
            ARRAY_TOO_LARGE,
            "at least 24.56 GiB by the compiler's account, of 16.00 GiB: it does NOT fit: at least 8.56 GiB",
            "a chip needs at least 24.56 GiB, it has 16.00 GiB, and at least 8.56 GiB are missing",
        ),
    ],
)
def test_what_does_not_fit_is_shown_and_refused(
    memory: dict[str, Any], row: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    program = {"device_kind": "TPU v5 lite", "mesh": {"data": 8}, "compile_seconds": 1.0, "memory": memory}
    unknown = dict.fromkeys(("collectives", "cycles", "kernels", "bytes_accessed")) | {"from_cache": True}
    monkeypatch.setattr(planner, "compiled_elsewhere", lambda recipe, topology, cache: program | unknown)
    argv = ["plan", "nano", "--topology", "v5e:2x4", "--json", tmp_path / "plan.json"]
    assert exit_code(*argv) == 2
    shown = capsys.readouterr()
    assert row in " ".join(shown.out.split())
    assert f"does not fit on v5e:2x4: {why}; lower --batch and raise --accumulate" in shown.err
    assert json.loads((tmp_path / "plan.json").read_text())["memory"] == memory


@pytest.mark.parametrize(
    "argv",
    [
        ["plan", "instruct", "--topology", "cpu:8"],
        ["plan", "nano", "--topology", "tpu"],
        ["plan", "nano", "--topology", "cpu:8", "--price-per-chip-hour", "0"],
    ],
)
def test_what_cannot_be_planned_is_said_at_once(argv: list[str], capsys: Any) -> None:
    error = error_of(capsys, 2, *argv)
    assert any(said in error for said in ("such as nano", "names no slice", "greater than 0"))
