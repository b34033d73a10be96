"""The project's small byte-level BPE: training, the one that ships, and loading any other.

Small on purpose: with a width of 64 to 128, a tiny model's embeddings and logits cost as much as its blocks at a few
thousand entries. Bytes are the alphabet, so any text comes back as it was and nothing is unknown. Digits stand alone,
a space belongs to the word behind it, and words never join punctuation: `apple,milk` is three tokens.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# Read by people in model folders too, hence names and not just numbers. Padding is not the end of a text: a loss that
# leaves padding out must still teach where texts end.
END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"

BUILTIN_FOLDER = Path(__file__).parent / "builtin_tokenizer"

# GPT-2's rule (Radford et al. 2019) but for numbers, which are cut into digits: contractions, words, digits, runs of
# other characters, each with the space before it; then white space.
_PIECE = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def load_tokenizer(spec: str | None = None) -> Any:
    """Loads a tokenizer.

    Args:
        spec: "builtin" or None for the one that ships with the package, a folder that `save_pretrained` wrote, or a
            name on the Hugging Face hub such as "openai-community/gpt2".

    Returns:
        A `transformers.PreTrainedTokenizerFast`.

    Raises:
        ValueError: it is not a fast tokenizer.
        OSError: there is no tokenizer in the folder, or none of that name can be had.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    place = str(BUILTIN_FOLDER) if spec in (None, "builtin") else str(spec)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=Path(place).is_dir())
    except (OSError, ValueError) as error:
        raise OSError(
            f"tokenizer is {spec!r}, but must be 'builtin', a folder with a tokenizer.json, or a name on the Hugging "
            f"Face hub (its first use needs the network); {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"tokenizer {spec!r} is a {type(tokenizer).__name__}, but must be a fast one (tokenizer.json)")
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int, whole_words: Iterable[str] = ()) -> Any:
    """Trains a byte-level BPE. Equal arguments give an equal tokenizer.

    Words that must be one token are often too rare for the training to make them so. Their missing merges are put
    behind all learned ones, and as many of the last learned merges go. So a text is first cut as the learned merges
    have it, and the others can only join what is left: `footballs` is `football` and `s`. Added tokens, the usual way,
    come before all merges, and would be cut out of the middle of other words. Ours.

    Args:
        texts: What to learn merges from.
        vocab_size: Number of entries, the two special tokens and 256 bytes included; fewer if the texts are used up.
        whole_words: Words that are to be one token each, as they are and behind a space.

    Returns:
        A `transformers.PreTrainedTokenizerFast`.

    Raises:
        ValueError: vocab_size is too small for the bytes and the whole words, or a word is none (has spaces,
            punctuation or several digits).
    """
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    forms = [form for word in sorted(set(whole_words)) for form in (word, f" {word}")]
    _check_words(forms)
    smallest = _num_entries(_with_whole([], forms))
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size is {vocab_size}, but must be at least {smallest}: {_num_entries([])} for special tokens and "
            f"bytes, the rest for {len(forms) // 2} whole words"
        )

    learner = _tokenizer([])
    trainer = BpeTrainer(vocab_size=vocab_size, min_frequency=2, initial_alphabet=_alphabet(), show_progress=False)
    learner.train_from_iterator(texts, trainer)
    learned = _merges(learner)
    while _num_entries(merges := _with_whole(learned, forms)) > vocab_size:
        # No learned merges at all would fit, so this ends; and one less frees one entry at most, so none is wasted.
        learned = learned[: max(0, len(learned) - (_num_entries(merges) - vocab_size))]
    tokenizer = _tokenizer(merges)
    assert all(len(tokenizer.encode(form).tokens) == 1 for form in forms)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=PADDING, clean_up_tokenization_spaces=False
    )


def _with_whole(merges: Sequence[tuple[str, str]], forms: Sequence[str]) -> list[tuple[str, str]]:
    """The merges, and behind them those that make every form one token, from left to right.

    A form stays whole when later merges come behind its own, because BPE takes the earliest merge first.
    """
    tokenizer = _tokenizer(merges)
    every_merge = dict.fromkeys(merges)
    for form in forms:
        tokens = tokenizer.encode(form).tokens
        for merge in list(every_merge)[len(merges) :]:
            tokens = _join(tokens, merge)
        while len(tokens) > 1:
            merge = (tokens[0], tokens[1])
            every_merge[merge] = None
            tokens = _join(tokens, merge)
    return list(every_merge)


def _join(tokens: Sequence[str], merge: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for token in tokens:
        if joined and (joined[-1], token) == merge:
            joined[-1] += token
        else:
            joined.append(token)
    return joined


def _tokenizer(merges: Sequence[tuple[str, str]]) -> Any:
    """The `tokenizers` library's tokenizer with the special tokens, the bytes and these merges, numbered in order."""
    from tokenizers import AddedToken, Regex, Tokenizer
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Split
    from tokenizers.pre_tokenizers import Sequence as Steps

    entries = dict.fromkeys([PADDING, END_OF_TEXT, *_alphabet(), *(left + right for left, right in merges)])
    tokenizer = Tokenizer(BPE(vocab={entry: number for number, entry in enumerate(entries)}, merges=list(merges)))
    tokenizer.pre_tokenizer = Steps(
        [Split(Regex(_PIECE), behavior="isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (PADDING, END_OF_TEXT)])
    return tokenizer


def _num_entries(merges: Sequence[tuple[str, str]]) -> int:
    return len({PADDING, END_OF_TEXT, *_alphabet(), *(left + right for left, right in merges)})


def _alphabet() -> list[str]:
    """The characters that stand for the 256 bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _merges(tokenizer: Any) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]


def _check_words(forms: Sequence[str]) -> None:
    pre_tokenizer = _tokenizer([]).pre_tokenizer
    for form in forms:
        if len(pre_tokenizer.pre_tokenize_str(form)) != 1:
            raise ValueError(f"whole word {form.strip()!r} cannot be one token: it must be letters, or one digit")
