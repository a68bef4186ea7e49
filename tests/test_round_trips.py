"""Through jaxgpt and back, a folder is to its reader what it was: the same ids, ends and conversations.

tests/golden/make_round_trips.py made the folders with transformers, and reads with it what is written here.
"""

import json
from pathlib import Path

import pytest
from command_line import exit_code

import jaxgpt
from jaxgpt.inference.requests import Request
from jaxgpt.inference.sampling import Sampling

GOLDEN = Path(__file__).parent / "golden" / "round_trips"
NAMES = ["list_of_ends", "chat_template", "roberta", "added_pad"]
TEXTS = ["Hello world!  It's 2026.\n\n", "a[NAME]b", "new word", "\u00df\u4e2d\u6587\U0001f600"]
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "ho"}]
REWRITTEN = {"config.json", "generation_config.json", "model.safetensors", "expected.json"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.exhaustive) if name == "roberta" else name for name in NAMES],
)
def test_a_folder_is_the_same_after_a_conversion_there_and_back(name: str, tmp_path: Path) -> None:
    assert exit_code("convert", GOLDEN / name, tmp_path / "run", "--to", "jaxgpt") == 0
    assert exit_code("convert", tmp_path / "run", tmp_path / "back") == 0
    expected = json.loads((GOLDEN / name / "expected.json").read_text("utf-8"))
    for file in {path.name for path in (GOLDEN / name).iterdir()} - REWRITTEN:
        assert (tmp_path / "back" / file).read_bytes() == (GOLDEN / name / file).read_bytes(), file
    for file in ("config.json", "generation_config.json"):
        stated = json.loads((tmp_path / "back" / file).read_text("utf-8"))["eos_token_id"]
        ends = expected["eos_token_id"]
        assert stated == (sorted(ends) if isinstance(ends, list) else ends)
    for folder in (GOLDEN / name, tmp_path / "run", tmp_path / "back"):
        lm = jaxgpt.load(folder)
        assert [lm.tokenizer.encode(text) for text in TEXTS] == expected["ids"][: len(TEXTS)]
        told = lm.chat_template.render(TALK, answering=False) if lm.chat_template else None
        assert told == expected["chat"]
    request = Request(prompt=tuple(expected["ids"][0]), max_new_tokens=12, sampling=Sampling(temperature=0))
    news = [new for _, new in lm.engine().run([request])]
    assert [new.token for new in news] == expected["greedy"] and news[-1].finish == "end"
