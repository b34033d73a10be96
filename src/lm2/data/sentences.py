"""Running text into clean sentences: paragraphs of a plain-text book, and the sentences of a paragraph.

BABILong cuts its books with an untrained `nltk.PunktSentenceTokenizer` (Kuratov et al. 2024, babilong_utils.py): a
sentence ends at every `.`, `!` or `?` before white space, closing quotes included, except after an initial. Ours needs
no nltk and deviates where that rule tears sentences apart: no end after a title such as `Mr.`, after an abbreviation
such as `e.g.`, or before a lower-case letter.
"""

import re
from collections.abc import Iterator

# A full stop after these is never an end.
_TITLES = frozenset(
    {"adm", "brig", "capt", "cf", "col", "dr", "gen", "gov", "hon", "lieut", "lt", "maj", "messrs", "mgr", "mlle"}
    | {"mme", "mr", "mrs", "ms", "mt", "prof", "rev", "sen", "sergt", "sgt", "st", "ste", "supt", "viz", "vs"}
)
# After these it is no end before a number: `No. 5`, but not `No. He stayed.`
_BEFORE_NUMBER = frozenset({"ch", "chap", "fig", "figs", "no", "nos", "op", "p", "pp", "sec", "vol", "vols"})
# `J`, `U.S`, `e.g`, `p.m`: what stands before the last full stop of initials and of most abbreviations.
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")

# Straight and curly quotes, guillemets, brackets; a dash may open speech.
OPENING = "\"'\u201c\u2018\u00ab([\u2014"
CLOSING = "\"'\u201d\u2019\u00bb)]"
_POSSIBLE_END = re.compile(rf"[.!?…][{re.escape(CLOSING)}]* (?=[{re.escape(OPENING)}]*([^\W_]))")

_PARAGRAPH_BREAK = re.compile(r"\n[^\S\n]*(?:\n[^\S\n]*)+")
_GUTENBERG_START = re.compile(r"^\*\*\* ?START OF TH[^\n]*\n", re.MULTILINE)
_GUTENBERG_END = re.compile(r"^\*\*\* ?END OF TH", re.MULTILINE)
_BRACKETED_MARK = re.compile(
    r"\[\s*(?:Illustration|Footnote|Sidenote|Transcriber)\b(?:[^\[\]]|\[[^\[\]]*\])*\]", re.IGNORECASE
)
_EMPHASIS = re.compile(r"(?<!\w)_([^_]+)_(?!\w)")
_NUMBERED_HEADING = re.compile(
    r"(?:act|book|canto|chapter|letter|part|scene|section|stave|volume) (?:the )?\w+[.:—-]", re.IGNORECASE
)
_LONGEST_HEADING_CHARACTERS = 100
# What a paragraph of prose may end with: a sentence's end, or a pause before what somebody says.
_PROSE_END = re.compile(rf"[.!?…:;,—-][{re.escape(CLOSING)}]*$")


def split_sentences(paragraph: str) -> list[str]:
    """Cuts one paragraph into its sentences, in order.

    Joined by single spaces they are the paragraph with its white space collapsed, so nothing is lost. Ours, close to
    an untrained Punkt (the module's text says where it differs).
    """
    text = " ".join(paragraph.split())
    sentences = []
    start = 0
    for match in _POSSIBLE_END.finditer(text):
        if match[1].islower() or (match[0] == ". " and _is_abbreviation(_last_word(text, match.start()), match[1])):
            continue
        end = match.end() - 1
        sentences.append(text[start:end])
        start = end + 1
    if start < len(text):
        sentences.append(text[start:])
    return sentences


def _last_word(text: str, end: int) -> str:
    return text[text.rfind(" ", 0, end) + 1 : end].lstrip(OPENING)


def _is_abbreviation(word: str, follower: str) -> bool:
    lower = word.lower()
    if lower in _TITLES or _INITIALS.fullmatch(word):
        return True
    return lower in _BEFORE_NUMBER and follower.isdigit()


def book_sentences(text: str) -> list[str]:
    """The sentences of a plain-text book, in order, each on one line.

    Lines inside a paragraph are joined. Left out: what lies outside Project Gutenberg's start and end lines, headings,
    tables of contents, bracketed marks such as `[Illustration]`, and the underscores of emphasis.
    """
    return [sentence for paragraph in _book_paragraphs(text) for sentence in split_sentences(paragraph)]


def _book_paragraphs(text: str) -> Iterator[str]:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if start := _GUTENBERG_START.search(text):
        text = text[start.end() :]
    if end := _GUTENBERG_END.search(text):
        text = text[: end.start()]
    text = _BRACKETED_MARK.sub("", text)
    for block in _PARAGRAPH_BREAK.split(text):
        paragraph = _EMPHASIS.sub(r"\1", " ".join(block.split()))
        if _is_prose(paragraph):
            yield paragraph


def _is_prose(paragraph: str) -> bool:
    if not _PROSE_END.search(paragraph) or paragraph.upper() == paragraph:
        return False
    return len(paragraph) > _LONGEST_HEADING_CHARACTERS or not _NUMBERED_HEADING.match(paragraph)
