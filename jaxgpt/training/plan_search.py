"""A search for the fastest way to compute a recipe's training step on a slice: only what fits is of use.

What is learned stays the same: the model, the optimizer, and the sequences of a step. The search climbs from
one setting to a better one. What needs more memory than something that does not fit is passed over.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, get_args

from jaxgpt.config import Keeps, TrainConfig, with_settings
from jaxgpt.errors import ConfigError
from jaxgpt.training.flops import count_parameters
from jaxgpt.training.topology import CHIPS, Topology

FSDP = 8  # chips that share the parameters, where more of them hold whole copies
TENSOR = 2  # chips that share each matrix product
CHUNK = 128  # positions whose logits are computed at a time, where the recipe says no number
KEEPS: tuple[Keeps, ...] = get_args(Keeps)  # from the least memory to the most


class Setting(NamedTuple):
    """How a training step is computed."""

    mesh: tuple[int, int, int]
    """Chips along data, fsdp and tensor."""
    batch: int
    accumulate: int
    keeps: Keeps
    chunk: int

    @classmethod
    def of(cls, recipe: TrainConfig, topology: Topology) -> "Setting":
        """That of a recipe. Raises ConfigError where its mesh has another number of chips."""
        from jaxgpt.training.state import kept_on

        mesh = recipe.mesh.over(topology.size)
        sizes = mesh.data, mesh.fsdp, mesh.tensor
        kept = kept_on("tpu" if topology.chip in CHIPS else None, recipe.backward_keeps)
        return cls(sizes, recipe.batch, recipe.accumulate, kept, recipe.loss_chunk)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a recipe, by their dotted names."""
        names = "mesh.data", "mesh.fsdp", "mesh.tensor", "batch", "accumulate", "backward_keeps", "loss_chunk"
        return dict(zip(names, (*self.mesh, *self[1:]), strict=True))

    def applied(self, recipe: TrainConfig) -> TrainConfig:
        """The recipe, computed so."""
        return with_settings(recipe, self.settings)

    def needs_no_less_than(self, other: "Setting") -> bool:
        """Whether a chip certainly needs as much memory as for another setting.

        A step of several micro-batches keeps the sum of their gradients besides; only like is compared.
        """
        return (
            self.mesh == other.mesh
            and self.batch >= other.batch
            and KEEPS.index(self.keeps) >= KEEPS.index(other.keeps)
            and self.chunk in (0, other.chunk)
            and (self.accumulate > 1 or other.accumulate == 1)
        )


class Trial(NamedTuple):
    """A setting, and what is known of it."""

    setting: Setting
    figures: dict[str, Any]
    """What `plan` says; `error`, where that could not be compiled; nothing, where it was passed over."""

    @property
    def rank(self) -> tuple[float, ...]:
        """Lower is better: first what fits, by time, and by memory where times are equal or unknown."""
        if not self.figures:
            return 3.0, self.setting.batch
        if "error" in self.figures:
            return (2.0,)
        memory = self.figures["memory"]
        if memory["fits"] is False:
            return 1.0, memory["missing"]
        seconds, cycles = self.figures["step_seconds"] or 0.0, self.figures["cycles"] or 0.0
        return 0.0, seconds, cycles, memory["total"], self.figures["sent_per_chip"]

    @property
    def lacks_memory(self) -> bool:
        """Whether it was compiled, and a chip has too little memory."""
        return self.rank[0] == 1.0


class Space(NamedTuple):
    """The settings that a search may come to."""

    recipe: TrainConfig
    topology: Topology

    @property
    def start(self) -> Setting:
        """The recipe's own setting, or the nearest one that suits the slice.

        Raises ConfigError where there is none.
        """
        own = Setting.of(self.recipe, self.topology)
        nearest = [*self._fitted(own, [own.mesh]), *self.meshes(own)]
        if not nearest:
            raise ConfigError(
                f"batch x accumulate = {self.recipe.sequences}",
                why=f"so many sequences do not divide over the {self.topology.size} chips of {self.topology}",
                fix=f"give a multiple of {self.topology.size}",
            )
        return nearest[0]

    def ways(self, at: Setting) -> Iterator[Setting]:
        """What else the backward pass may find kept, and how many logits there are at a time."""
        chunks = [self.recipe.loss_chunk or CHUNK, 0]
        for keeps, chunk in itertools.product(KEEPS, chunks):
            if chunk < self.recipe.model.context:
                yield at._replace(keeps=keeps, chunk=chunk)

    def meshes(self, at: Setting) -> Iterator[Setting]:
        """Whole copies, shards, both, and shared products; with the batch, or the next one that divides."""
        chips, own = self.topology.size, Setting.of(self.recipe, self.topology).mesh
        found = [own, (chips, 1, 1), (1, chips, 1)]
        if chips > FSDP and chips % FSDP == 0:
            found.append((chips // FSDP, FSDP, 1))
        if chips % TENSOR == 0 and self.recipe.model.heads % TENSOR == 0:
            found.append((1, chips // TENSOR, TENSOR))
        yield from self._fitted(at, found)

    def larger(self, at: Setting) -> Iterator[Setting]:
        """The same step in fewer, larger micro-batches."""
        return (self._of(at, batch) for batch in self._batches(at.mesh) if batch > at.batch)

    def smaller(self, at: Setting) -> Iterator[Setting]:
        """The same step in more, smaller micro-batches."""
        return (self._of(at, batch) for batch in reversed(self._batches(at.mesh)) if batch < at.batch)

    def has_room(self, setting: Setting) -> bool:
        """Whether a chip can hold at least its share of the parameters and of Adam's moments."""
        arrays = 4 if self.recipe.optim.ema_decay else 3
        _, fsdp, tensor = setting.mesh
        share = 4 * arrays * count_parameters(self.recipe.model) / (fsdp * tensor)
        return self.topology.facts is None or share <= self.topology.facts.memory

    def _of(self, at: Setting, batch: int) -> Setting:
        return at._replace(batch=batch, accumulate=self.recipe.sequences // batch)

    def _fitted(self, at: Setting, meshes: Iterable[tuple[int, int, int]]) -> Iterator[Setting]:
        for mesh in meshes:
            if batches := self._batches(mesh):
                batch = min((each for each in batches if each >= at.batch), default=batches[-1])
                yield self._of(at._replace(mesh=mesh), batch)

    def _batches(self, mesh: tuple[int, int, int]) -> list[int]:
        """The micro-batches that a step divides into: the recipe's own, and powers of two a chip."""
        sequences, rows = self.recipe.sequences, mesh[0] * mesh[1]
        powers = {rows << power for power in range((sequences // rows).bit_length())}
        return sorted(b for b in powers | {self.recipe.batch} if sequences % b == 0 and b % rows == 0)


def search(space: Space, measure: Callable[[Setting], dict[str, Any]]) -> list[Trial]:
    """What was tried, the best one first, and what was passed over behind it.

    From the best one so far the search looks at everything else that its mesh can do, and then at the other
    meshes, each time with the micro-batch that suits best; until nothing is better. `measure` gives the
    figures of a setting. What certainly does not fit is not measured.
    """
    known: dict[Setting, Trial] = {}

    def look(setting: Setting) -> Trial:
        if setting not in known:
            hopeless = _hopeless(setting, space, known.values())
            known[setting] = Trial(setting, {} if hopeless else measure(setting))
        return known[setting]

    best = _climb(space.start, space, look)
    while True:
        before = best
        for others in (space.ways, space.meshes):
            found = [_climb(setting, space, look) for setting in others(best.setting)]
            best = min([best, *found], key=lambda trial: trial.rank)
        if best == before:
            return sorted(known.values(), key=lambda trial: trial.rank)


def _climb(setting: Setting, space: Space, look: Callable[[Setting], Trial]) -> Trial:
    """The best micro-batch for a setting: the largest up to which each was better than the one before.

    Where none is, the smallest.
    """
    start = at = look(setting)
    for others in (space.larger, space.smaller):
        for other in others(start.setting):
            if (found := look(other)).rank >= at.rank:
                break
            at = found
        if at is not start:
            break
    return at


def _hopeless(setting: Setting, space: Space, known: Iterable[Trial]) -> bool:
    """Whether a setting certainly does not fit: its state alone, or as one that needs no more did not."""
    short = (trial.setting for trial in known if trial.lacks_memory)
    return not space.has_room(setting) or any(setting.needs_no_less_than(other) for other in short)
