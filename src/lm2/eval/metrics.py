"""Three rules that decide whether an output answers a bAbI question, side by side: published numbers use all three.

- `exact`: the answer that the output states equals the target. Ours, and the headline.
- `official`: the rule of the BABILong repository (Kuratov et al. 2024, babilong/metrics.py), with its faults. It looks
  for labels as substrings, and "one" lies inside "none", so on qa7 the gold answers themselves get 53%.
- `substring`: the older rule of the same authors (babilong_utils.py): the target occurs anywhere in the first sentence.
  On qa7 the constant answer "none" gets 96%.
"""

import re
import string
from collections.abc import Callable
from functools import lru_cache

_PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
_YES_NO = ("no", "yes")
_DIRECTION_PAIRS = ("e,e", "e,n", "e,s", "n,e", "n,n", "n,w", "s,e", "s,s", "s,w", "w,n", "w,s", "w,w")

# Labels per task, as in babilong/metrics.py (a fact of the official rule). qa8 lists are made of several labels.
TASK_LABELS: dict[str, tuple[str, ...]] = {
    "qa1": _PLACES,
    "qa2": _PLACES,
    "qa3": _PLACES,
    "qa4": _PLACES,
    "qa5": ("Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk"),
    "qa6": _YES_NO,
    "qa7": ("none", "one", "three", "two"),
    "qa8": ("apple", "football", "milk", "nothing"),
    "qa9": _YES_NO,
    "qa10": ("maybe", "no", "yes"),
    "qa11": _PLACES,
    "qa12": _PLACES,
    "qa13": _PLACES,
    "qa14": ("bedroom", "cinema", "kitchen", "office", "park", "school"),
    "qa15": ("cat", "mouse", "sheep", "wolf"),
    "qa16": ("gray", "green", "white", "yellow"),
    "qa17": _YES_NO,
    "qa18": _YES_NO,
    "qa19": _DIRECTION_PAIRS,
    "qa20": ("bedroom", "bored", "garden", "hungry", "kitchen", "thirsty", "tired"),
}

_LOWER_LABELS = {task: frozenset(map(str.lower, labels)) for task, labels in TASK_LABELS.items()}

# The sentence that the official prompt of a task demands, with the place in it that is the answer.
_ANSWER_SENTENCES = {
    "qa1": re.compile(r"the most recent location of .+? is (.+)"),
    "qa2": re.compile(r"the .+? is in (.+)"),
    "qa3": re.compile(r"before the .+? the .+? was in (.+)"),
}
_ANSWER_MARK = re.compile(r"\s*answer\s*:\s*")
_SENTENCE_END = re.compile(r"[.!?\n\r]")
_LIST_GAP = re.compile(r",|\band\b")
_ARTICLE = re.compile(r"(?:the|an|a)\s+")
_MARKS = string.punctuation + string.whitespace + "\u2018\u2019\u201c\u201d"


# Few targets and guesses are judged again and again.
@lru_cache(maxsize=4096)
def state_answer(text: str, task: str) -> tuple[str, ...]:
    """The answer that an output, or a target, states: its items, normalised.

    In this order: lower case; a leading "Answer:" dropped; the first line, and of it the first sentence; from the
    sentences that the official prompts of qa1 to qa3 demand ("The most recent location of Mary is garden"), the place;
    split at commas, and for the lists of qa8 at "and" too; from each item punctuation at its ends, a leading article
    and double spaces dropped. The items of qa8 are sorted, because they are a set; those of qa19 are a path and keep
    their order. Ours, after the normalisation of SQuAD (Rajpurkar et al. 2016).

    Raises:
        ValueError: no such task.
    """
    check_task(task)
    text = text.lower().strip()
    text = text[mark.end() :] if (mark := _ANSWER_MARK.match(text)) else text
    text = _SENTENCE_END.split(text, maxsplit=1)[0]
    if task in _ANSWER_SENTENCES and (sentence := _ANSWER_SENTENCES[task].fullmatch(text.strip(_MARKS))):
        text = sentence[1]
    items = tuple(map(_strip_item, _LIST_GAP.split(text) if task == "qa8" else text.split(",")))
    if task == "qa8":
        # An empty item is the gap in ", and".
        return tuple(sorted(filter(None, items)))
    return items


def _strip_item(item: str) -> str:
    item = item.strip(_MARKS)
    item = item[article.end() :] if (article := _ARTICLE.match(item)) else item
    return " ".join(item.strip(_MARKS).split())


def is_exact(target: str, output: str, question: str, task: str) -> bool:
    """Whether the output states the target and nothing else; see `state_answer`. The question plays no part."""
    return state_answer(output, task) == state_answer(target, task)


def is_official(target: str, output: str, question: str, task: str) -> bool:
    """The rule of babilong/metrics.py: the target is the only label of the task in the first sentence of the output.

    Labels that the question names do not count. A target with a comma and more than three characters (a list of qa8)
    needs each of its items and no other label. Labels are found as substrings of the lower-cased text.

    Raises:
        ValueError: no such task.
    """
    check_task(task)
    labels = _LOWER_LABELS[task]
    target, question, output = target.lower(), question.lower(), _first_sentence(output)
    found = {label for label in labels if label in output and label not in question}
    if "," in target and len(target) > 3:
        items = target.split(",")
        return found.issuperset(items) and len(found) == len(items)
    return found == {target}


def is_substring(target: str, output: str, question: str, task: str) -> bool:
    """The older rule (babilong_utils.py): the target is a substring of the output's first sentence, case ignored.

    Raises:
        ValueError: no such task.
    """
    check_task(task)
    return target.lower() in _first_sentence(output)


def _first_sentence(output: str) -> str:
    output = output.lower()
    for end in (".", "<context>", "<example>"):
        output = output.partition(end)[0]
    # The official rule cuts at "Question" too, but by then its text is lower-case, so it never does.
    return output


# The headline comes first.
METRICS: dict[str, Callable[[str, str, str, str], bool]] = {
    "exact": is_exact,
    "official": is_official,
    "substring": is_substring,
}


def check_task(task: str) -> None:
    """Raises ValueError when `task` is not "qa1" to "qa20"."""
    if task not in TASK_LABELS:
        raise ValueError(f"task is {task!r}, but must be qa1 to qa20")


def check_metric(metric: str) -> None:
    """Raises ValueError when `metric` is none of METRICS."""
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}, but must be one of {', '.join(METRICS)}")
