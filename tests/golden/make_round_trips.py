"""Makes the folders in round_trips/: small models with tokenizers, ends and chat templates of several kinds.

    pip install transformers==5.14.0 tokenizers==0.22.2 torch==2.14.1 jinja2==3.1.6
    python tests/golden/make_round_trips.py
    python tests/golden/make_round_trips.py FOLDER

Beside each stands expected.json: what transformers reads there, and the greedy text that it writes, which
ends at one of the folder's ends. With FOLDER, nothing is made: transformers reads FOLDER/NAME, converted by
jaxgpt, and every difference from expected.json is printed. The program ran with the versions above on CPU.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

HERE = Path(__file__).parent
FOLDERS = HERE / "round_trips"
# The tokenizer of each; which tokens of the greedy text end it; the chat template.
KINDS = {
    "list_of_ends": ("special_first", [8, 5], None),
    "chat_template": (
        "older_added",
        5,
        "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}{{ pad_token }}",
    ),
    "roberta": ("roberta", 8, None),
    "added_pad": ("added", 11, None),
}
TEXTS = ["Hello world!  It's 2026.\n\n", "a[NAME]b", "new word", "\u00df\u4e2d\u6587\U0001f600", "<pad> </s>"]
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "ho"}]
SEED, NEW = 3, 12


def greedy(model: GPT2LMHeadModel, ids: list[int], **how: object) -> list[int]:
    inputs = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(
            inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=NEW, **how
        )
    return out[0, len(ids) :].tolist()


def told(folder: Path) -> dict:
    """What transformers reads in a folder, and how it goes on after a text."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    chat = tokenizer.apply_chat_template(TALK, tokenize=False) if tokenizer.chat_template else None
    special = {key: tokenizer.special_tokens_map.get(key) for key in ("bos_token", "eos_token", "pad_token")}
    return {
        "eos_token_id": model.generation_config.eos_token_id,
        "ids": ids,
        "special": special,
        "chat": chat,
        "greedy": greedy(model, ids[0], pad_token_id=0),
    }


def make(name: str) -> None:
    tokenizer_name, places, template = KINDS[name]
    folder = FOLDERS / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(HERE / "tokenizers" / tokenizer_name, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(SEED)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=8, n_layer=1, n_head=2)
    ).eval()
    for parameter in model.transformer.parameters():
        parameter.data *= 10 if parameter.ndim > 1 else 1  # so that one token does not follow itself for ever
    text = greedy(
        model, tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"], eos_token_id=None, pad_token_id=0
    )
    ends = sorted(text[place] for place in places) if isinstance(places, list) else text[places]
    model.generation_config.eos_token_id = ends
    model.config.eos_token_id = model.config.bos_token_id = 0
    model.save_pretrained(folder)
    if template:
        (folder / "chat_template.jinja").write_text(template, "utf-8")
    (folder / "expected.json").write_text(json.dumps(told(folder)), "utf-8")
    print(name, text, ends)


if __name__ == "__main__":
    for name in KINDS:
        if len(sys.argv) == 1:
            make(name)
            continue
        expected = json.loads((FOLDERS / name / "expected.json").read_text("utf-8"))
        found = told(Path(sys.argv[1]) / name)
        wrong = {key: (value, found[key]) for key, value in expected.items() if found[key] != value}
        print(name, wrong or "is read as before")
