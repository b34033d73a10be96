"""Lists of numbers as a command line gives them."""

import re

_PART = re.compile(r"([0-9]+)(?:-([0-9]+))?")
_LAST_TASK = 20


def parse_tasks(text: str) -> tuple[int, ...]:
    """The tasks in a list such as "1-5,7": numbers from 1 to 20 and ranges of them, in the order given.

    Raises:
        ValueError: something else, a task that is not there, a range that decreases, or a task named twice.
    """
    tasks: list[int] = []
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"tasks is {text!r}, but must be numbers from 1 to {_LAST_TASK} or ranges, such as 1-5,7")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= _LAST_TASK:
            raise ValueError(f"tasks has {part.strip()!r}, but tasks are 1 to {_LAST_TASK}, and ranges do not decrease")
        tasks += range(first, last + 1)
    twice = {task for task in tasks if tasks.count(task) > 1}
    if twice:
        raise ValueError(f"tasks is {text!r}, which names {min(twice)} twice; name it once")
    return tuple(tasks)


def parse_numbers(option: str, text: str, what: str, at_least: int = 1) -> list[int]:
    """The whole numbers in a comma-separated list such as "1000,16000", in the order given.

    Args:
        option: the option that was given, for messages: --lengths.
        text: its value.
        what: what it takes, with an example, for messages: numbers of tokens, such as 1000,16000.
        at_least: the smallest number allowed.

    Raises:
        ValueError: something else than whole numbers, or one below `at_least`.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= at_least for part in parts):
        raise ValueError(f"{option} is {text!r}, but must be {what}, each at least {at_least}")
    return [int(part) for part in parts]
