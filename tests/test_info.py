import jax
import pytest

from jaxgpt.cli import main
from jaxgpt.verbs import info


def test_it_names_versions_backend_and_devices(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as done:
        main(["info"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    for fact in (jax.__version__, "backend", "cpu", "device 7", "memory unknown"):
        assert fact in out


def test_an_unused_accelerator_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info.importlib.util, "find_spec", lambda name: object() if name == "libtpu" else None)
    assert any("TPU" in warning for warning in info.silent_fallback("cpu"))
    assert info.silent_fallback("tpu") == []
