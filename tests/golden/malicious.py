"""Pickles that torch.save never writes, put together opcode by opcode, each with why it is refused.

Nothing here is made with pickle, and nothing needs torch: the bytes written here are the bytes a reader
meets. The pickles would run `exit 3`, ask for memory without end, or lie about sizes. The opcodes are those
that Python's pickletools describes.
"""

import io
import struct
import zipfile

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
VERSION = b"\x80\x02M\xe9\x03."
NUMBERS = 16  # in storage 0, the only one
HOOKS = b"ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def name(module: str, last: str) -> bytes:
    return f"c{module}\n{last}\n".encode()


def storage(kind: str = "FloatStorage", key: str = "0", count: bytes = b"K\x10", more: bytes = b"") -> bytes:
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + count + more + b"tQ"


def tensor(
    offset: bytes = b"K\0",
    shape: bytes = b"K\x10\x85",
    strides: bytes = b"K\x01\x85",
    of: bytes | None = None,
    last: str = "_rebuild_tensor_v2",
    end: bytes = b"\x89" + HOOKS,
) -> bytes:
    of = storage() if of is None else of
    return name("torch._utils", last) + b"(" + of + offset + shape + strides + end + b"tR"


def call(module: str, last: str, *arguments: str) -> bytes:
    return name(module, last) + b"(" + b"".join(map(text, arguments)) + b"tR"


def whole(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


BIG = b"\x8a\x08" + (2**62).to_bytes(8, "little")
DOUBLED = b"]q\0" + b"".join(
    b"](h" + bytes([n]) + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(60)
)
LARGE_KEYS = range(1 << 32, (1 << 32) + 1001)
SYSTEM = b"cos\nsystem\n(X\x06\0\0\0exit 3tR"
# what it does -> (the pickle, why it is refused)
PICKLES: dict[str, tuple[bytes, str]] = {
    "os.system": (whole(SYSTEM), r"asks for os\.system"),
    "posix.system": (whole(call("posix", "system", "exit 3")), r"asks for posix\.system"),
    "builtins.eval": (whole(call("builtins", "eval", "exit(3)")), r"asks for builtins\.eval"),
    "builtins.exec": (whole(call("builtins", "exec", "exit(3)")), r"asks for builtins\.exec"),
    "__builtin__ of Python 2": (whole(call("__builtin__", "eval", "exit(3)")), r"asks for __builtin__\.eval"),
    "subprocess": (whole(call("subprocess", "Popen", "exit 3")), r"asks for subprocess\.Popen"),
    "getattr chain": (
        whole(name("builtins", "getattr") + b"(" + name("os", "path") + text("os") + b"tR"),
        "getattr",
    ),
    "dotted name": (
        whole(call("torch", "serialization.os.system", "exit 3")),
        r"torch\.serialization\.os\.system",
    ),
    "attribute of a known name": (
        whole(name("collections", "OrderedDict.__init__")),
        r"OrderedDict\.__init__",
    ),
    "known name of another module": (whole(name("os", "OrderedDict")), r"asks for os\.OrderedDict"),
    "escapes in a name": (whole(name("o\\x73", "system")), r"asks for o\\x73\.system"),
    "invalid escapes in a name": (whole(name("o\\z", "system")), r"asks for o\\z\.system"),
    "endless name": (whole(b"c" + b"a" * 5000 + b"\nb\n"), "endless name"),
    "name that is not text": (whole(b"c\xff\xfe\nb\n"), "not UTF-8"),
    "torch.load": (whole(call("torch", "load", "/etc/passwd")), r"asks for torch\.load"),
    "torch.hub": (whole(call("torch.hub", "load", "a/b", "c")), r"asks for torch\.hub\.load"),
    "jit": (whole(call("torch.jit", "load", "x")), r"asks for torch\.jit\.load"),
    "old rebuild": (
        whole(tensor(last="_rebuild_tensor", end=b"")),
        r"asks for torch\._utils\._rebuild_tensor;",
    ),
    "storage from bytes": (whole(call("torch.storage", "_load_from_bytes", "x")), "_load_from_bytes"),
    "pickle in a pickle": (whole(call("pickle", "loads", "cos\nsystem\n")), r"asks for pickle\.loads"),
    "numpy's own pickles": (whole(call("numpy", "load", "x")), r"asks for numpy\.load"),
    "numpy scalar": (whole(call("numpy._core.multiarray", "scalar", "x")), r"multiarray\.scalar"),
    "numpy reconstruct": (whole(call("numpy.core.multiarray", "_reconstruct", "x")), "_reconstruct"),
    "STACK_GLOBAL": (
        whole(text("os") + text("system") + b"\x93" + text("exit 3") + b"\x85R"),
        "STACK_GLOBAL",
    ),
    "protocol 4": (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x06exit 3\x85R.", "protocol 2 to 3"),
    "no protocol": (SYSTEM + b".", "protocol 2 to 3"),
    "protocol twice": (whole(b"\x80\x02}"), "PROTO"),
    "INST": (whole(b"(" + text("exit 3") + b"ios\nsystem\n"), "opcode INST"),
    "OBJ": (whole(b"(" + name("collections", "OrderedDict") + text("x") + b"o"), "OBJ"),
    "NEWOBJ": (whole(name("collections", "OrderedDict") + b")\x81"), "opcode NEWOBJ"),
    "NEWOBJ_EX": (whole(name("collections", "OrderedDict") + b")}\x92"), "opcode NEWOBJ_EX"),
    "EXT1": (whole(b"\x82\x01"), "opcode EXT1"),
    "EXT2": (whole(b"\x83\x01\0"), "opcode EXT2"),
    "EXT4": (whole(b"\x84\x01\0\0\0"), "opcode EXT4"),
    "text protocol": (whole(b"I1\n"), "opcode INT"),
    "STRING": (whole(b"S'\\z'\n"), "opcode STRING"),
    "PERSID": (whole(b"Pstorage\n"), "opcode PERSID"),
    "DUP": (whole(b"]2\x86"), "opcode DUP"),
    "POP": (whole(b"N]0"), "opcode POP"),
    "bytes": (whole(b"C\x01a"), "opcode SHORT_BINBYTES"),
    "bytearray of 2^60": (whole(b"\x96" + struct.pack("<Q", 1 << 60)), "opcode BYTEARRAY8"),
    "out-of-band buffer": (whole(b"\x97"), "opcode NEXT_BUFFER"),
    "a set": (whole(b"\x8f"), "opcode EMPTY_SET"),
    "no opcode": (whole(b"\xff"), "opcode 0xff"),
    "frame that lies": (whole(b"\x95" + struct.pack("<Q", 1 << 60) + b"}"), "opcode FRAME"),
    "text of 2^60": (whole(b"\x8d" + struct.pack("<Q", 1 << 60) + b"a"), "opcode BINUNICODE8"),
    "text of 2^32": (whole(b"X\xff\xff\xff\xffa"), "cut short"),
    "text that is not UTF-8": (whole(b"X\x02\0\0\0\xed\xa0"), "not UTF-8"),
    "LONG4 huge": (whole(b"\x8b\xff\xff\xff\x7f1"), "opcode LONG4"),
    "LONG1 cut short": (whole(b"\x8a\xff" + b"\x7f" * 25), "cut short"),
    "number called": (whole(b"\x8a\x0b" + b"\x7f" * 11 + b")R"), "calls an object of type Unread"),
    "a dtype called": (whole(name("torch", "float32") + b")R"), "calls an object of type Unread"),
    "bytes of a list": (whole(name("_codecs", "encode") + b"]R"), "calls an object of type Unread"),
    "MEMOIZE": (whole(b"}\x94"), "opcode MEMOIZE"),
    "SHORT_BINUNICODE": (whole(b"\x8c\x01a"), "opcode SHORT_BINUNICODE"),
    "text called": (whole(text("x") + b")R"), "calls an object of type str"),
    "dict called": (whole(b"})R"), "calls an object of type dict"),
    "storage class called": (whole(name("torch", "FloatStorage") + b")R"), "calls an object"),
    "OrderedDict of items": (
        whole(name("collections", "OrderedDict") + b"]\x85R"),
        r"calls collections\.OrderedDict",
    ),
    "called with a list": (
        whole(name("collections", "OrderedDict") + b"]R"),
        r"calls collections\.OrderedDict",
    ),
    "hooks": (whole(tensor(end=b"\x89" + HOOKS + text("h") + b"Ns")), "_rebuild_tensor_v2"),
    "hooks of another kind": (whole(tensor(end=b"\x89}")), "_rebuild_tensor_v2"),
    "seventh argument": (whole(tensor(end=b"\x89" + HOOKS + b"}")), "_rebuild_tensor_v2"),
    "parameter of a dict": (
        whole(name("torch._utils", "_rebuild_parameter") + b"}\x89" + HOOKS + b"\x87R"),
        "param",
    ),
    "state of a tensor": (whole(tensor() + b"}b"), "sets the attributes"),
    "state of a dict": (whole(b"}}b"), "sets the attributes"),
    "slots": (whole(HOOKS + b"N}" + text("__class__") + b"Ns\x86b"), "sets the attributes"),
    "attribute __class__": (whole(HOOKS + b"}" + text("__class__") + b"Nsb"), "sets the attributes"),
    "doubled lists": (whole(b"(" + DOUBLED + b"t"), "more than 1000000 places"),
    "list in itself": (whole(b"]q\0h\0a"), "nested deeper than 100"),
    "list in itself twice": (whole(b"]q\0(h\0h\0e"), "more than 1000000 places"),
    "dict in itself": (whole(b"}q\0" + text("x") + b"h\0s"), "nested deeper than 100"),
    "long list, often": (
        whole(b"](](" + b"N" * 2000 + b"eq\0" + b"h\0" * 2000 + b"e"),
        "more than 1000000 places",
    ),
    "nested deeply": (whole(b"]" * 200 + b"a" * 199), "nested deeper than 100"),
    "nested deeply in tuples": (whole(b"N" + b"\x85" * 100_000), "nested deeper than 100"),
    "millions of operations": (whole(b"](" + b"N" * 1_000_001 + b"e"), "more than 1000000 operations"),
    "memo from 2^32": (whole(b"}r\xff\xff\xff\xff"), "out of order"),
    "memo overwritten": (whole(b"}q\0]q\0\x86"), "out of order"),
    "memo that is not there": (whole(b"h\x05"), "an object that is not there"),
    "memo of nothing": (whole(b"q\0"), "more from the stack"),
    "stack underflow": (whole(b"N\x86"), "more from the stack"),
    "stack underflow past a mark": (whole(b"N(N\x86"), "more from the stack"),
    "empty stack": (whole(b""), "more from the stack"),
    "no mark": (whole(b"NNt"), "no mark"),
    "leftover stack": (whole(b"NN"), "ends in the middle"),
    "leftover mark": (whole(b"N("), "more from the stack"),
    "mark below the tree": (whole(b"(N"), "ends in the middle"),
    "no end": (b"\x80\x02}", "cut short|opcode PROTO"),
    "appends to a dict": (whole(b"}Na"), "appends to what is no list"),
    "appends to a tuple": (whole(b")Na"), "appends to what is no list"),
    "items of a list": (whole(b"]NNs"), "no dict"),
    "items of a tensor": (whole(tensor() + b"NNs"), "no dict"),
    "odd items": (whole(b"}(Nu"), "no dict"),
    "unhashable key": (whole(b"}]Ns"), "a key that is neither"),
    "list in a key": (whole(b"}]\x85Ns"), "a key that is neither"),
    "tuple in a key": (whole(b"})\x85Ns"), "a key that is neither"),
    "long key": (whole(b"}(" + b"N" * 17 + b"tNs"), "a key that is neither"),
    "many large keys": (
        whole(b"}(" + b"".join(b"\x8a\x05" + n.to_bytes(5, "little") + b"N" for n in LARGE_KEYS) + b"u"),
        "more than 1000 keys",
    ),
    "set as a key": (whole(b"}" + name("builtins", "set") + b"]\x85RNs"), "a key that is neither"),
    "tensor key": (whole(b"}" + tensor() + b"Ns"), "a key that is neither"),
    "key twice": (whole(b"}" + (text("a") + b"Ns") * 2), "key a twice"),
    "class as data": (whole(name("torch", "FloatStorage")), "no data"),
    "function as data": (whole(name("collections", "OrderedDict") + b"\x85"), "no data"),
    "storage as data": (whole(b"]" + storage() + b"a"), "no data"),
    "persistent id of another kind": (whole(b"(" + text("module") + b"NNNtQ"), "other than a storage"),
    "persistent id of text": (whole(text("storage") + b"Q"), "other than a storage"),
    "view of a storage": (
        whole(tensor(of=storage(more=text("1") + b"K\0K\x10\x87"))),
        "other than a storage",
    ),
    "key with a slash": (whole(tensor(of=storage(key="../0"))), "other than a storage"),
    "storage that is not there": (whole(tensor(of=storage(key="7"))), "storage [07] is |list of storages"),
    "storage of truth": (whole(tensor(of=storage(count=b"\x88"))), "other than a storage"),
    "storage of -1": (whole(tensor(of=storage(count=b"J\xff\xff\xff\xff"))), "other than a storage"),
    "storage larger than it is": (whole(tensor(of=storage(count=BIG))), "bytes, not|damaged"),
    "storage of two kinds": (
        whole(b"]" + tensor() + b"a" + tensor(of=storage("LongStorage")) + b"a"),
        "two ways",
    ),
    "storage of unknown kind": (
        whole(tensor(of=storage("ComplexFloatStorage"))),
        r"asks for torch\.ComplexFloat",
    ),
    "tensor past the end": (whole(tensor(offset=b"K\x01")), "outside its storage"),
    "stride past the end": (whole(tensor(strides=b"K\x02\x85")), "outside its storage"),
    "offset of 2^62": (whole(tensor(offset=BIG)), "outside its storage"),
    "offset past an empty tensor": (whole(tensor(offset=BIG, shape=b"K\0\x85")), "outside its storage"),
    "negative offset": (whole(tensor(offset=b"J\xff\xff\xff\xff")), "impossible shape"),
    "negative size": (whole(tensor(shape=b"J\xff\xff\xff\xff\x85")), "impossible shape"),
    "negative stride": (whole(tensor(strides=b"J\xff\xff\xff\xff\x85")), "impossible shape"),
    "shape of truth": (whole(tensor(shape=b"\x88\x85")), "_rebuild_tensor_v2"),
    "shape of floats": (whole(tensor(shape=b"G" + b"\0" * 8 + b"\x85")), "_rebuild_tensor_v2"),
    "shape as a list": (whole(tensor(shape=b"]K\x10a")), "_rebuild_tensor_v2"),
    "fewer strides": (whole(tensor(strides=b")")), "impossible shape"),
    "nine axes": (
        whole(tensor(shape=b"(" + b"K\1" * 9 + b"t", strides=b"(" + b"K\1" * 9 + b"t")),
        "impossible shape",
    ),
    "expanded without end": (
        whole(tensor(shape=b"J\0\0\0\x10\x85", strides=b"K\0\x85")),
        "outside its storage",
    ),
    "expanded": (whole(tensor(shape=b"K\4\x85", strides=b"K\0\x85")), "in several places"),
    "expanded along one axis": (
        whole(tensor(shape=b"K\4K\4\x86", strides=b"K\0K\1\x86")),
        "in several places",
    ),
    "overlapping rows": (whole(tensor(shape=b"K\4K\4\x86", strides=b"K\3K\1\x86")), "in several places"),
    "overflow by product": (
        whole(tensor(shape=BIG + BIG + b"\x86", strides=b"K\0K\0\x86")),
        "larger than any memory",
    ),
    "overflow beside an empty axis": (
        whole(tensor(shape=b"K\0" + BIG + b"\x86", strides=b"K\0K\0\x86")),
        "any memory",
    ),
}


def in_zip(pickle: bytes, *more: tuple[str, bytes], folder: str = "archive") -> bytes:
    """A torch file around a pickle; with storage 0 unless other members are given."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{folder}/data.pkl", pickle)
        for member, content in more or [("data/0", bytes(4 * NUMBERS))]:
            archive.writestr(f"{folder}/{member}", content)
    return file.getvalue()


def in_legacy(pickle: bytes) -> bytes:
    """A file of the format before torch 1.6 around a pickle, with storage 0."""
    machine = whole(b"}" + text("little_endian") + b"\x88s")
    keys = whole(b"]" + text("0") + b"a")
    return MAGIC + VERSION + machine + pickle + keys + struct.pack("<q", NUMBERS) + bytes(4 * NUMBERS)
