"""The pickle of a torch file, read by a closed grammar and never unpickled.

A pickle is a program that may call anything. This reader knows only the opcodes with which torch.save writes
nested dicts, lists and tuples of numbers, strings and tensors. The few functions that such a pickle names are
only markers here, so nothing is imported or called. What torch's own safe loader builds beside that (sets,
bytes, devices, ...) is not built: an `Unread` stands in its place. Everything else is refused by name. A
container may be used several times, but the whole tree has a bounded number of places and a bounded depth, so
that nothing can contain itself or stand for exponentially many copies.

Source: Python's pickletools (the opcodes); pytorch/pytorch, torch/serialization.py and torch/_utils.py.
"""

import enum
import pickletools
import re
import struct
from collections import OrderedDict
from typing import Any, NamedTuple, NoReturn

import numpy as np

from jaxgpt.weights.formats.torch_storage import STORAGE_CLASSES, Storage, Storages, refused, shown
from jaxgpt.weights.tensors import Tensor

LARGEST_PICKLE = 1 << 24  # bytes; that of GPT-2 XL with its optimizer state is far smaller
MOST_OPERATIONS = 1_000_000
DEEPEST = 100
LATEST = 3  # torch.save writes protocol 2; torch.load too refuses 4 unless it may execute anything
LATER = frozenset(("FRAME", "MEMOIZE", "SHORT_BINUNICODE"))  # what protocol 4 writes plain data with, besides
LONGEST_INTEGER = 10  # bytes; the magic number of torch's older format has that many
LARGEST_KEY = 1 << 31  # in a dict whose keys are integers, such as an optimizer's
MOST_OTHER_KEYS = 1000  # of other kinds in a file: a great many can be chosen so that a dict becomes slow
LONGEST_KEY = 16  # items of a tuple that is a key
STORAGE_KEY = re.compile(r"[0-9]{1,20}", re.ASCII)

NAMES = {opcode.code.encode("latin-1"): opcode.name for opcode in pickletools.opcodes}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class Unread(NamedTuple):
    """Something that a file holds and that no model needs, by its name: it was not built."""

    name: str


class _Call(enum.Enum):
    """What a pickle may call. Such a value lies on the stack in place of the function."""

    ORDERED_DICT = "collections.OrderedDict"
    TENSOR = "torch._utils._rebuild_tensor_v2"
    PARAMETER = "torch._utils._rebuild_parameter"


# What torch.load(weights_only=True) may call, too, by the names that protocol 2 has for them.
_BUILT_IN = ("set", "bytearray", "complex")
_UNREAD = (
    "collections.Counter",
    "torch.Size",
    "torch.device",
    "torch.serialization._get_layout",
    "_codecs.encode",  # how protocol 2 writes bytes
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILT_IN),
)
_DTYPE = re.compile(r"torch\.(bool|b?float\d+\w*|complex\d+|q?u?int\d+(x\d+)?)", re.ASCII)
_GLOBALS: dict[str, _Call | np.dtype | Unread] = {call.value: call for call in _Call}
_GLOBALS |= {f"torch.{name}": dtype for name, dtype in STORAGE_CLASSES.items()}
_GLOBALS |= {name: Unread(name) for name in _UNREAD}


def read_pickle(content: bytes, start: int, storages: Storages, *, latest: int = LATEST) -> tuple[Any, int]:
    """Return the tree of the pickle that begins at `start`, and the place where the pickle ends.

    `latest` is the latest protocol that it may have, up to 5, of which only the plain data is understood.

    The tensors of the tree are views of `storages`, to which the storages that the pickle names are added.
    Raises DataError for anything outside the grammar.
    """
    machine = _Machine(content, start, storages, latest)
    return machine.run(), machine.at


class _Machine:
    """A stack, its marks, and the memo: the objects that the pickle may use again, in order."""

    def __init__(self, content: bytes, start: int, storages: Storages, latest: int) -> None:
        self.latest, self.protocol, self.other_keys = latest, 0, 0
        self.content, self.at, self.storages = content, start, storages
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []

    def run(self) -> Any:
        if self._opcode() == "PROTO":
            self.protocol = self._unsigned(1)
        if not 2 <= self.protocol <= self.latest:
            self._refuse(f"it has no pickle of protocol 2 to {self.latest}")
        for _ in range(MOST_OPERATIONS):
            if (opcode := self._opcode()) == "STOP":
                break
            self._step(opcode)
        else:
            self._refuse(f"its pickle has more than {MOST_OPERATIONS} operations")
        [tree] = self._popped(1)
        if self.stack or self.marks:
            self._refuse("its pickle ends in the middle")
        self._check_tree(tree)
        return tree

    def _step(self, opcode: str) -> None:
        push = self.stack.append
        if opcode in LATER and self.protocol < 4:
            self._refuse(f"its pickle asks for opcode {opcode}")
        match opcode:
            case "MARK":
                self.marks.append(len(self.stack))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                push(CONSTANTS[opcode])
            case "BININT1" | "BININT2":
                push(self._unsigned(int(opcode[-1])))
            case "BININT":
                push(int.from_bytes(self._bytes(4), "little", signed=True))
            case "LONG1":
                push(self._long())
            case "BINFLOAT":
                push(struct.unpack(">d", self._bytes(8))[0])
            case "BINUNICODE":
                push(self._text(self._bytes(self._unsigned(4))))
            case "SHORT_BINUNICODE":
                push(self._text(self._bytes(self._unsigned(1))))
            case "FRAME":
                self._bytes(8)  # how much may be read at a time; all is in memory here
            case "MEMOIZE":
                self.memo.append(self._top())
            case "EMPTY_DICT":
                push({})
            case "EMPTY_LIST":
                push([])
            case "EMPTY_TUPLE":
                push(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(self._popped(int(opcode[-1]))))
            case "TUPLE":
                push(tuple(self._popped_to_mark()))
            case "APPEND":
                self._extend(self._popped(1))
            case "APPENDS":
                self._extend(self._popped_to_mark())
            case "SETITEM":
                self._set_items(self._popped(2))
            case "SETITEMS":
                self._set_items(self._popped_to_mark())
            case "BINPUT" | "LONG_BINPUT":
                self._remember(self._unsigned(1 if opcode == "BINPUT" else 4))
            case "BINGET" | "LONG_BINGET":
                push(self._recalled(self._unsigned(1 if opcode == "BINGET" else 4)))
            case "GLOBAL":
                push(self._global())
            case "BINPERSID":
                push(self._storage(*self._popped(1)))
            case "REDUCE":
                push(self._called(*self._popped(2)))
            case "BUILD":
                self._build(*self._popped(1))
            case _:
                self._refuse(f"its pickle asks for opcode {opcode}")

    # --- the bytes

    def _bytes(self, count: int) -> bytes:
        if count > len(self.content) - self.at:
            self._refuse("its pickle is cut short, or larger than any we read")
        self.at += count
        return self.content[self.at - count : self.at]

    def _opcode(self) -> str:
        return NAMES.get(code := self._bytes(1), f"{code[0]:#x}")

    def _unsigned(self, size: int) -> int:
        return int.from_bytes(self._bytes(size), "little")

    def _long(self) -> int | Unread:
        if (size := self._unsigned(1)) > LONGEST_INTEGER:
            self._bytes(size)
            return Unread(f"an integer of {size} bytes")
        return int.from_bytes(self._bytes(size), "little", signed=True)

    def _text(self, content: bytes) -> str:
        try:
            return str(content, "utf-8")
        except UnicodeDecodeError:
            self._refuse("its pickle holds text that is not UTF-8")

    def _line(self) -> str:
        end = self.content.find(b"\n", self.at, self.at + 200)
        if end < 0:
            self._refuse("its pickle asks for something with an endless name")
        return self._text(self._bytes(end + 1 - self.at)[:-1])

    # --- the stack and the memo

    def _popped(self, count: int) -> list[Any]:
        start = len(self.stack) - count
        if start < (self.marks[-1] if self.marks else 0):
            self._refuse("its pickle takes more from the stack than there is")
        taken, self.stack[start:] = self.stack[start:], []
        return taken

    def _popped_to_mark(self) -> list[Any]:
        if not self.marks:
            self._refuse("its pickle has no mark where it needs one")
        start = self.marks.pop()
        taken, self.stack[start:] = self.stack[start:], []
        return taken

    def _top(self) -> Any:
        [top] = self._popped(1)
        self.stack.append(top)
        return top

    def _remember(self, index: int) -> None:
        if index != len(self.memo):
            self._refuse("its pickle numbers its objects out of order")
        self.memo.append(self._top())

    def _recalled(self, index: int) -> Any:
        if index >= len(self.memo):
            self._refuse("its pickle refers to an object that is not there")
        return self.memo[index]

    # --- what it builds

    def _extend(self, items: list[Any]) -> None:
        if type(target := self._top()) is not list:
            self._refuse("its pickle appends to what is no list")
        target += items

    def _set_items(self, items: list[Any]) -> None:
        if not isinstance(target := self._top(), dict) or len(items) % 2:
            self._refuse("its pickle sets items of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str and not (type(key) is int and 0 <= key < LARGEST_KEY):
                self._count_other_key(key)
            if key in target:
                self._refuse(f"a dict has the key {shown(str(key))} twice")
            target[key] = value

    def _count_other_key(self, key: Any) -> None:
        parts = key if type(key) is tuple else (key,)
        self.other_keys += 1
        if len(parts) > LONGEST_KEY or not all(isinstance(part, str | float | int | None) for part in parts):
            self._refuse("a dict has a key that is neither text, a number, nor a short tuple of these")
        if self.other_keys > MOST_OTHER_KEYS:
            self._refuse(f"it has more than {MOST_OTHER_KEYS} keys that are neither text nor from 0 up")

    def _global(self) -> _Call | np.dtype | Unread:
        name = f"{self._line()}.{self._line()}"
        if _DTYPE.fullmatch(name):
            return Unread(name)
        if name not in _GLOBALS:
            self._refuse(f"its pickle asks for {shown(name)}")
        return _GLOBALS[name]

    def _storage(self, identity: Any) -> Storage:
        """Return the storage that a tuple ("storage", class, key, device, number of elements) names.

        Before torch 1.6 the tuple ends in None, which says that the storage is not a view of another.
        """
        match identity:
            case ("storage", np.dtype() as dtype, str(key), str(), int(count), *rest) if rest in ([], [None]):
                if (
                    type(identity) is tuple
                    and type(count) is int
                    and count >= 0
                    and STORAGE_KEY.fullmatch(key)
                ):
                    return self.storages.name(key, dtype, count)
        return self._refuse("its pickle refers to something other than a storage")

    def _called(self, call: Any, arguments: Any) -> Any:
        match call, arguments if type(arguments) is tuple else None:
            case _Call.ORDERED_DICT, ():
                return OrderedDict()
            case _Call.TENSOR, (Storage() as storage, offset, tuple(shape), tuple(strides), bool(), hooks):
                sizes = (offset, *shape, *strides)
                if _is_no_hook(hooks) and all(type(size) is int for size in sizes):
                    return self.storages.tensor(storage, offset, shape, strides)
            case Unread(name), tuple() if name in _GLOBALS:
                return call
            case _Call.PARAMETER, (Tensor() as tensor, bool(), hooks) if _is_no_hook(hooks):
                return tensor
        name = call.value if isinstance(call, _Call) else f"an object of type {type(call).__name__}"
        return self._refuse(f"its pickle calls {name} with what torch.save never writes")

    def _build(self, state: Any) -> None:
        """Ignore the attributes of an OrderedDict, where torch keeps the versions of a model's modules."""
        if type(self._top()) is not OrderedDict or type(state) is not dict or state.keys() != {"_metadata"}:
            self._refuse("its pickle sets the attributes of an object")

    def _check_tree(self, tree: Any) -> None:
        """Refuse a tree that holds anything but data, or too much of it.

        A container counts as often as it occurs, so that one that holds itself has no end.
        """
        level, places = [tree], 0
        for _ in range(DEEPEST):
            below: list[Any] = []
            for node in level:
                if isinstance(node, dict):
                    below += node.values()
                elif type(node) in (list, tuple):
                    below += node
                elif not isinstance(node, str | float | int | Tensor | Unread | None):
                    self._refuse("its pickle leaves something that is no data on its stack")
                if places + len(below) > MOST_OPERATIONS:
                    self._refuse(f"its data has more than {MOST_OPERATIONS} places")
            places += len(below)
            if not below:
                return
            level = below
        self._refuse(f"its data is nested deeper than {DEEPEST}")

    def _refuse(self, why: str) -> NoReturn:
        raise refused(self.storages.path, why)


def _is_no_hook(hooks: Any) -> bool:
    return type(hooks) is OrderedDict and not hooks
