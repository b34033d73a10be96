"""A tokenizer as the data code needs it: no special tokens, no truncation, arrays, and short texts encoded once."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BATCH_TEXTS = 2048
# Facts and questions come from a small world: all 20 tasks together have fewer different sentences than this.
_KEPT_TEXTS = 2**16


class TextEncoder:
    """Encodes and decodes with a copy of a tokenizer's own rules.

    A copy, because a tokenizer's truncation and padding are settings of the object that others may change.

    Attributes:
        name: What the tokenizer is called in reports.
        fingerprint: SHA-256 of its rules and vocabulary: equal fingerprints count tokens alike.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        """Takes a copy.

        Args:
            tokenizer: A transformers tokenizer with a `backend_tokenizer` (PreTrainedTokenizerFast).
            name: What it is called in reports.

        Raises:
            ValueError: the tokenizer has no backend of the tokenizers library.
        """
        from tokenizers import Tokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ValueError(
                f"tokenizer {name!r} is a {type(tokenizer).__name__}, but must be a fast one (it has a tokenizer.json)"
            )
        rules = backend.to_str()
        self.name = name
        self.fingerprint = hashlib.sha256(rules.encode()).hexdigest()
        self._backend = Tokenizer.from_str(rules)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._kept: dict[str, NDArray[np.int32]] = {}

    def encode(self, text: str) -> NDArray[np.int32]:
        """The tokens of a short text that comes again and again; they are kept, and not to be written to."""
        ids = self._kept.get(text)
        if ids is None:
            ids = np.array(self._backend.encode(text, add_special_tokens=False).ids, dtype=np.int32)
            ids.flags.writeable = False
            if len(self._kept) == _KEPT_TEXTS:
                self._kept.clear()
            self._kept[text] = ids
        return ids

    def encode_with_offsets(self, text: str) -> tuple[NDArray[np.int32], list[tuple[int, int]]]:
        """The tokens of a text, and the characters at which each begins and ends; nothing kept."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return np.array(encoding.ids, dtype=np.int32), encoding.offsets

    def encode_many(self, texts: Iterable[str]) -> Iterator[NDArray[np.int32]]:
        """The tokens of each text, nothing kept."""
        rest = iter(texts)
        while batch := list(islice(rest, _BATCH_TEXTS)):
            for encoding in self._backend.encode_batch_fast(batch, add_special_tokens=False):
                yield np.array(encoding.ids, dtype=np.int32)

    def decode(self, ids: NDArray[np.int32]) -> str:
        """The text of the tokens; a character of which the last bytes are missing becomes U+FFFD."""
        return self._backend.decode(ids.tolist(), skip_special_tokens=False)
