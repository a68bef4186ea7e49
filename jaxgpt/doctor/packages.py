"""Checks of the installed packages against the versions that their metadata asks for. Imports no JAX."""

import importlib.metadata
from collections.abc import Iterator

from packaging.requirements import Requirement

from jaxgpt.doctor.check import Check, Finding

SHOWN = ("jax", "jaxlib", "flax")


def check_packages() -> Check:
    """Look for versions that do not satisfy jaxgpt, JAX, or JAX's plugins for accelerators.

    The bounds come from the metadata of the packages, so they are the ones that pip uses.
    """
    findings = [*_unmet("jaxgpt"), *_unmet("jax")]
    if version_of("jaxgpt") is None:
        findings.append(
            Finding(
                "jaxgpt is not installed as a package, so the versions it needs are unknown", "pip install ."
            )
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
    """The versions of a package that jaxgpt needs on this Python, as pip reads them: `jax<0.13,>=0.12`."""
    asked = [requirement for requirement in _requirements("jaxgpt") if requirement.name == package]
    return f"{package}{asked[0].specifier}" if asked else package


def _unmet(package: str, extra: str = "") -> Iterator[Finding]:
    """The requirements of a package that are not met. Those of an extra count only if they are installed."""
    for requirement in _requirements(package, extra):
        found, wanted = version_of(requirement.name), f"{requirement.name}{requirement.specifier}"
        asks = f"{package} {version_of(package)} needs {wanted}"
        if found is None and not extra:
            yield Finding(f"{requirement.name} is not installed, and {asks}", f"pip install '{wanted}'")
        elif found and not requirement.specifier.contains(found, prereleases=True):
            yield Finding(f"{requirement.name} is {found}, and {asks}", f"pip install '{wanted}'")


def _accelerators() -> Iterator[tuple[str, Requirement]]:
    """The accelerator packages of JAX's extras that jaxgpt's own extras use, each with its extra."""
    for asked in _declared("jaxgpt"):
        for extra in sorted(asked.extras) if asked.name == "jax" else ():
            for requirement in _requirements("jax", extra):
                if requirement.name.startswith(("jax-", "libtpu")):
                    yield extra, requirement


def _requirements(package: str, extra: str = "") -> list[Requirement]:
    """The requirements of a package on this machine, with or without one of its extras."""
    return [
        each for each in _declared(package) if each.marker is None or each.marker.evaluate({"extra": extra})
    ]


def _declared(package: str) -> list[Requirement]:
    """All requirements in a package's metadata, for any machine; none where it is not installed."""
    if version_of(package) is None:
        return []
    return [Requirement(text) for text in importlib.metadata.requires(package) or []]
