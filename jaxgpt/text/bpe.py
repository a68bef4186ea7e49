"""Train a byte-pair vocabulary on texts of one's own.

Source: Sennrich, Haddow and Birch (2016), "Neural Machine Translation of Rare Words with Subword Units",
section 3.2; over bytes, and within GPT-2's pieces, as in Radford et al. (2019), section 2.2. The `tokenizers`
library counts and merges. The result is a tokenizer like GPT-2's.
"""

from collections.abc import Iterator

from tokenizers import Tokenizer as Trainee
from tokenizers import models, pre_tokenizers, trainers

from jaxgpt.errors import ConfigError, DataError
from jaxgpt.text.tokenizer import RankTokenizer
from jaxgpt.text.tokenizer_json import byte_characters

SMALLEST = 257  # the single bytes and <|endoftext|>


def train(texts: Iterator[str], vocab: int) -> RankTokenizer:
    """Return a tokenizer with `vocab` ids, one of them for `<|endoftext|>`, learned from the texts.

    No merge crosses from one text to the next. A long text may be given in several parts, if each cut is
    between a character and a whitespace that follows it; the result is then the same. Raises ConfigError for
    fewer than 257 ids, DataError when the texts have too few pairs to merge.
    """
    if vocab < SMALLEST:
        why = f"{vocab} ids are not enough for the 256 bytes and the end of text"
        raise ConfigError("vocabulary too small", why=why, fix=f"ask for at least {SMALLEST}")
    trainee = Trainee(models.BPE())
    trainee.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab - 1, initial_alphabet=alphabet, show_progress=False)
    trainee.train_from_iterator(texts, trainer)
    bytes_of = {character: byte for byte, character in byte_characters().items()}
    learned = trainee.get_vocab(with_added_tokens=False)
    ranks = {bytes(bytes_of[character] for character in token): rank for token, rank in learned.items()}
    if len(ranks) != vocab - 1:
        why = f"the texts have pairs for {len(ranks) + 1} ids, not for {vocab}"
        raise DataError("too little text", why=why, fix=f"give more text or ask for {len(ranks) + 1} ids")
    return RankTokenizer(ranks)
