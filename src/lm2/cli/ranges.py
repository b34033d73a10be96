"""Lists of tasks as a command line gives them."""

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
