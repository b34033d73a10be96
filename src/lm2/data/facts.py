"""Where the facts and questions of a context come from: the simulator, or files of the original data."""

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Protocol

from lm2.data.babi.reader import find_task_file, read_stories
from lm2.data.babi.simulator import make_story
from lm2.data.babi.story import Problem, Story, cut_at_questions

SPLITS = ("train", "test")

# Apart from all sample numbers, so that another try for one sample is no story of another sample.
_NEXT_TRY = 2**40


class Facts(Hashable, Protocol):
    """A source of stories. `name` is what it is called in reports."""

    @property
    def name(self) -> str: ...

    def story(self, task: int, index: int, attempt: int) -> Story:
        """A story for sample number `index`; another one for each attempt, should the first not fit."""

    def problems(self, task: int) -> tuple[Problem, ...] | None:
        """All questions that there are, in order; None where there is no end of them."""


@dataclass(frozen=True)
class SimulatedFacts:
    """Stories of the simulator: sample `index` is made from story `index` of an endless sequence.

    Train and test are sequences of seeds that no command line names, so they share no story with each other or with
    files of `lm2 data babi`, except where the world of a task is so small that chance repeats one.
    """

    seed: int
    split: str
    name: str = "simulator"
    _story_seed: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_split(self.split)
        digest = hashlib.sha256(f"babilong facts {self.split} {self.seed}".encode()).digest()
        object.__setattr__(self, "_story_seed", int.from_bytes(digest[:8], "big"))

    def story(self, task: int, index: int, attempt: int) -> Story:
        return make_story(task, self._story_seed, index + attempt * _NEXT_TRY)

    def problems(self, task: int) -> None:
        return None


class FileFacts:
    """Stories of a folder of original files (tasks_1-20_v1-2/en-10k), train or test, each file read once.

    Evaluation goes through the questions in the order of the file. `story` draws one with replacement.
    """

    def __init__(self, folder: Path, split: str, seed: int = 0) -> None:
        check_split(split)
        if not folder.is_dir():
            raise ValueError(f"facts is {str(folder)!r}, but must be 'simulator' or a folder of bAbI task files")
        self.name = folder.resolve().name
        self._folder, self._split, self._seed = folder, split, seed
        self._stories: dict[int, tuple[Story, ...]] = {}
        self._problems: dict[int, tuple[Problem, ...]] = {}

    def story(self, task: int, index: int, attempt: int) -> Story:
        stories = self._read(task)
        return stories[int(Random(f"story {self._seed} {task} {index} {attempt}").random() * len(stories))]

    def problems(self, task: int) -> tuple[Problem, ...]:
        if task not in self._problems:
            self._problems[task] = tuple(problem for story in self._read(task) for problem in cut_at_questions(story))
        return self._problems[task]

    def _read(self, task: int) -> tuple[Story, ...]:
        if task not in self._stories:
            path = find_task_file(self._folder, task, self._split)
            self._stories[task] = tuple(read_stories(path, task))
            if not self._stories[task]:
                raise ValueError(f"{path} holds no story")
        return self._stories[task]


def open_facts(spec: str, split: str, seed: int) -> Facts:
    """The source of facts that a command line names: "simulator", or a folder of original files.

    Raises:
        ValueError: neither; or an unknown split.
    """
    return SimulatedFacts(seed, split) if spec == "simulator" else FileFacts(Path(spec), split, seed)


def check_split(split: str) -> None:
    """Refuses a split that is not one.

    Raises:
        ValueError: neither train nor test.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, but must be {' or '.join(map(repr, SPLITS))}")
