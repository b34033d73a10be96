"""Names of BABILong's context lengths, and what they stand for (Kuratov et al. 2024, data/create_tasks.py)."""

import re

# The lengths that the official sets have.
OFFICIAL_LENGTHS = ("0k", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k", "256k", "512k", "1M", "10M")

# What the official generator leaves of each length for the prompt around the context.
PROMPT_TOKENS = 300

# A sample may have one row (fact or question) for so many tokens of its length, and no more.
TOKENS_PER_ROW = 8

_NAME = re.compile(r"(?P<number>0|[1-9][0-9]*)(?P<unit>k|M)")
_UNITS = {"k": 1_000, "M": 1_000_000}


def context_tokens(length: str) -> int:
    """Tokens of the context at a named length: 700 for "1k", 999,700 for "1M"; 0 for "0k", which means facts only.

    Raises:
        ValueError: no such length.
    """
    match = _NAME.fullmatch(length)
    if match is None or (match["number"] == "0" and length != "0k"):
        raise ValueError(
            f"length is {length!r}, but must be 0k (facts only), a positive number of thousands such as 4k, or of "
            f"millions such as 1M; the official lengths are {', '.join(OFFICIAL_LENGTHS)}"
        )
    return max(0, int(match["number"]) * _UNITS[match["unit"]] - PROMPT_TOKENS)


def parse_lengths(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list, in its order.

    Raises:
        ValueError: an unknown length, the same length twice (1000k is 1M), or none.
    """
    names = tuple(name.strip() for name in text.split(","))
    by_tokens: dict[int, str] = {}
    for name in names:
        tokens = context_tokens(name)
        if tokens in by_tokens:
            raise ValueError(f"length {name!r} is given twice ({by_tokens[tokens]!r} is the same); name it once")
        by_tokens[tokens] = name
    return names


def max_facts(length_tokens: int) -> int | None:
    """How many facts a sample of so many tokens may have, its question being a row too; None for facts only."""
    return length_tokens // TOKENS_PER_ROW - 1 if length_tokens else None
