"""The solver against the real bAbI files, against the simulator, and on stories whose answers are plain to see."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from toy_data import shared_data

from lm2.data.babi.reader import find_task_file, read_stories
from lm2.data.babi.simulator import make_stories
from lm2.data.babi.solver import Answer, solve
from lm2.data.babi.story import TASK_NAMES, Question, Statement, Story

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Per task; benchmarks/babi_agreement.py has 100,000.
NUM_SIMULATED = 500

# Questions of en-10k on which the solver and the data agree, where that is not all of them: task -> train, test.
AGREED_ANSWERS = {
    # "What did Bill give to Jeff?" after two such gifts: the solver takes the latest, the data now and then the first.
    5: (9980, 998),
}
AGREED_SUPPORTS = {
    # The same questions.
    5: (9980, 998),
    # Several pairs of facts lead to the answer, and which one the data name is chance.
    18: (9554, 958),
}


def questions_of(story: Story) -> list[Question]:
    return [line for line in story.lines if isinstance(line, Question)]


def ask(task: int, *lines: str) -> list[Answer | None]:
    """Solves a story given line by line; a line with a question mark is a question with a wrong answer."""
    parsed = [Question(line, "wrong", (1,)) if "?" in line else Statement(line) for line in lines]
    return solve(Story(task, tuple(parsed)))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("task", TASK_NAMES)
def test_solver_agrees_with_the_real_data(task, split):
    answers = supports = total = 0
    for story in read_stories(find_task_file(shared_data("babi/en-10k"), task, split)):
        for question, answer in zip(questions_of(story), solve(story), strict=True):
            assert answer is not None
            total += 1
            answers += answer.text == question.answer
            supports += answer.support == question.support
    assert total == {"train": 1925 if task == 3 else 10_000, "test": 1000}[split]
    place = ("train", "test").index(split)
    assert answers == AGREED_ANSWERS.get(task, (total, total))[place]
    assert supports == AGREED_SUPPORTS.get(task, (total, total))[place]


@pytest.mark.parametrize("task", TASK_NAMES)
def test_simulator_and_solver_agree(task):
    checked = 0
    for story in make_stories(task, seed=20):
        for question, answer in zip(questions_of(story), solve(story), strict=True):
            checked += 1
            if answer != Answer(question.answer, question.support):
                assert names_another_pair(story, question, answer), (story, question, answer)
        if checked >= NUM_SIMULATED:
            break


def names_another_pair(story: Story, question: Question, answer: Answer | None) -> bool:
    """Whether the story names other facts than the solver, and they alone lead to the same answer."""
    if story.task != 18 or answer is None or answer.text != question.answer:
        return False
    named = [story.lines[number - 1] for number in question.support]
    return solve(Story(18, (*named, Question(question.text, "", ())))) == [Answer(question.answer, (1, 2))]


def test_the_long_check_counts_what_agrees(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import babi_agreement

    path = tmp_path / "agreement.json"
    assert babi_agreement.main(["--questions", "200", "--tasks", "1,18", "--out", str(path)]) == 0
    results = json.loads(path.read_text())
    assert {"commit", "seed", "machine"} <= set(results)
    places, sizes = results["tasks"]
    assert places["questions"] == places["answers_agree"] == places["supports_agree"] == 200
    assert sizes["questions"] == sizes["answers_agree"] == 200 > sizes["supports_agree"]
    assert re.search(r"^qa1 +200 +100\.000 +100\.000 +0\.000$", capsys.readouterr().out, re.MULTILINE)


def test_the_long_check_fails_on_a_wrong_answer(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import babi_agreement

    def wrong_once(task, seed):
        for index, story in enumerate(make_stories(task, seed)):
            *lines, last = story.lines
            yield Story(task, (*lines, replace(last, answer="nowhere"))) if index == 3 else story

    monkeypatch.setattr(babi_agreement, "make_stories", wrong_once)
    path = tmp_path / "agreement.json"
    assert babi_agreement.main(["--questions", "100", "--tasks", "1", "--out", str(path)]) == 1
    (row,) = json.loads(path.read_text())["tasks"]
    assert (row["questions"], row["answers_agree"], row["supports_agree"]) == (100, 99, 100)
    (example,) = row["examples"]
    assert example["story"] == 3
    assert example["simulator"][0] == "nowhere" != example["solver"][0]
    assert "disagreements in qa1" in capsys.readouterr().out


# Stories of one family each, with what they tell of and what they leave open.


@pytest.mark.parametrize(
    ("task", "told", "question", "expected"),
    [
        (1, ["Ann went to the shed.", "Ann moved to the barn."], "Where is Ann? ", ("barn", (2,))),
        (1, ["Ann went to the shed."], "Where is Bob? ", None),
        (6, ["Ann went to the shed.", "Ann got the key there."], "Is Ann in the shed? ", ("yes", (1,))),
        (6, ["Ann went to the shed."], "Is Ann in the barn? ", ("no", (1,))),
        (9, ["Ann is no longer in the shed."], "Is Ann in the shed? ", ("no", (1,))),
        (9, ["Ann is not in the shed."], "Is Ann in the barn? ", None),
        (9, ["Ann is not in the shed.", "Ann is in the shed."], "Is Ann in the shed? ", ("yes", (2,))),
        (10, ["Ann is either in the shed or the barn."], "Is Ann in the shed? ", ("maybe", (1,))),
        (10, ["Ann is either in the shed or the barn."], "Is Ann in the barn? ", ("maybe", (1,))),
        (10, ["Ann is either in the shed or the barn."], "Is Ann in the yard? ", ("no", (1,))),
        (10, ["Ann is either in the shed or the shed."], "Is Ann in the shed? ", ("maybe", (1,))),
        (10, ["Ann is either in the shed or the barn."], "Where is Ann? ", None),
        (11, ["Ann went to the shed.", "Then she moved to the barn."], "Where is Ann? ", ("barn", (1, 2))),
        (12, ["Ann and Bob went to the shed."], "Where is Bob? ", ("shed", (1,))),
        (13, ["Ann and Bob went to the shed.", "Then they moved to the barn."], "Where is Ann? ", ("barn", (1, 2))),
        (2, ["Ann got the key there.", "Ann went to the shed."], "Where is the key? ", ("shed", (1, 2))),
        (2, ["Ann got the key there."], "Where is the key? ", None),
        (
            2,
            ["Ann went to the shed.", "Ann got the key there.", "Ann left the key.", "Ann moved to the barn."],
            "Where is the key? ",
            ("shed", (3, 1)),
        ),
        (
            3,
            ["Ann got the key.", "Ann went to the shed.", "Ann went to the barn.", "Ann went to the shed."],
            "Where was the key before the shed? ",
            ("barn", (1, 4, 3)),
        ),
        (
            3,
            ["Ann got the key.", "Ann went to the shed.", "Ann went to the barn.", "Ann left the key there."],
            "Where was the key before the shed? ",
            None,
        ),
        (
            3,
            [
                *("Ann got the key.", "Ann went to the shed.", "Ann left the key.", "Bob went to the shed."),
                *("Bob took the key.", "Bob went to the barn."),
            ],
            "Where was the key before the barn? ",
            ("shed", (5, 6, 2)),
        ),
        (5, ["Ann got the key there.", "Ann gave the key to Bob."], "Who gave the key? ", ("Ann", (2,))),
        (5, ["Ann got the key there.", "Ann gave the key to Bob."], "Who gave the key to Bob? ", ("Ann", (2,))),
        (5, ["Ann got the key there.", "Ann gave the key to Bob."], "Who received the key? ", ("Bob", (2,))),
        (5, ["Ann got the key there.", "Ann gave the key to Bob."], "Who did Ann give the key to? ", ("Bob", (2,))),
        (5, ["Ann got the key there.", "Ann gave the key to Bob."], "What did Ann give to Bob? ", ("key", (2,))),
        (5, ["Ann got the key there.", "Ann gave the key to Bob."], "What did Bob give to Ann? ", None),
        (7, ["Ann got the key there."], "How many objects is Ann carrying? ", ("one", (1,))),
        (7, ["Ann got the key there."], "How many objects is Bob carrying? ", None),
        (
            7,
            ["Ann got the key there.", "Ann took the pen there.", "Ann gave the key to Bob."],
            "How many objects is Ann carrying? ",
            ("one", (1, 2, 3)),
        ),
        (
            8,
            ["Ann got the key there.", "Ann got the pen there.", "Ann left the key.", "Ann took the key there."],
            "What is Ann carrying? ",
            ("key,pen", (1, 3, 4, 2)),
        ),
        (8, ["Ann got the key there.", "Ann dropped the key."], "What is Ann carrying? ", ("nothing", (1, 2))),
        (
            14,
            ["This evening Ann went to the shed.", "Ann moved to the barn yesterday."],
            "Where was Ann before the shed? ",
            ("barn", (1, 2)),
        ),
        (14, ["Yesterday Ann went to the shed."], "Where was Ann before the shed? ", None),
        (
            14,
            [
                *("Yesterday Ann went to the barn.", "This morning Ann went to the shed."),
                *("This afternoon Ann went to the yard.", "Ann went to the shed this evening."),
            ],
            "Where was Ann before the shed? ",
            ("yard", (4, 3)),
        ),
        (4, ["The shed is north of the barn."], "What is north of the barn?", ("shed", (1,))),
        (4, ["The shed is north of the barn."], "What is the shed north of?", ("barn", (1,))),
        (4, ["The shed is north of the barn."], "What is south of the shed?", ("barn", (1,))),
        (4, ["The shed is north of the barn."], "What is south of the barn?", None),
        (4, ["The shed is north of the barn.", "The yard is north of the barn."], "What is north of the barn?", None),
        (17, ["The cup is above the jar.", "The jar is above the pan."], "Is the pan below the cup?", ("yes", (2, 1))),
        (17, ["The cup is above the jar.", "The jar is above the pan."], "Is the cup below the pan?", ("no", (1, 2))),
        (
            17,
            ["The cup is above the red jar.", "The pan is to the left of the red jar."],
            "Is the cup to the right of the pan?",
            ("yes", (1, 2)),
        ),
        (
            17,
            ["The cup is above the jar.", "The jar is above the pan."],
            "Is the cup to the left of the pan?",
            ("no", (1, 2)),
        ),
        (17, ["The cup is above the jar.", "The pan is above the jar."], "Is the cup above the pan?", None),
        (17, ["The cup is above the jar.", "The pan is above the pot."], "Is the cup above the pan?", None),
        (
            18,
            ["The cup fits inside the jar.", "The pan is bigger than the jar."],
            "Does the cup fit in the pan?",
            ("yes", (2, 1)),
        ),
        (
            18,
            ["The cup fits inside the jar.", "The pan is bigger than the jar."],
            "Is the cup bigger than the pan?",
            ("no", (1, 2)),
        ),
        (18, ["The cup fits inside the jar.", "The pan fits inside the jar."], "Is the cup bigger than the pan?", None),
        (
            18,
            [
                *("The cup fits inside the jar.", "The jar fits inside the pan."),
                *("The jar fits inside the pan.", "The cup fits inside the jar."),
            ],
            "Does the cup fit in the pan?",
            ("yes", (3, 1)),
        ),
        (
            19,
            ["The shed is north of the barn.", "The yard is west of the shed."],
            "How do you go from the barn to the yard?",
            ("n,w", (1, 2)),
        ),
        (
            19,
            [
                *("The mill is north of the barn.", "The shed is east of the mill.", "The yard is east of the barn."),
                *("The farm is east of the yard.", "The dock is north of the farm.", "The dock is east of the shed."),
            ],
            "How do you go from the barn to the shed?",
            ("n,e", (1, 2)),
        ),
        (19, ["The shed is north of the barn."], "How do you go from the shed to the barn?", ("s", (1,))),
        (19, ["The shed is north of the barn."], "How do you go from the barn to the yard?", None),
        (15, ["Wolves are afraid of mice.", "Ann is a wolf."], "What is ann afraid of?", ("mouse", (2, 1))),
        (15, ["Cats are afraid of mice.", "Ann is a wolf."], "What is ann afraid of?", None),
        (16, ["Ann is a frog.", "Bob is a frog.", "Bob is red."], "What color is Ann?", ("red", (1, 2, 3))),
        (16, ["Ann is a frog.", "Bob is a swan.", "Bob is red."], "What color is Ann?", None),
        (16, ["Ann is a frog.", "Bob is a frog."], "What color is Ann?", None),
        (
            16,
            ["Bob is a frog.", "Eve is a frog.", "Eve is red.", "Bob is blue.", "Ann is a frog."],
            "What color is Ann?",
            ("red", (5, 2, 3)),
        ),
        (20, ["Ann is tired."], "Where will ann go?", ("bedroom", (1,))),
        (20, ["Ann is bored.", "Ann went to the garden."], "Why did ann go to the garden?", ("bored", (1,))),
        (20, ["Ann is thirsty.", "Ann took the milk there."], "Why did ann get the milk?", ("thirsty", (1,))),
        (20, ["Ann is thirsty."], "Why did ann get the apple?", None),
        (20, ["Ann is thirsty."], "Where will bob go?", None),
    ],
)
def test_rules_on_plain_stories(task, told, question, expected):
    assert ask(task, *told, question) == [expected and Answer(*expected)]


def test_questions_see_only_what_was_told_before_them():
    answers = ask(1, "Where is Ann? ", "Ann went to the shed.", "Where is Ann? ", "Ann went to the barn.")
    assert answers == [None, Answer("shed", (2,))]


@pytest.mark.parametrize(
    ("task", "lines", "message"),
    [
        (1, ["Ann went to the shed.", "Ann flew to the barn."], "task 1, line 2 of the story: 'Ann flew to the barn.'"),
        (1, ["Where was Ann?"], "line 1 of the story: 'Where was Ann"),
        (5, ["Who kept the key? "], "none of the forms that the task's questions have"),
        (15, ["Dogs are afraid of cats."], "'Dogs are afraid of cats.' has none of the forms"),
        (20, ["Ann is angry."], "'Ann is angry.' has none of the forms"),
        (2, ["Ann dropped the key."], "cannot be: nobody has the key"),
        (
            7,
            ["Ann got the key there.", "Bob took the key there."],
            "line 2 of the story: .* cannot be: Ann has the key",
        ),
        (8, ["Ann got the key there.", "Bob left the key."], "cannot be: Ann has the key"),
        (5, ["Ann got the key there.", "Bob gave the key to Ann."], "cannot be: Ann has the key"),
    ],
)
def test_what_no_rule_covers_is_refused(task, lines, message):
    with pytest.raises(ValueError, match=message):
        ask(task, *lines)
