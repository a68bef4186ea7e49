"""Damages weight files at random. Reading one must end in an error of jaxgpt or give the original model.

    python tools/fuzz_weights.py                        25,000 files: safetensors, torch and TensorFlow
    python tools/fuzz_weights.py --share 0.1 --seed 7   a tenth as many, and other ones

In half of the torch and TensorFlow files the checksums are corrected after the damage, so that the parsers
that run after the checksums are tested, too. Safetensors have no checksums: there, only the header and the
length are damaged. An audit hook watches for execution, imports and writes, and memory is limited. If a file
breaks a rule, its seed is printed and the exit code is 1.
"""

import io
import random
import resource
import shutil
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import tyro

from jaxgpt.errors import JaxgptError
from jaxgpt.weights.convert import write_model
from jaxgpt.weights.open import open_model

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
FORBIDDEN = (
    "exec",
    "compile",
    "import",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.remove",
    "subprocess.Popen",
    "pickle.find_class",
    "ctypes.dlopen",
    "socket.connect",
    "shutil.rmtree",
)
HEADROOM = 1 << 30  # reading may use this many bytes more than are in use at the beginning


@dataclass(frozen=True, kw_only=True)
class Fuzz:
    """Damage weight files at random. Reading one must end in an error or give the original model."""

    share: float = 1.0
    """Share of the 10,000 safetensors, 10,000 torch and 5,000 TensorFlow files to damage."""
    seed: int = 0
    """Starting point of the random numbers. The n-th file of a kind depends on the seed, the kind and n."""
    kinds: tuple[Literal["safetensors", "torch", "tensorflow"], ...] = ("safetensors", "torch", "tensorflow")
    """Kinds of files to damage."""


def damage(content: bytes, rng: random.Random, stop: int | None = None) -> bytes:
    """Make one to four changes before `stop`: to bits, bytes or numbers, or by cutting or copying pieces."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        end = min(len(data), stop or len(data))
        if not end:
            break
        at = rng.randrange(end)
        size = min(rng.choice((1, 2, 4, 8, 16)), end - at)
        match rng.randrange(7):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                data[at : at + size] = rng.choice((b"\xff", b"\0", b"\x7f", b"9")) * size
            case 3:
                del data[at : at + size]
            case 4:
                data[at:at] = data[at : at + size]
            case 5:
                other = rng.randrange(end)
                data[at : at + size] = data[other : other + size]
            case 6:
                data[at:at] = rng.randbytes(size)
    if stop is None and rng.random() < 0.1:
        del data[rng.randrange(len(data) + 1) :]
    return bytes(data)


def damaged_safetensors(folder: Path, rng: random.Random) -> None:
    """Damage the header or the length of a safetensors file."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    head = damage(content[:header], rng, stop=header)
    # Without a corrected length, most files would be refused for their length alone.
    if rng.random() < 0.5 and len(head) >= 8:
        head = (len(head) - 8).to_bytes(8, "little") + head[8:]
    body = content[header:]
    file.write_bytes(head + (body if rng.random() < 0.9 else body[: rng.randrange(len(body))]))


def damaged_torch(folder: Path, rng: random.Random) -> None:
    """Damage a torch file: its bytes, or one of the files that are zipped in it."""
    file = folder / "pytorch_model.bin"
    content = file.read_bytes()
    if rng.random() < 0.5:
        file.write_bytes(damage(content, rng))
        return
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(file, "w") as target:
        names = archive.namelist()
        chosen = next(n for n in names if n.endswith("data.pkl")) if rng.random() < 0.8 else rng.choice(names)
        for name in names:
            data = archive.read(name)
            # The new zip has correct checksums, so nothing would notice changed numbers. They are left alone.
            broken = name == chosen and not _is_storage(name)
            target.writestr(
                name if rng.random() < 0.99 else name + "x", damage(data, rng) if broken else data
            )


def _is_storage(name: str) -> bool:
    return "/data/" in name


def damaged_tensorflow(folder: Path, rng: random.Random) -> None:
    """Damage a TensorFlow checkpoint: its data, or its index with or without corrected checksums."""
    index = folder / "model.ckpt.index"
    data = folder / "model.ckpt.data-00000-of-00001"
    match rng.randrange(4):
        case 0:
            data.write_bytes(damage(data.read_bytes(), rng))
        case 1:
            index.write_bytes(damage(index.read_bytes(), rng))
        case _:
            index.write_bytes(with_checksums(damage(index.read_bytes(), rng)))


def with_checksums(index: bytes) -> bytes:
    """Return the index with the correct checksum in every block that can be found from the footer."""
    data = bytearray(index)
    for offset, size in _blocks(data):
        if offset >= 0 and offset + size + 5 <= len(data):
            crc = google_crc32c.value(bytes(data[offset : offset + size + 1]))
            masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
            data[offset + size + 1 : offset + size + 5] = masked.to_bytes(4, "little")
    return bytes(data)


def _blocks(data: bytearray) -> Iterator[tuple[int, int]]:
    """Yield the blocks that the footer points to, and the data block, which comes first in a small file."""
    place, handles = max(0, len(data) - 48), []
    for _ in range(4):
        number, shift = 0, 0
        while place < len(data) and shift < 70:
            byte = data[place]
            place, number, shift = place + 1, number | (byte & 127) << shift, shift + 7
            if byte < 128:
                break
        handles.append(number)
    yield handles[0], handles[1]
    yield handles[2], handles[3]
    yield 0, handles[0] - 5  # the data block ends where the metaindex block begins


def contents(folder: Path) -> dict[str, Any]:
    """Return all of a model. A reader that gives anything else than this for a damaged file was deceived."""
    model = open_model(folder)
    return {
        name: (tensor.shape, str(tensor.dtype), tensor.read().tobytes())
        for name, tensor in model.tensors.items()
    }


class Watch:
    """An audit hook, which records what must not happen while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if writes or event.startswith(FORBIDDEN):
            self.seen.append(f"{event} {str(arguments)[:200]}")


def check(folder: Path, original: dict[str, Any], watch: Watch) -> tuple[str, str | None]:
    """Read a damaged model. Return how that ended, and which rule it broke, if any."""
    watch.seen.clear()
    watch.on = True
    try:
        same = contents(folder) == original
        ended, broken = "read", None if same else "another model than the original was read"
    except JaxgptError:
        ended, broken = "refused", None
    except BaseException as error:  # noqa: BLE001  Whatever else a reader raises is what this tool looks for.
        ended, broken = "broken", repr(error)[:300]
    finally:
        watch.on = False
    return ended, watch.seen[0] if watch.seen else broken


def main() -> None:
    """Damage and read the files, and print how that ended."""
    args = tyro.cli(Fuzz)
    "".encode("cp437")  # zipfile imports this encoding when a name needs it, which the hook must not report
    watch, failures = Watch(), 0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_model(open_model(GOLDEN / "odd"), place / "odd", "huggingface")
        kinds: dict[str, tuple[list[Path], int, Callable[[Path, random.Random], None]]] = {
            "safetensors": ([place / "odd", GOLDEN / "plain"], 10_000, damaged_safetensors),
            "torch": ([GOLDEN / "bin"], 10_000, damaged_torch),
            "tensorflow": (
                [GOLDEN / "openai_tf" / "odd", GOLDEN / "openai_tf" / "plain"],
                5_000,
                damaged_tensorflow,
            ),
        }
        kinds = {kind: kinds[kind] for kind in args.kinds}
        originals = {source: contents(source) for sources, _, _ in kinds.values() for source in sources}
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM, resource.RLIM_INFINITY))
        for kind, (sources, count, change) in kinds.items():
            ends: Counter[str] = Counter()
            for number in range(round(count * args.share)):
                rng = random.Random(f"{args.seed} {kind} {number}")
                source = rng.choice(sources)
                folder = place / "damaged"
                shutil.copytree(source, folder, ignore=shutil.ignore_patterns("expected.npz"))
                change(folder, rng)
                ended, broken = check(folder, originals[source], watch)
                ends[ended] += 1
                if broken:
                    failures += 1
                    print(f"{kind} {args.seed} {number} of {source.name}: {broken}", flush=True)
                shutil.rmtree(folder)
            print(f"{kind}: {sum(ends.values())} files, {dict(ends)}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{failures} files broke a rule; peak memory {peak} MiB")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
