"""The command line: one line of error, the exit code of the table, no traceback; help without JAX."""

import ast
import io
import itertools
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import pytest
from command_line import exit_code

import jaxgpt
from jaxgpt.cli import VERBS
from jaxgpt.config import TrainConfig, save_config
from jaxgpt.display import write_text
from jaxgpt.errors import BusyError, DivergedError, JaxgptError, StoppedError
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.training.lock import RunLock

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which no flag is broken over two lines."""
    monkeypatch.setenv("COLUMNS", "200")


def error_of(capsys: pytest.CaptureFixture[str], code: int, *argv: Any) -> str:
    """The one line on stderr that a command fails with."""
    assert exit_code(*argv) == code
    output, error = capsys.readouterr()
    lines = [line for line in error.splitlines() if line.startswith("jaxgpt: error:")]
    assert len(lines) == 1 and error.endswith(lines[0] + "\n") and "Traceback" not in error and not output
    return lines[0]


def test_a_key_that_does_not_exist_is_named_with_the_nearest(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "a.toml").write_text("step = 3\nseed = 'a'\n[optim]\nlearning_rat = 0.1\n")
    error = error_of(capsys, 2, "pretrain", tmp_path / "a.toml")
    for part in (
        "unknown key step (did you mean 'steps'?)",
        "optim.learning_rat (did you mean 'learning_rate'?)",
        "seed = 'a' is not int",
        str(tmp_path / "a.toml"),
    ):
        assert part in error


@pytest.mark.parametrize("flag", ["--optim.learning-rat", "--stepz"])
def test_a_flag_that_does_not_exist_is_named_with_the_nearest(flag: str, capsys: Any) -> None:
    assert exit_code("pretrain", "nano", flag, "3") == 2
    error = capsys.readouterr().err
    assert (
        flag in error
        and {"--optim.learning-rat": "--optim.learning-rate", "--stepz": "--steps"}[flag] in error
    )


def test_a_verb_that_does_not_exist_is_answered_with_all_there_are(capsys: Any) -> None:
    error = error_of(capsys, 2, "pretrian")
    assert all(verb in error for verb in VERBS)


@pytest.mark.parametrize(
    "argv",
    [[], ["prepare"], ["pretrain"], ["generate"], ["pretrain", "nano", "--steps", "many"], ["info", "more"]],
)
def test_bad_usage_is_2(argv: list[str], capsys: Any) -> None:
    assert exit_code(*argv) == 2
    output, error = capsys.readouterr()
    assert "Traceback" not in output + error


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--steps", "0"], "steps = 0"),
        (["--model.heads", "5"], "width = 128: it must be a multiple of heads (5)"),
        (["--mesh.data", "3"], "mesh data=3"),
        (["--optim.beta1", "2"], "error: --optim.beta1 = 2.0: it must be at least 0 and less than 1"),
        (["--data.val_fraction=5"], "error: --data.val_fraction = 5.0"),
        (["--data.stride", "0"], "error: --data.stride = 0"),
    ],
)
def test_an_impossible_setting_is_2(argv: list[str], problem: str, tmp_path: Path, capsys: Any) -> None:
    assert problem in error_of(capsys, 2, "pretrain", "nano", "--out-dir", tmp_path, *argv)


@pytest.mark.parametrize("argv", [["nano", "my text.txt"], ["nano", "--steps", "3", "my text.txt"]])
def test_a_text_behind_the_recipe_is_answered_with_the_flag_it_belongs_to(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("jaxgpt.verbs.pretrain.run", lambda *given: seen.append(given))
    error = error_of(capsys, 2, "pretrain", *argv)
    assert error.endswith("write: jaxgpt pretrain nano --data.path 'my text.txt'") and not seen


def test_a_text_in_the_place_of_the_recipe_is_answered_with_its_flag(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "austen.txt").write_text("It is a truth universally acknowledged")
    error = error_of(capsys, 2, "pretrain", tmp_path / "austen.txt")
    assert f"write: jaxgpt pretrain nano --data.path {tmp_path}/austen.txt" in error


def test_a_recipe_behind_a_flag_is_not_passed_over(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("jaxgpt.verbs.pretrain.run", lambda *given: seen.append(given))
    error = error_of(capsys, 2, "pretrain", "--steps", "3", "nano")
    assert "write it first: jaxgpt pretrain nano" in error and not seen


def test_flags_change_the_recipe_they_stand_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TrainConfig] = []
    monkeypatch.setattr("jaxgpt.verbs.pretrain.run", lambda config, named, in_file: seen.append(config))
    (tmp_path / "a.toml").write_text("steps = 7\nseed = 3\n[optim]\nbeta1 = 0.5\n")
    assert (
        exit_code("pretrain", tmp_path / "a.toml", "--optim.beta2", "0.6", "--seed", "4", "--from", "runs/x")
        == 0
    )
    optim = TrainConfig().optim
    changed = type(optim)(**vars(optim) | {"beta1": 0.5, "beta2": 0.6})
    assert seen == [TrainConfig(steps=7, seed=4, optim=changed, init_from="runs/x")]


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ([], set()),
        (["--optim.learning-rate", "0.1"], {"optim.learning_rate"}),
        (["--optim.learning-rate=0.1"], {"optim.learning_rate"}),
        (["--optim.learning_rate", "0.1", "--seed", "1"], {"optim.learning_rate", "seed"}),
        (["--optim.learning_rate=0.1"], {"optim.learning_rate"}),
        (["--from", "gpt2", "--out_dir=a"], {"init_from", "out_dir"}),
        (["--no-tensorboard", "--model.no-bias"], {"tensorboard", "model.bias"}),
        (["--tensorboard", "--sample-prompt", "seed"], {"tensorboard", "sample_prompt"}),
    ],
)
def test_a_verb_is_told_which_settings_were_named(
    flags: list[str], names: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        "jaxgpt.verbs.pretrain.run", lambda config, named, in_file: seen.extend([named, in_file])
    )
    assert exit_code("pretrain", "nano", *flags) == 0 and seen == [names, set()]


def test_a_verb_is_told_what_a_recipe_file_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.toml").write_text("steps = 3\n[model]\nlayers = 2\nwidth = 24\n[data]\n")
    seen: list[Any] = []
    monkeypatch.setattr("jaxgpt.verbs.pretrain.run", lambda config, named, in_file: seen.append(in_file))
    assert exit_code("pretrain", tmp_path / "own.toml", "--seed", "1") == 0
    assert seen == [{"steps", "model.layers", "model.width"}]


@pytest.mark.parametrize(
    "argv",
    [
        ["pretrain", "nanoo"],
        ["prepare", "{}/nothing.txt", "--out", "{}/out"],
        ["generate", "{}/nothing", "Hello"],
        ["tokenizer", "{}/nothing.txt", "--vocab", "300", "--out", "{}/a.json"],
    ],
)
def test_an_input_that_is_not_there_is_66(argv: list[str], tmp_path: Path, capsys: Any) -> None:
    error = error_of(capsys, 66, *(arg.format(tmp_path) for arg in argv))
    assert "nothing" in error or "did you mean 'nano'?" in error


def test_a_damaged_model_is_65(tmp_path: Path, capsys: Any) -> None:
    folder = shutil.copytree(GOLDEN / "plain", tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert str(folder) in error_of(capsys, 65, "generate", folder, "Hello")
    shutil.copy(GOLDEN / "plain" / "model.safetensors", weights)
    assert "tokenizer" in error_of(capsys, 65, "generate", folder, "Hello")


def test_damaged_settings_of_a_run_are_65(tmp_path: Path, capsys: Any) -> None:
    save_config(TrainConfig(), tmp_path)
    (tmp_path / "checkpoints").mkdir()
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"stepz": 1}))
    assert "unknown key stepz" in error_of(capsys, 65, "generate", tmp_path, "Hello")


def test_text_that_is_not_utf8_is_65(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    assert "a.txt" in error_of(capsys, 65, "prepare", tmp_path / "a.txt", "--out", tmp_path / "out")


@pytest.mark.parametrize("verb", ["pretrain", "prepare"])
def test_a_folder_in_use_is_69(verb: str, tmp_path: Path, capsys: Any) -> None:
    argv = {"pretrain": ["nano", "--out-dir", tmp_path], "prepare": ["builtin", "--out", tmp_path]}[verb]
    with filelock.FileLock(tmp_path / ".lock"):
        assert str(tmp_path) in error_of(capsys, 69, verb, *argv)


def test_a_run_directory_in_use_is_refused_with_its_holder_before_jax_is_imported(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "run")
    lock.acquire()
    code = (
        "import sys; from jaxgpt.cli import main\n"
        "try: main(sys.argv[1:])\nfinally: print('jax' in sys.modules)"
    )
    argv = ["pretrain", "nano", "--out-dir", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False)
    lock.release()
    assert done.returncode == 69 and done.stdout == "False\n", done.stderr
    assert f"process {os.getpid()} on {platform.node()} trains in it; wait until it ends" in done.stderr


@pytest.mark.parametrize("verb", ["pretrain", "prepare"])
@pytest.mark.parametrize("inside", ["", "run"])
def test_an_output_folder_that_cannot_be_made_is_74(
    verb: str, inside: str, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "file" / inside
    (tmp_path / "file").write_text("no folder")
    argv = {"pretrain": ["nano", "--out-dir", out], "prepare": ["builtin", "--out", out]}[verb]
    assert str(tmp_path / "file") in error_of(capsys, 74, verb, *argv)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (
            ZeroDivisionError("division by zero"),
            70,
            "internal error: ZeroDivisionError('division by zero'); run the command again with --debug",
        ),
        (JaxgptError("fault", why="ours", fix="report it"), 70, "fault: ours; report it"),
        (OSError(28, "No space left on device"), 74, "No space left on device"),
        (
            StoppedError("stopped", why="SIGTERM came", fix="run again"),
            75,
            "stopped: SIGTERM came; run again",
        ),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (DivergedError("diverged", why="loss is nan", fix="lower it"), 76, "diverged: loss is nan; lower it"),
        (BusyError("in use", path="/a", why="b", fix="c"), 69, "jaxgpt: error: in use (/a): b; c"),
    ],
)
def test_each_kind_of_failure_has_its_code_and_a_traceback_only_for_debug(
    error: BaseException, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail(_: Any) -> None:
        raise error

    monkeypatch.setattr("jaxgpt.verbs.info.run", fail)
    assert says in error_of(capsys, code, "info")
    assert exit_code("info", "--debug") == code
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback") and type(error).__name__ in shown and says in shown


def test_an_error_that_cannot_be_raised_is_shown_where_it_has_a_place(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """TensorStore's have none when the disk is full. The error itself is told in one line."""

    class Broken:
        def __del__(self) -> None:
            raise ValueError("lost")

    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    assert exit_code("--version") == 0
    capsys.readouterr()
    sys.unraisablehook(SimpleNamespace(object=None))  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""
    Broken()
    assert "ValueError: lost" in capsys.readouterr().err


def test_text_that_stdout_cannot_encode_is_written_with_replacements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    monkeypatch.setattr("jaxgpt.verbs.info.run", lambda _: write_text("h\u00e9 \u65e5\n"))
    assert exit_code("info") == 0
    assert sys.stdout.buffer.getvalue() == b"h? ?\n"  # type: ignore[attr-defined]


def test_debug_shows_what_is_logged(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text to learn from\n" * 10)
    argv = ["prepare", str(tmp_path / "a.txt"), "--out", str(tmp_path / "out"), "--tokenizer", "bytes"]
    done = subprocess.run([sys.executable, "-m", "jaxgpt", *argv, "--debug"], capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"DEBUG jaxgpt.cli: jaxgpt {jaxgpt.__version__} on Python 3.")
    assert lines[-1].startswith("DEBUG jaxgpt.cli: prepare took ")


def test_the_version_is_said(capsys: Any) -> None:
    assert exit_code("--version") == 0
    assert capsys.readouterr().out == f"jaxgpt {version('jaxgpt')}\n" == f"jaxgpt {jaxgpt.__version__}\n"


@pytest.mark.parametrize("verb", ["prepare", "tokenizer"])
def test_the_next_command_can_be_typed_as_it_is_shown(verb: str, tmp_path: Path, capsys: Any) -> None:
    text, out = tmp_path / "my text.txt", tmp_path / "an out.json"
    text.write_text("some text to learn from\n" * 10)
    more = ["--vocab", 270] if verb == "tokenizer" else ["--tokenizer", "bytes"]
    assert exit_code(verb, text, "--out", out, *more) == 0
    words = shlex.split(capsys.readouterr().err.rpartition("next: ")[2])
    assert words[:2] == ["jaxgpt", "prepare" if verb == "tokenizer" else "pretrain"] and str(out) in words


def test_success_is_0(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "a.txt").write_text("some text to learn from\n" * 10)
    assert exit_code("prepare", tmp_path / "a.txt", "--out", tmp_path / "out", "--tokenizer", "bytes") == 0
    output, error = capsys.readouterr()
    assert not output and "220 training and 21 validation tokens of bytes" in error
    assert load_tokenizer(tmp_path / "out").name == "bytes"


SAMPLING_FLAGS = [
    "--max-new-tokens",
    "--temperature",
    "--top-k",
    "--top-p",
    "--min-p",
    "--repetition-penalty",
    "--presence-penalty",
    "--frequency-penalty",
    "--stop",
    "--seed",
    "--int8",
    "--compute-dtype",
    "--tensor",
]
FLAGS = {  # what scripts rely on
    "info": ["--check", "--json"],
    "prepare": ["--out", "--tokenizer", "--val-fraction", "TEXT"],
    "tokenizer": ["--vocab", "--out", "TEXT"],
    "pretrain": [
        "--from",
        "--out-dir",
        "--data.path",
        "--steps",
        "--seed",
        "--log-every",
        "--eval-every",
        "--checkpoint-every",
        "--patience",
        "--best-metric",
        "--skip-steps",
        "--on-divergence",
        "--optim.learning-rate",
        "--mesh.fsdp",
        "CONFIG",
    ],
    "finetune": ["--from", "--out-dir", "--data.path", "--data.balance", "--steps", "--trains", "CONFIG"],
    "classify": ["--json", "--file", "--adapter", "TEXT", "MODEL"],
    "generate": [
        *SAMPLING_FLAGS,
        "--instruction",
        "--examples",
        "--logprobs",
        "--stream",
        "--beams",
        "--length-penalty",
        "--draft",
        "--lookahead",
        "-n",
        "--adapter",
        "MODEL",
        "PROMPT",
    ],
    "evaluate": [
        "--data",
        "--examples",
        "--shots",
        "--instruction",
        "--seed",
        "--int8",
        "--json",
        "--adapter",
        "MODEL",
    ],
    "compare": ["--out", "RUN RUN..."],
    "replay": ["--step", "--texts", "--html", "--json", "RUN"],
    "answer": [*SAMPLING_FLAGS, "--adapter", "--chat-template", "--out", "--int8", "MODEL", "FILE"],
    "judge": ["--url", "--model", "--api-key", "--key", "--out", "--seed", "FILE"],
    "chat": [*SAMPLING_FLAGS, "--adapter", "--chat-template", "--system", "MODEL"],
    "serve": [
        "--host",
        "--port",
        "--api-key",
        "--slots",
        "--queue",
        "--int8",
        "--tensor",
        "--warm-up",
        "--adapter",
        "MODEL",
    ],
    "convert": ["--to", "--check", "--dtype", "--vocab", "--layer-norm-epsilon", "SRC", "DST"],
    "plan": [
        "--topology",
        "--search",
        "--write",
        "--price-per-chip-hour",
        "--json",
        "--no-cache",
        "--batch",
        "--mesh.fsdp",
        "CONFIG",
    ],
    "bench": ["train", "generate", "--preset", "--batch", "--prompt", "--new", "--json"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_help_mentions_what_others_script_against(verb: str, capsys: Any) -> None:
    assert exit_code(verb, "--help") == 0
    shown = capsys.readouterr().out
    assert [flag for flag in FLAGS[verb] if flag not in shown] == []


def test_help_of_every_verb_imports_no_jax() -> None:
    program = (
        "import sys\nfrom jaxgpt.cli import VERBS, main\n"
        "for argv in [['--help'], *([verb, '--help'] for verb in VERBS), ['pretrain', 'nano', '--help']]:\n"
        "    main(argv)\n"
        "    slow = {'jax', 'flax', 'orbax', 'grain', 'numpy', 'tiktoken'} & set(sys.modules)\n"
        "    assert not slow, (argv, slow)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_overview_lists_every_verb(capsys: Any) -> None:
    assert exit_code("--help") == 0
    shown = capsys.readouterr().out
    assert all(f"  {name}" in shown and verb.summary in shown for name, verb in VERBS.items())


def test_help_of_a_recipe_shows_its_settings_as_the_defaults(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # in a wider terminal, the groups of flags stand side by side
    (tmp_path / "a.toml").write_text("steps = 4321\n[optim]\nlearning_rate = 0.0123\n")
    assert exit_code("pretrain", tmp_path / "a.toml", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "(default: 4321)" in shown and "(default: 0.0123)" in shown
    assert exit_code("pretrain", "nano", "--help") == 0
    assert "(default: 600)" in capsys.readouterr().out


def field_docstrings(source: str) -> Iterator[str]:
    """The docstrings behind the fields of a source's classes, which are the help of flags."""
    for kind in ast.walk(ast.parse(source)):
        if isinstance(kind, ast.ClassDef):
            for pair in itertools.pairwise(kind.body):
                match pair:
                    case ast.AnnAssign(), ast.Expr(ast.Constant(str(text))):
                        yield text


def test_help_breaks_a_line_only_between_sentences() -> None:
    """tyro shows the line breaks inside a field's docstring: one within a sentence would look torn."""
    package = Path(jaxgpt.__file__).parent
    texts = {
        path: list(field_docstrings(path.read_text(encoding="utf-8")))
        for room in ("verbs", "config")
        for path in sorted((package / room).glob("*.py"))
    }
    assert sum(map(len, texts.values())) > 100
    torn = [
        f"{path.name}: {line}"
        for path, found in texts.items()
        for text in found
        for line in text.splitlines()[:-1]
        if not line.endswith(".")
    ]
    assert torn == []
