"""The simulator of bAbI stories: the same stories for the same arguments, a world that holds together, its command."""

import hashlib
import os
import re
import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lm2.cli.main import app
from lm2.data.babi.simulator import make_stories, make_story
from lm2.data.babi.story import TASK_NAMES, Question, Statement, Story, cut_at_questions, format_story

_MOVE = re.compile(r"(\w+) (?:went to|journeyed to|travelled to|went back to|moved to) the (\w+)\.")
_GET = re.compile(r"(\w+) (?:picked up|got|took|grabbed) the (\w+)(?: there)?\.")
_DROP = re.compile(r"(\w+) (?:left|discarded|dropped|put down) the (\w+)(?: there)?\.")
_GIVE = re.compile(r"(\w+) (?:passed|gave|handed) the (\w+) to (\w+)\.")
_WHO_HAS_A_SPACE = {1, 2, 3, *range(5, 15)}

TASKS = pytest.mark.parametrize("task", TASK_NAMES)


def digest(task: int, num_stories: int = 40) -> str:
    text = "".join(format_story(make_story(task, 3, index)) for index in range(num_stories))
    return hashlib.sha256(text.encode()).hexdigest()


@TASKS
def test_stories_depend_on_the_arguments_only(task: int) -> None:
    in_order = list(islice(make_stories(task, 5), 8))
    assert [make_story(task, 5, index) for index in reversed(range(8))][::-1] == in_order
    assert len({format_story(story) for story in in_order}) == 8
    assert make_story(task, 6, 0) != in_order[0]


def test_other_processes_make_the_same_stories() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_babi_simulator as test; "
        "print(*(test.digest(task) for task in test.TASK_NAMES))"
    )
    outputs = set()
    for hash_seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.add(run.stdout)
    assert outputs == {" ".join(digest(task) for task in TASK_NAMES) + "\n"}


@TASKS
def test_lines_are_of_the_original_format(task: int) -> None:
    for story in islice(make_stories(task, 1), 100):
        assert story.task == task
        assert parse(task, format_story(story)) == story
        for number, line in enumerate(story.lines, 1):
            if isinstance(line, Question):
                assert line.text.endswith("? " if task in _WHO_HAS_A_SPACE else "?")
                assert len(set(line.support)) == len(line.support) > 0
                assert all(support < number for support in line.support)
                assert all(isinstance(story.lines[support - 1], Statement) for support in line.support)
            else:
                assert line.text.endswith(".")
        assert isinstance(story.lines[-1], Question)
        assert len(list(cut_at_questions(story))) == sum(isinstance(line, Question) for line in story.lines)


def parse(task: int, text: str) -> Story:
    lines: list[Statement | Question] = []
    for place, row in enumerate(text.splitlines(), 1):
        number, rest = row.split(" ", 1)
        assert number == str(place)
        question, *more = rest.split("\t")
        if more:
            lines.append(Question(question, more[0], tuple(int(support) for support in more[1].split(" "))))
        else:
            lines.append(Statement(question))
    return Story(task, tuple(lines))


@pytest.mark.parametrize("task", [1, 2, 3, 5, 6, 7, 8])
def test_persons_and_objects_move_as_they_can(task: int) -> None:
    """What the reader knows of places and holders is never contradicted, and answers follow from it."""
    for story in islice(make_stories(task, 2), 300):
        places: dict[str, str] = {}
        holders: dict[str, str | None] = {}
        lying: dict[str, str | None] = {}
        carried: dict[str, list[str]] = {}
        gifts: list[tuple[str, str, str]] = []
        for line in story.lines:
            if isinstance(line, Question):
                check_answer(task, line, places, holders, lying, carried)
                if task == 5:
                    check_gift(line, gifts)
                continue
            if match := _MOVE.fullmatch(line.text):
                person, place = match.groups()
                assert places.get(person) != place
                places[person] = place
            elif match := _GET.fullmatch(line.text):
                person, thing = match.groups()
                assert holders.get(thing) is None
                if lying.get(thing) and person in places:
                    assert places[person] == lying[thing]
                holders[thing], lying[thing] = person, None
                carried.setdefault(person, []).append(thing)
            elif match := _DROP.fullmatch(line.text):
                person, thing = match.groups()
                assert holders[thing] == person
                holders[thing], lying[thing] = None, places.get(person)
                carried[person].remove(thing)
            else:
                match = _GIVE.fullmatch(line.text)
                assert match is not None
                giver, thing, receiver = match.groups()
                assert holders[thing] == giver != receiver
                if giver in places and receiver in places:
                    assert places[giver] == places[receiver]
                gifts.append((giver, thing, receiver))
                holders[thing] = receiver
                carried[giver].remove(thing)
                carried.setdefault(receiver, []).append(thing)


def check_answer(
    task: int,
    question: Question,
    places: dict[str, str],
    holders: dict[str, str | None],
    lying: dict[str, str | None],
    carried: dict[str, list[str]],
) -> None:
    words = question.text.rstrip("? ").split()
    if task == 1:
        assert question.answer == places[words[-1]]
    elif task == 2:
        holder = holders[words[-1]]
        assert question.answer == (places[holder] if holder else lying[words[-1]])
    elif task == 3:
        assert question.answer != words[-1]
    elif task == 6:
        assert question.answer == ("yes" if places[words[1]] == words[-1] else "no")
    elif task == 7:
        assert question.answer == ("none", "one", "two", "three")[len(carried[words[4]])]
    elif task == 8:
        carried_things = [] if question.answer == "nothing" else question.answer.split(",")
        assert sorted(carried_things) == sorted(carried[words[2]])


def check_gift(question: Question, gifts: list[tuple[str, str, str]]) -> None:
    """The answer is of the latest gift that fits what the question names."""
    forms = {
        r"What did (?P<giver>\w+) give to (?P<receiver>\w+)\? ": "thing",
        r"Who gave the (?P<thing>\w+)\? ": "giver",
        r"Who gave the (?P<thing>\w+) to (?P<receiver>\w+)\? ": "giver",
        r"Who received the (?P<thing>\w+)\? ": "receiver",
        r"Who did (?P<giver>\w+) give the (?P<thing>\w+) to\? ": "receiver",
    }
    (asked,) = [(match.groupdict(), of) for form, of in forms.items() if (match := re.fullmatch(form, question.text))]
    named, of = asked
    told = [dict(zip(("giver", "thing", "receiver"), gift, strict=True)) for gift in gifts]
    assert question.answer == [gift for gift in told if named.items() <= gift.items()][-1][of]


def test_places_before_others_are_of_the_objects_last_way() -> None:
    """qa3: the answer is the place before the last time that the object came to the asked place."""
    for story in islice(make_stories(3, 4), 200):
        places: dict[str, str] = {}
        holders: dict[str, str | None] = {}
        histories: dict[str, list[str]] = {}
        for line in story.lines:
            if isinstance(line, Question):
                thing, place = re.fullmatch(r"Where was the (\w+) before the (\w+)\? ", line.text).groups()
                history = histories[thing]
                last = len(history) - 1 - history[::-1].index(place)
                assert line.answer == history[last - 1]
                continue
            if match := _MOVE.fullmatch(line.text):
                person, place = match.groups()
                places[person] = place
                moved = [thing for thing, holder in holders.items() if holder == person]
            elif match := _GET.fullmatch(line.text):
                person, thing = match.groups()
                holders[thing], moved = person, [thing]
            else:
                person, thing = _DROP.fullmatch(line.text).groups()
                holders[thing], moved = None, [thing]
            for thing in moved:
                history = histories.setdefault(thing, [])
                if person in places and history[-1:] != [places[person]]:
                    history.append(places[person])


def test_lists_go_by_the_first_taking() -> None:
    """qa8: objects, and with each its lines, in the order in which their person first took them."""
    num_lists = 0
    for story in islice(make_stories(8, 0), 600):
        lines_of: dict[str, dict[str, list[int]]] = {}
        for number, line in enumerate(story.lines, 1):
            if isinstance(line, Question):
                of_person = lines_of[line.text.split()[2]]
                assert line.support == tuple(place for lines in of_person.values() for place in lines)
                held = [thing for thing, lines in of_person.items() if len(lines) % 2 == 1]
                assert line.answer == (",".join(held) or "nothing")
                num_lists += line.support != tuple(sorted(line.support))
            elif match := _GET.fullmatch(line.text) or _DROP.fullmatch(line.text):
                lines_of.setdefault(match[1], {}).setdefault(match[2], []).append(number)
    assert num_lists > 0


@pytest.mark.parametrize("task", [5, 7])
def test_who_just_received_gives(task: int) -> None:
    num_pairs = 0
    for story in islice(make_stories(task, 0), 200):
        gifts = [_GIVE.fullmatch(line.text) for line in story.lines if isinstance(line, Statement)]
        for first, second in pairwise(gifts):
            if first and second:
                assert second[1] == first[3]
                num_pairs += 1
    assert num_pairs > 10


def test_ways_lead_to_their_ends() -> None:
    """qa19: the told neighbours form a tree, and the answer's steps lead along the supports."""
    steps = {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}
    for story in islice(make_stories(19, 0), 300):
        ways: dict[tuple[str, str], str] = {}
        facts = []
        for line in story.lines[:5]:
            place, direction, other = re.fullmatch(r"The (\w+) is (\w+) of the (\w+)\.", line.text).groups()
            facts.append((place, other))
            ways[other, direction[0]] = place
            back = next(name for name, (x, y) in steps.items() if (-x, -y) == steps[direction])
            assert (place, back[0]) not in ways
            ways[place, back[0]] = other
        question = story.lines[5]
        start, end = re.fullmatch(r"How do you go from the (\w+) to the (\w+)\?", question.text).groups()
        middle = ways[start, question.answer[0]]
        assert ways[middle, question.answer[2]] == end != start
        assert [set(facts[line - 1]) for line in question.support] == [{start, middle}, {middle, end}]
        assert len({place for fact in facts for place in fact}) == 6


def test_sizes_are_in_one_order() -> None:
    """qa18: no fact contradicts the others, and each answer follows from its two facts."""
    for story in islice(make_stories(18, 0), 300):
        smaller: dict[int, tuple[str, str]] = {}
        for number, line in enumerate(story.lines, 1):
            if match := re.fullmatch(r"The (.+) fits inside the (.+)\.", line.text):
                smaller[number] = match[1], match[2]
            elif match := re.fullmatch(r"The (.+) is bigger than the (.+)\.", line.text):
                smaller[number] = match[2], match[1]
            else:
                if match := re.fullmatch(r"Does the (.+) fit in the (.+)\?", line.text):
                    asked = match[1], match[2]
                else:
                    match = re.fullmatch(r"Is the (.+) bigger than the (.+)\?", line.text)
                    asked = match[2], match[1]
                if line.answer == "no":
                    asked = asked[::-1]
                first, second = (smaller[support] for support in line.support)
                if first[1] != second[0]:
                    first, second = second, first
                assert first[1] == second[0]
                assert asked == (first[0], second[1])
        assert not any((big, small) in smaller.values() for small, big in smaller.values())


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="task is 21, but must be 1 to 20"):
        make_story(21, 0, 0)
    with pytest.raises(ValueError, match="seed is -1"):
        make_story(1, -1, 0)
    with pytest.raises(ValueError, match="index is -1"):
        make_story(1, 0, -1)


def run_babi(*arguments: object):
    return CliRunner().invoke(app, ["data", "babi", *map(str, arguments)])


def test_command_writes_original_files(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    result = run_babi("--task", "1,19-20", "--stories", 3, "--seed", 4, "--split", "test", "--out", out)
    assert result.exit_code == 0, result.output
    names = [f"qa{task}_{TASK_NAMES[task]}_test.txt" for task in (1, 19, 20)]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    expected = "".join(format_story(make_story(19, 4, index)) for index in range(3))
    assert (out / names[1]).read_text(encoding="utf-8") == expected


def test_command_keeps_files_unless_told(tmp_path: Path) -> None:
    path = tmp_path / f"qa2_{TASK_NAMES[2]}_train.txt"
    path.write_text("mine")
    result = run_babi("--task", "1-3", "--stories", 1, "--out", tmp_path)
    assert result.exit_code == 2
    assert "--overwrite" in result.stderr
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]
    assert run_babi("--task", "2", "--stories", 1, "--out", tmp_path, "--overwrite").exit_code == 0
    assert path.read_text() == format_story(make_story(2, 0, 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "21", "--stories", 1], "21"),
        (["--task", "1,x", "--stories", 1], "x"),
        (["--task", "3-1", "--stories", 1], "3-1"),
        (["--stories", 0], "--stories is 0"),
        (["--stories", 1, "--seed", -1], "--seed is -1"),
        (["--stories", 1, "--split", "dev"], "--split is 'dev'"),
    ],
)
def test_command_names_mistakes(tmp_path: Path, arguments: list[object], message: str) -> None:
    result = run_babi(*arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
