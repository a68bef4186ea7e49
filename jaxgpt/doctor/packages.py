"""Whether the installed packages fit one another, by what their own metadata asks for. Imports no JAX."""

import importlib.metadata
from collections.abc import Iterator

from packaging.requirements import Requirement

from jaxgpt.doctor.check import Check, Finding

SHOWN = ("jax", "jaxlib", "flax")


def check_packages() -> Check:
    """Look for versions outside what jaxgpt, JAX and JAX's plugins for accelerators say they work with.

    The bounds are read from the metadata of the packages, so they are those that pip was given.
    """
    findings = [*_unmet("jaxgpt"), *_unmet("jax")]
    if version_of("jaxgpt") is None:
        findings.append(
            Finding("jaxgpt is not installed as a package, so nothing says what it needs", "pip install .")
        )
    plugins = []
    for extra, requirement in _accelerators():
        if version_of(requirement.name) is None:
            continue
        findings += [*_unmet("jax", extra), *_unmet(requirement.name)]
        for more in sorted(requirement.extras):
            findings += _unmet(requirement.name, more)
        if requirement.name.startswith("jax-cuda"):
            plugins.append(requirement.name)
    if len(plugins) > 1:
        findings.append(
            Finding(
                f"{' and '.join(plugins)} are both installed, but JAX can use only one CUDA",
                f"pip uninstall -y {plugins[0]} {plugins[0].replace('-plugin', '-pjrt')}",
            )
        )
    versions = ", ".join(f"{name} {version_of(name)}" for name in (*SHOWN, *plugins))
    result = f"{versions}: {'they do not all fit' if findings else 'they fit one another'}"
    return Check("packages", result, list(dict.fromkeys(findings)))


def version_of(package: str) -> str | None:
    """The installed version of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def bounds_of(package: str) -> str:
    """What jaxgpt asks of a package on this Python, as pip takes it: `jax<0.13,>=0.12`."""
    asked = [requirement for requirement in _requirements("jaxgpt") if requirement.name == package]
    return f"{package}{asked[0].specifier}" if asked else package


def _unmet(package: str, extra: str = "") -> Iterator[Finding]:
    """What a package needs and does not have. What an extra asks for must fit too, but it may be missing."""
    for requirement in _requirements(package, extra):
        found, wanted = version_of(requirement.name), f"{requirement.name}{requirement.specifier}"
        asks = f"{package} {version_of(package)} needs {wanted}"
        if found is None and not extra:
            yield Finding(f"{requirement.name} is not installed, and {asks}", f"pip install '{wanted}'")
        elif found and not requirement.specifier.contains(found, prereleases=True):
            yield Finding(f"{requirement.name} is {found}, and {asks}", f"pip install '{wanted}'")


def _accelerators() -> Iterator[tuple[str, Requirement]]:
    """What the extras of JAX that jaxgpt's own extras ask for add, each with its extra."""
    for asked in _declared("jaxgpt"):
        for extra in sorted(asked.extras) if asked.name == "jax" else ():
            for requirement in _requirements("jax", extra):
                if requirement.name.startswith(("jax-", "libtpu")):
                    yield extra, requirement


def _requirements(package: str, extra: str = "") -> list[Requirement]:
    """What a package needs on this machine, with one of its extras or without."""
    return [
        each for each in _declared(package) if each.marker is None or each.marker.evaluate({"extra": extra})
    ]


def _declared(package: str) -> list[Requirement]:
    """All that a package's metadata says of what it needs, whenever; nothing where it is not installed."""
    if version_of(package) is None:
        return []
    return [Requirement(text) for text in importlib.metadata.requires(package) or []]
