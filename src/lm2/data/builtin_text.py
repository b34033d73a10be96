"""The built-in background: English prose that every Python installation carries, so that nothing must be downloaded.

`pydoc_data.topics` holds chapters of Python's language reference as plain text. They come with headings, grammar,
code, tables and marks of reStructuredText, repeat whole chapters of each other, and differ a little between Python
versions. What is kept is sentences of words; each sentence belongs to one topic, and each topic to one split.
"""

import re
from collections.abc import Iterator
from functools import cache

from lm2.data.sentences import CLOSING, OPENING, split_sentences

# About a third of the sentences, in topics that share few with the others. Topics that later versions of Python add are
# for training.
TEST_TOPICS = frozenset(
    {
        "debugger",
        "dynamic-features",
        "exceptions",
        "execmodel",
        "import",
        "naming",
        "string-methods",
        "strings",
        "types",
    }
)

_UNDERLINE = re.compile(r"[*=~^#-]{3,}")
_NOT_PROSE = re.compile(r"::=|>>>|^ *[+|]|^ *=+ +=", re.MULTILINE)
_LIST_MARK = re.compile(r"^ *(?:\*|\d+\.|\[\d+\]|[a-z]\.)(?= )")
_ADMONITION = re.compile(r"(?:Note|Warning|See also|CPython implementation detail|Details):$")
_VERSION_MARK = re.compile(r"^(?:Changed|New|Added|Deprecated|Removed) (?:in|since) version (?:\d\.|[^:.])*[:.] ?")
_LABEL = re.compile(r"^(?:Note|Warning|Availability|CPython implementation detail): ")
_LITERAL = re.compile(r'"([A-Za-z_][\w.]*(?:\(\))?)"')
_EMPHASIS = re.compile(r"(?<![\w*])(\*\*?)(?=[^\s*])([^*]*[^\s*])\1(?![\w*])")
_CROSS_REFERENCE = re.compile(r" *(?:\((?:see|see also|cf\.) [^()]*\)|\[\d+\])", re.IGNORECASE)
# The documentation breaks lines at hyphens too.
_BROKEN_HYPHEN = re.compile(r"(?<=\w)-\s*\n\s*(?=\w)")

_SENTENCE = re.compile("[\u201c(]?[A-Z].*[.!?][\u201d\u2019)]?")
_WORD = re.compile(r"[^\W\d_]+(?:[-/\u2019'][^\W\d_]+)*|\d+")
_AROUND_WORD = f"{OPENING}{CLOSING}.,;:!?…\u2013"
_CODE_CHARACTER = re.compile(r'["{}\\=<>|@#$%^*`~\[\]]|\w\((?!e?s\))')
_FEWEST_WORDS = 4
_SMALLEST_SHARE_OF_WORDS = 0.85


def topic_sentences(split: str) -> dict[str, tuple[str, ...]]:
    """The sentences of every topic in one split, by the topic's name; topics without sentences of their own are absent.

    No sentence occurs twice, in one split or in both: it stays with the largest topic that has it (so chapters stay
    whole, and the topics that are excerpts of them vanish).
    """
    return {name: sentences for name, sentences in _all_sentences().items() if split_of(name) == split}


def split_of(topic: str) -> str:
    """The split that a topic belongs to, "train" or "test"."""
    return "test" if topic in TEST_TOPICS else "train"


@cache
def _all_sentences() -> dict[str, tuple[str, ...]]:
    from pydoc_data.topics import topics

    seen: set[str] = set()
    kept: dict[str, tuple[str, ...]] = {}
    for name, text in sorted(topics.items(), key=lambda item: (-len(item[1]), item[0])):
        sentences = []
        for sentence in prose_sentences(text):
            letters = "".join(filter(str.isalpha, sentence)).lower()
            if letters not in seen:
                seen.add(letters)
                sentences.append(sentence)
        if sentences:
            kept[name] = tuple(sentences)
    return dict(sorted(kept.items()))


def prose_sentences(text: str) -> list[str]:
    """The English sentences of one topic, in order, without markup; what is code, a table or a heading is left out."""
    return [
        sentence
        for paragraph in _paragraphs(text)
        for sentence in split_sentences(_without_marks(paragraph))
        if _is_english(sentence)
    ]


def _paragraphs(text: str) -> Iterator[str]:
    """Blocks between empty lines that may be prose: no heading, grammar, table, nor an example after a colon."""
    example_indent: int | None = None
    previous_indent, announced = 0, False
    for block in re.split(r"\n\s*\n(?=\s*\S)", text.strip("\n")):
        lines = [_LIST_MARK.sub(lambda mark: " " * len(mark[0]), line) for line in block.strip("\n").split("\n")]
        indent = _indent(lines[0])
        if announced and indent > previous_indent:
            example_indent = indent
        elif example_indent is not None and indent < example_indent:
            example_indent = None
        if example_indent is not None:
            announced = False
            continue
        last = lines[-1].strip()
        announced, previous_indent = last.endswith(":") and not _ADMONITION.fullmatch(last), indent
        if _NOT_PROSE.search(block) or any(_UNDERLINE.fullmatch(line.strip()) for line in lines):
            continue
        if len(lines) > 1 and _indent(lines[1]) > indent:
            # A term and, deeper, its explanation.
            lines = lines[1:]
        yield "\n".join(lines)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _without_marks(paragraph: str) -> str:
    text = " ".join(_BROKEN_HYPHEN.sub("-", paragraph).split())
    text = _EMPHASIS.sub(r"\2", _LITERAL.sub(r"\1", text))
    for mark in (_VERSION_MARK, _LABEL, _CROSS_REFERENCE):
        text = mark.sub("", text)
    return text


def _is_english(sentence: str) -> bool:
    if not _SENTENCE.fullmatch(sentence) or _CODE_CHARACTER.search(sentence.replace("()", "")):
        return False
    if sentence.startswith(("See ", "Source code:")):
        return False
    words = sentence.split()
    num_words = sum(bool(_WORD.fullmatch(word.strip(_AROUND_WORD))) for word in words)
    return len(words) >= _FEWEST_WORDS and num_words >= _SMALLEST_SHARE_OF_WORDS * len(words)
