"""A command's memory lies in huge pages, where Linux gives them to those who ask."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxgpt import __main__, huge_pages
from jaxgpt.huge_pages import SETTING, SWITCH, TUNABLE, begin_with_huge_pages, with_huge_pages

PROGRAM = """
import os, sys
from pathlib import Path
from jaxgpt.huge_pages import begin_with_huge_pages
print("begun", flush=True)
begin_with_huge_pages(Path(sys.argv[1]))
block = bytearray(2**26)
block[::4096] = b"x" * (2**26 // 4096)
rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
kibibytes = next(line.split()[1] for line in rollup if line.startswith("AnonHugePages"))
print(*sys.argv[2:], os.environ.get("GLIBC_TUNABLES"), kibibytes)
"""


@pytest.fixture
def madvise(tmp_path: Path) -> Path:
    """The setting of a Linux that gives huge pages to those who ask."""
    file = tmp_path / "enabled"
    file.write_text("always [madvise] never\n")
    return file


@pytest.fixture
def glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.35", raising=False)


@pytest.mark.usefixtures("glibc")
def test_a_process_asks_once_and_keeps_what_else_is_set(madvise: Path) -> None:
    asked = with_huge_pages({"HOME": "/h", "GLIBC_TUNABLES": "glibc.malloc.check=1"}, madvise)
    assert asked == {"HOME": "/h", "GLIBC_TUNABLES": f"glibc.malloc.check=1:{TUNABLE}=1", SWITCH: "1"}
    assert with_huge_pages(asked, madvise) is None
    assert with_huge_pages({}, madvise) == {"GLIBC_TUNABLES": f"{TUNABLE}=1", SWITCH: "1"}


@pytest.mark.usefixtures("glibc")
@pytest.mark.parametrize("environment", [{SWITCH: "0"}, {SWITCH: "1"}, {"GLIBC_TUNABLES": f"{TUNABLE}=0"}])
def test_who_decides_for_himself_is_not_overruled(madvise: Path, environment: dict[str, str]) -> None:
    assert with_huge_pages(environment, madvise) is None


@pytest.mark.usefixtures("glibc")
@pytest.mark.parametrize("said", ["[always] madvise never", "always madvise [never]", "", "\xff"])
def test_nothing_is_asked_where_asking_changes_nothing(tmp_path: Path, said: str) -> None:
    (tmp_path / "enabled").write_text(said, encoding="latin-1")
    assert with_huge_pages({}, tmp_path / "enabled") is None
    assert with_huge_pages({}, tmp_path / "none") is None


@pytest.mark.parametrize("library", ["glibc 2.34", "glibc", "musl 1.2.5", "other 3.0", "", None])
def test_another_c_library_is_not_asked(
    madvise: Path, library: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "confstr", lambda name: library, raising=False)
    assert with_huge_pages({}, madvise) is None


def test_a_process_that_cannot_begin_again_goes_on(madvise: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(program: str, *_: object) -> None:
        asked.append(program)
        raise PermissionError

    monkeypatch.setattr(huge_pages, "with_huge_pages", lambda *_: {})
    monkeypatch.setattr(os, "execve", refuse)
    begin_with_huge_pages(madvise)
    assert asked == [sys.executable]


def test_a_command_asks_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    class Begun(BaseException):
        pass

    def begin() -> None:
        raise Begun

    monkeypatch.setattr(__main__, "begin_with_huge_pages", begin)
    with pytest.raises(Begun):
        __main__.main()


@pytest.mark.skipif(with_huge_pages({}) is None, reason=f"huge pages are not to be had here by {SETTING}")
def test_memory_lies_in_huge_pages_and_the_arguments_are_the_same() -> None:
    def run(**environment: str) -> list[str]:
        clean = {name: value for name, value in os.environ.items() if name not in (SWITCH, "GLIBC_TUNABLES")}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(SETTING), "a b", "-c"],
            capture_output=True,
            text=True,
            env=clean | environment,
            check=True,
        )
        return done.stdout.splitlines()

    *begun, left = run(**{SWITCH: "0"})
    *begun_twice, huge = run()
    assert (begun, begun_twice) == (["begun"], ["begun", "begun"])
    assert int(left.removeprefix("a b -c None ")) < 8 * 1024
    assert int(huge.removeprefix(f"a b -c {TUNABLE}=1 ")) > 60 * 1024
