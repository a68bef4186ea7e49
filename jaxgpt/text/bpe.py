"""Train a byte-pair vocabulary of one's own.

Source: Sennrich, Haddow and Birch (2016), "Neural Machine Translation of Rare Words with Subword Units", section 3.2;
over bytes and GPT-2's pieces as in Radford et al. (2019), section 2.2. The `tokenizers` library counts and merges; what
comes out is the same Tokenizer as for GPT-2's vocabulary, which saves itself as tiktoken ranks or tokenizer.json.
"""

from collections.abc import Iterator

from jaxgpt.errors import ConfigError, DataError
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.text.tokenizer_json import byte_characters

SMALLEST = 257  # the single bytes and <|endoftext|>


def train(texts: Iterator[str], vocab: int) -> Tokenizer:
    """Return a tokenizer with `vocab` ids, `<|endoftext|>` among them, learned from the texts.

    A text may be cut into several where whitespace follows text, nothing else joins or separates them. ConfigError
    below 257 ids or without the `tokenizers` library; DataError if the texts do not have so many pairs to merge.
    """
    try:
        from tokenizers import Tokenizer as Trainee
        from tokenizers import models, pre_tokenizers, trainers
    except ImportError as error:
        raise ConfigError(
            "training a vocabulary",
            why="the tokenizers library is not installed",
            fix="pip install 'jaxgpt[bpe]'",
        ) from error
    if vocab < SMALLEST:
        why = f"a vocabulary of {vocab} does not hold the 256 bytes and the end of text"
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
        raise DataError("too little text", why=why, fix=f"give more text or ask for {len(ranks) + 1}")
    return Tokenizer(ranks)
