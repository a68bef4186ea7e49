"""Reads a compiled program: what devices send one another in a run of it, and the compiler's own estimate.

A program is a text of computations. A loop calls the computation of its body as often as it turns, and what
stands there counts so often here.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) .*\{$")
_CALLED = re.compile(
    r"\b(body|condition|to_apply|calls|branch_computations|called_computations)=(?:\{([^{}]*)\}|([\w.%\-]+))"
)
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LOOP = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_NAME = re.compile(r"%([\w.\-]+)")
_CONSTANT = re.compile(r"%([\w.\-]+) = [su]32\[\]\S* constant\((\d+)\)")
_COLLECTIVE = re.compile(
    r"= (?P<result>.*?) "
    r"(?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?P<start>-start)?\("
)
_ARRAY = re.compile(r"\b(pred|bf16|[sufc]\d+)\[([\d,]*)\]")
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}")
_COUNTED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_BY_AXES = re.compile(
    r"replica_groups=mesh\[(?P<sizes>[^\]]*)\]"
    r"(?:, device_ids=\((?:\[(?P<over>[\d,]+)\](?:T\((?P<order>[\d,]+)\))?|(?P<ids>[\d,]+))\))?"
    r" \{(?P<taken>[^}]*)\}"
)
# A fusion of this name reduces an array of which a device then takes its part: it need not send the rest.
_REDUCES_TO_PARTS = "all-reduce-scatter"
_KERNEL = 'custom_call_target="tpu_custom_call"'
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# A part of a collective that runs beside several fusions. Each part names the whole of it, by its channel.
_PART = re.compile(r"channel_id=(\d+),.*\bchain_id=")
_BYTES = {"pred": 1, "bf16": 2, "f16": 2}  # of other types, the number in their names says it


class Collective(NamedTuple):
    """Collectives of one kind over the same axes of the mesh, in one run of a program."""

    kind: str
    """all-reduce, all-gather, reduce-scatter, all-to-all or collective-permute."""
    axes: str
    """The axes of the mesh over which devices exchange: `data`, or `data x fsdp`."""
    number: int
    sent: float
    """Bytes that a device sends, in a ring of those that take part. It gets as many.

    Of an array of b bytes and n devices these are b (n - 1) / n to gather or to scatter it, and twice that to
    reduce it to a whole one on every device.
    """


def collectives(program: str, mesh: Mesh) -> list[Collective]:
    """What a device of the mesh exchanges in a run of a compiled program, the largest first."""
    counts: dict[tuple[str, str], int] = defaultdict(int)
    sent: dict[tuple[str, str], float] = defaultdict(float)
    begun: set[str] = set()
    for line, times, name in _executed(program):
        if (found := _COLLECTIVE.search(line)) is None:
            continue
        if part := _PART.search(line):
            if part[1] in begun:
                continue
            begun.add(part[1])
        devices = _groups(line, mesh.size)
        if devices.shape[1] > 1:
            in_parts = name.startswith(_REDUCES_TO_PARTS)
            key = "reduce-scatter" if in_parts else found["kind"], _axes(devices, mesh)
            counts[key] += times
            sent[key] += times * _sent(found, devices.shape[1]) / (2 if in_parts else 1)
    each = [Collective(*key, counts[key], sent[key]) for key in counts]
    return sorted(each, key=lambda collective: -collective.sent)


def estimated_cycles(program: str) -> int | None:
    """The clock cycles of a run, added up from the TPU compiler's estimates; None where it gives none."""
    cycles = [
        times * int(found[1]) for line, times, _ in _executed(program) for found in _CYCLES.finditer(line)
    ]
    return sum(cycles) if cycles else None


def kernels(program: str) -> int:
    """How many kernels a run calls. The compiler gives no estimate of their cycles."""
    return sum(times for line, times, _ in _executed(program) if _KERNEL in line)


def _executed(program: str) -> Iterator[tuple[str, int, str]]:
    """Each line of the computations, how often it is executed, and the name of its computation."""
    lines: dict[str, list[str]] = {}
    times: dict[str, int] = defaultdict(int)
    name = ""
    for line in program.splitlines():
        if found := _COMPUTATION.match(line):
            name = found["name"]
            lines[name] = []
            times[name] = 1 if found["entry"] else 0
        elif name:
            lines[name].append(line)
    for name in reversed(lines):  # what is called stands before what calls it
        for line in lines[name]:
            yield line, times[name], name
            turns = _turns(line, lines)
            for how, several, one in _CALLED.findall(line):
                for each in (several or one).split(","):
                    times[each.strip().lstrip("%")] += times[name] * (turns if how == "body" else 1)


def _turns(line: str, computations: dict[str, list[str]]) -> int:
    """How often a loop turns: once where neither it nor its condition, `i < N`, says a number.

    Where its body has several turns of the loop that it was made from, it adds as many to `i`.
    """
    if found := _TURNS.search(line):
        return int(found[1])
    if (loop := _LOOP.search(line)) is None:
        return 1
    condition, body = ("\n".join(computations.get(name, ())) for name in loop.groups())
    limits = _CONSTANT.findall(condition)
    if len(limits) != 1 or "direction=LT" not in condition:
        return 1
    counters = re.findall(r" get-tuple-element\(.*\), index=(\d+)", condition)
    step = _step(body, int(counters[0])) if len(counters) == 1 else 1
    return math.ceil(int(limits[0][1]) / step)


def _step(body: str, place: int) -> int:
    """What the body of a loop adds to the number at this place of its state; 1 where it does not say."""
    state = re.search(r"ROOT .* tuple\(([^()]*)\)", body)
    names = _NAME.findall(state[1]) if state else []
    if place >= len(names):
        return 1
    added = re.search(rf"%{re.escape(names[place])} = [su]32\[\]\S* add\(([^()]*)\)", body)
    constants = dict(_CONSTANT.findall(body))
    steps = [int(constants[name]) for name in _NAME.findall(added[1] if added else "") if name in constants]
    return steps[0] if len(steps) == 1 and steps[0] > 0 else 1


def _groups(line: str, size: int) -> np.ndarray:
    """The devices of each group that exchanges, [groups, devices in each]."""
    if found := _COUNTED.search(line):
        shape, over, order = found.groups()
        return _counted(over, order).reshape(-1, int(shape.split(",")[-1]))
    if found := _LISTED.search(line):
        groups = [group.split(",") for group in re.findall(r"\{([\d,]+)\}", found[1])]
        return np.array(groups, int)
    if found := _BY_AXES.search(line):
        ids = _counted(found["over"] or str(size), found["order"])
        if found["ids"]:
            ids = np.array(found["ids"].split(","), int)
        return _along(found["sizes"], found["taken"], ids)
    if "replica_groups={}" in line:
        return np.arange(size)[None]
    raise ValueError(f"groups of devices in a form that is not known: {line.strip()[:200]}")


def _counted(over: str, order: str | None) -> np.ndarray:
    """The numbers of `[2,4]T(1,0)`: 0 to 7 as an array of this shape, its axes in another order."""
    ids = np.arange(math.prod(map(int, over.split(",")))).reshape(tuple(map(int, over.split(","))))
    return ids.transpose(tuple(map(int, order.split(",")))) if order else ids


def _along(sizes: str, taken: str, ids: np.ndarray) -> np.ndarray:
    """The groups of `mesh['axis_0'=4,'axis_1'=2] {'axis_1'}`: devices that differ along the axes taken.

    Of an axis, a factor may be taken alone: `'axis_0':(2)2` is the one of size 2 behind another of size 2.
    """
    factors = {name: [int(size)] for name, size in re.findall(r"'(\w+)'=(\d+)", sizes)}
    chosen = []
    for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", taken):
        if size:
            whole, first, middle = math.prod(factors[name]), int(before), int(size)
            factors[name] = [first, middle, whole // first // middle]
        chosen.append((name, 1 if size else 0))
    order = [(name, at) for name, parts in factors.items() for at in range(len(parts))]
    shape = [factors[name][at] for name, at in order]
    last = [order.index(place) for place in chosen]
    rest = [at for at in range(len(shape)) if at not in last]
    return ids.reshape(shape).transpose(rest + last).reshape(-1, math.prod(shape[at] for at in last))


def _axes(devices: np.ndarray, mesh: Mesh) -> str:
    """The axes of the mesh along which the devices of a group differ."""
    places = np.unravel_index(devices, mesh.devices.shape)
    names = [name for name, at in zip(mesh.axis_names, places, strict=True) if (at != at[:, :1]).any()]
    return " x ".join(names)


def _sent(found: re.Match[str], devices: int) -> float:
    """Bytes that a device sends in one collective."""
    arrays = [_bytes(*array) for array in _ARRAY.findall(found["result"])]
    if found["start"] and found["kind"] != "all-reduce":  # the operands stand before the results
        arrays = [size for size in arrays if size > 4]
        arrays = arrays[len(arrays) // 2 :]
    size, others = sum(arrays), devices - 1
    match found["kind"]:
        case "all-reduce":
            return 2 * size * others / devices
        case "reduce-scatter":
            return size * others  # the result is a part of what was there
        case "collective-permute":
            return size
        case _:
            return size * others / devices


def _bytes(dtype: str, shape: str) -> int:
    width = _BYTES.get(dtype) or int(re.sub(r"\D", "", dtype)) // 8
    return width * math.prod(int(size) for size in shape.split(",") if size)
