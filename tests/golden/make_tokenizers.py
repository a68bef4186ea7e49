"""Makes the folders in tokenizers/: tokenizers of many kinds, with the ids that transformers gives.

    pip install transformers==5.14.0 tokenizers==0.22.2
    python tests/golden/make_tokenizers.py [COUNT]

The vocabularies have a few hundred ids and are trained on Python's own help texts. The ids are those of
AutoTokenizer without special tokens around the text. With COUNT, only that many texts and their ids are
written to standard output, for a comparison by hand. The program ran with the versions above.
"""

import json
import random
import sys
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken, AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast, RobertaTokenizer

HERE = Path(__file__).parent / "tokenizers"
END = "<|endoftext|>"
READ = ["older", "older_added", "added", "special_first", "prefix_space", "roberta", "normalizer", "digits"]
CHARACTERS = " \n\t\xa0aeinorst019.,'\"<|>_-éß中文😀\u0301\u3000ﬁİ"


def texts(count: int) -> list[str]:
    rng, words = random.Random(5), " ".join(list(topics.values())[:9]).split(" ")
    found = [
        "",
        " ",
        "hello",
        " hello",
        "Hello world!  It's 2026.\n\n",
        "a[NAME]b [NAME] x",
        "new word newword",
    ]
    while len(found) < count:
        found.append(" ".join(rng.choices(words, k=rng.randint(1, 12))))
        found.append("".join(rng.choices(CHARACTERS, k=rng.randint(1, 30))))
    return found[:count]


def trained(model=models.BPE, trainer=trainers.BpeTrainer, before=None, special=(), **options) -> Tokenizer:
    tokenizer = Tokenizer(model(**options))
    tokenizer.pre_tokenizer = before or pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()} if model is models.BPE else {}
    tokenizer.train_from_iterator(
        list(topics.values())[:9],
        trainer(vocab_size=330, special_tokens=list(special), show_progress=False, **alphabet),
    )
    return tokenizer


def parts(tokenizer: Tokenizer) -> dict:
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(merge) for merge in model["merges"]]}


def write_older(folder: Path, vocab: dict, merges: list, added: dict, settings: dict, special: dict) -> None:
    """What transformers 2 to 4 wrote for a tokenizer in Python."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), "utf-8")
    lines = "".join(f"{left} {right}\n" for left, right in merges)
    (folder / "merges.txt").write_text("#version: 0.2\n" + lines, "utf-8")
    for name, table in (
        ("added_tokens", added),
        ("tokenizer_config", settings),
        ("special_tokens_map", special),
    ):
        if table:
            (folder / f"{name}.json").write_text(json.dumps(table, ensure_ascii=False), "utf-8")


def main() -> None:
    plain = parts(trained())
    own = {token: id for id, token in enumerate([*reversed(plain["vocab"]), END])}  # not the usual order
    write_older(HERE / "older", own, plain["merges"], {}, {}, {})
    count = len(own)
    added = {"<pad>": count, "[NAME]": count + 1, "new word": count + 2}
    ends = {"bos_token": END, "eos_token": END, "unk_token": END}
    write_older(
        HERE / "older_added",
        own,
        plain["merges"],
        added,
        ends | {"model_max_length": 64, "tokenizer_class": "GPT2Tokenizer"},
        ends | {"pad_token": {"content": "<pad>", "lstrip": False, "normalized": True, "rstrip": False}},
    )
    tokenizer = GPT2Tokenizer(**plain)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "sep_token": AddedToken("<sep>", lstrip=True)})
    tokenizer.add_tokens(["[NAME]", AddedToken("new word", single_word=True)])
    tokenizer.save_pretrained(HERE / "added")
    first = parts(trained(special=["<|begin|>", END, "<pad>"]))
    GPT2Tokenizer(**first, bos_token="<|begin|>", pad_token="<pad>").save_pretrained(HERE / "special_first")
    GPT2Tokenizer(**plain, add_prefix_space=True).save_pretrained(HERE / "prefix_space")
    like = parts(trained(special=["<s>", "<pad>", "</s>", "<unk>"]))
    like["vocab"]["<mask>"] = len(like["vocab"])
    mask = AddedToken("<mask>", lstrip=True, special=True)
    RobertaTokenizer(**like, mask_token=mask).save_pretrained(HERE / "roberta")
    write_older(HERE / "roberta", like["vocab"], like["merges"], {}, {}, {})
    for name in ("normalizer", "digits"):
        level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        both = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
        backend = trained(before=both if name == "digits" else level, special=[END])
        backend.decoder = decoders.ByteLevel()
        if name == "normalizer":
            backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END).save_pretrained(HERE / name)
    space = pre_tokenizers.Metaspace()
    unigram = trained(models.Unigram, trainers.UnigramTrainer, space, ["<unk>", "</s>"])
    PreTrainedTokenizerFast(tokenizer_object=unigram, eos_token="</s>").save_pretrained(HERE / "unigram")
    wordpiece = trained(
        models.WordPiece, trainers.WordPieceTrainer, pre_tokenizers.Whitespace(), ["[UNK]"], unk_token="[UNK]"
    )
    PreTrainedTokenizerFast(tokenizer_object=wordpiece, unk_token="[UNK]").save_pretrained(HERE / "wordpiece")
    for folder in HERE.iterdir():
        (folder / "config.json").write_text('{"model_type": "gpt2", "vocab_size": 340}\n')
        compact(folder / "tokenizer.json")
    for name in READ:
        save = {"texts": texts(120), "ids": ids_of(name, texts(120))}
        (HERE / name / "expected.json").write_text(json.dumps(save), "utf-8")


def compact(path: Path) -> None:
    """Write a JSON file without its indentation, which is most of it."""
    if path.is_file():
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")), ensure_ascii=False), "utf-8")


def ids_of(name: str, given: list[str]) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(HERE / name)
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in given]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        some = texts(int(sys.argv[1]))
        json.dump({"texts": some, "ids": {name: ids_of(name, some) for name in READ}}, sys.stdout)
    else:
        main()
