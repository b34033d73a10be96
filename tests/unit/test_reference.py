"""Published numbers: every mean that the sources state follows from the cells, or is listed as an error."""

import json
import math
from collections import Counter
from importlib import resources

import pytest
from toy_data import shared_data

from lm2.data.babi.reader import find_task_file, read_stories
from lm2.data.babi.story import cut_at_questions
from lm2.eval.babilong import TASK_GROUPS
from lm2.eval.metrics import TASK_LABELS
from lm2.eval.reference import (
    ReferenceModel,
    chance_by_task,
    load_reference,
    parse_reference,
    reference_names,
)

TEN = TASK_GROUPS["qa1-10"]
FIVE = TASK_GROUPS["qa1-5"]
# Means over qa1 to qa10 by length, as recomputed outside this project from the paper's table 3.
PAPER_MEANS = {
    "Llama-3.2-1.2B": "40.7 39.5 38.6 36.8 32.5 31.1 29.6 23.3",
    "Llama-3.2-3.2B": "52.6",
    "Llama-3.2-1.2B-RAG": "40.6 37.8 37.3 33.5 33.9 30.1 31.8 29.4",
    "vanilla-Llama-1.7B": "75.0 50.6 46.3 42.2 35.8 33.6 34.4 28.9 29.6",
    "RMT-1.7B": "76.4 47.9 51.4 38.4 37.7 35.1 34.7 34.7 34.9",
    "LM2-1.7B": "92.5 78.3 65.8 55.9 46.0 40.0 38.1 35.4 35.0",
}
LONG = ("8k", "16k", "32k", "64k")


def paper() -> dict[str, ReferenceModel]:
    return {model.name: model for model in load_reference("paper").models}


def mean(model: ReferenceModel, tasks, lengths) -> float:
    places = [model.lengths.index(length) for length in lengths]
    return (
        math.fsum(model.accuracy_percent[task][place] for task in tasks for place in places) / len(tasks) / len(places)
    )


def rounds_to(value: float, printed: float) -> bool:
    """Whether it is printed so with one decimal, halves rounded up or down."""
    return abs(value - printed) < 0.0501


def test_names():
    names = reference_names()
    assert names[0] == "paper"
    assert {"armt", "rmt", "mamba", "gpt-4", "llama-3.1-70b", "gemini-1.5-pro", "gemini-3-flash"} == set(names[1:])
    for name in names:
        assert load_reference(name).name == name
    with pytest.raises(ValueError, match=r"reference is 'titans', but must be one of paper, armt, gemini"):
        load_reference("titans")
    with pytest.raises(ValueError, match="reference is 'chance'"):
        load_reference("chance")


@pytest.mark.parametrize("name", list(PAPER_MEANS))
def test_means_of_the_paper_by_length(name):
    model = paper()[name]
    assert tuple(model.accuracy_percent) == TEN
    found = [f"{mean(model, TEN, [length]):.1f}" for length in model.lengths]
    assert found == PAPER_MEANS[name].split()


@pytest.mark.parametrize(
    ("name", "tasks", "lengths", "stated"),
    [
        ("Llama-3.2-1.2B", TEN, LONG, 29.12),
        ("Llama-3.2-1.2B-RAG", TEN, LONG, 32.33),
        ("vanilla-Llama-1.7B", TEN, LONG, 33.18),
        ("RMT-1.7B", TEN, LONG, 35.55),
        ("LM2-1.7B", TEN, LONG, 39.88),
        ("Llama-3.2-1.2B-RAG", TEN, (*LONG, "128k"), 31.74),
        ("vanilla-Llama-1.7B", TEN, (*LONG, "128k"), 32.46),
        ("RMT-1.7B", TEN, (*LONG, "128k"), 35.42),
        ("LM2-1.7B", TEN, (*LONG, "128k"), 38.90),
        ("LM2-1.7B", FIVE, ["4k"], 48.6),
        ("LM2-1.7B", FIVE, ["128k"], 17.0),
        ("RMT-1.7B", FIVE, ["4k"], 23.6),
    ],
)
def test_means_of_the_paper_over_lengths(name, tasks, lengths, stated):
    assert mean(paper()[name], tasks, lengths) == pytest.approx(stated, abs=0.0051)


def test_means_without_qa7_are_as_the_notes_say():
    without = TASK_GROUPS["qa1-10 without qa7"]
    means = {name: mean(model, without, LONG) for name, model in paper().items() if name != "Llama-3.2-3.2B"}
    [note] = [note for note in load_reference("paper").notes if note.startswith("Without qa7")]
    assert len(means) == 5
    for name, value in means.items():
        assert f"{value:.1f} for {name}" in note


def test_ratios_of_the_abstract_are_as_the_notes_say():
    short = ("0k", "1k", "2k", "4k")
    lm2, rmt, llama = (mean(paper()[name], TEN, short) for name in ("LM2-1.7B", "RMT-1.7B", "Llama-3.2-1.2B"))
    [note] = [note for note in load_reference("paper").notes if note.startswith("The improvements")]
    assert f"{100 * (lm2 / rmt - 1):.1f}% and {100 * (lm2 / llama - 1):.1f}%" in note


def test_printed_table_of_means():
    table = load_reference("paper").printed_tables[0]
    errors = {(error.row, error.column) for error in table.errors}
    for name, *values in table.rows:
        for column, printed in zip(table.columns[1:], values, strict=True):
            lengths = LONG if column == ">=8k" else [column]
            if printed is None:
                assert column not in paper()[name].lengths
            else:
                is_right = rounds_to(mean(paper()[name], TEN, lengths), printed)
                assert is_right != ((name, column) in errors), (name, column)


def test_printed_row_of_long_lengths_is_the_mean_to_64k_but_for_the_listed_errors():
    table = load_reference("paper").printed_tables[1]
    errors = {(error.row, error.column): error for error in table.errors}
    num_right = num_right_with_128k = 0
    for name, *values in table.rows:
        model = paper()[name]
        for column, printed in zip(table.columns[1:], values, strict=True):
            tasks = TEN if column == "mean" else [column]
            value = mean(model, tasks, LONG)
            if (name, column) in errors:
                assert not rounds_to(value, printed)
                assert rounds_to(value, errors.pop((name, column)).from_cells)
            else:
                assert rounds_to(value, printed), (name, column)
            if column != "mean":
                num_right += rounds_to(value, printed)
                if "128k" in model.lengths:
                    num_right_with_128k += rounds_to(mean(model, tasks, (*LONG, "128k")), printed)
    assert errors == {}
    assert num_right == 47
    assert num_right_with_128k < 10


def test_table_of_mmlu():
    table = load_reference("paper").printed_tables[2]
    values = {row[0]: row[1:] for row in table.rows}
    assert values["Average"] == (28.0, 26.5, 29.4)
    assert values["Humanities"] == (28.7, 26.7, 32.2)
    assert len(values) == 9
    # The mean over groups weighs questions otherwise than the average, but is near it.
    for column, average in enumerate(values["Average"]):
        groups = [values[name][column] for name in ("STEM", "Humanities", "Social Sciences", "Others")]
        assert math.fsum(groups) / 4 == pytest.approx(average, abs=0.6)


@pytest.mark.parametrize(("name", "tolerance"), [("armt", 0.101), ("rmt", 0.501), ("mamba", 0.501), ("gpt-4", 0.501)])
def test_published_means_follow_from_cells(name, tolerance):
    """Within what rounding of the cells and of the mean allows."""
    [model] = load_reference(name).models
    num_checked = 0
    for length, stated in zip(model.lengths, model.mean_percent["qa1-5"], strict=True):
        values = [model.accuracy_percent[task][model.lengths.index(length)] for task in FIVE]
        if stated is not None and None not in values:
            num_checked += 1
            assert abs(math.fsum(values) / 5 - stated) <= tolerance, length
    assert num_checked == {"armt": 12, "rmt": 12, "mamba": 9, "gpt-4": 2}[name]


def test_armt_qa5_is_not_the_copied_mean():
    [model] = load_reference("armt").models
    qa5, means = model.accuracy_percent["qa5"], model.mean_percent["qa1-5"]
    assert model.back_computed == tuple(("qa5", length) for length in ("4k", "8k", "16k", "32k"))
    for length in model.lengths[3:]:
        place = model.lengths.index(length)
        assert qa5[place] != means[place]
    assert qa5[model.lengths.index("128k")] == 98.7


def test_single_cells():
    [gemini] = load_reference("gemini-1.5-pro").models
    at_1m = [values[gemini.lengths.index("1M")] for values in gemini.accuracy_percent.values()]
    assert at_1m == [42, 24, 17, 53, 69]
    [flash] = load_reference("gemini-3-flash").models
    assert [values[0] for values in flash.accuracy_percent.values()] == [100, 98, 87, 100, 97]
    [llama] = load_reference("llama-3.1-70b").models
    assert llama.accuracy_percent == {}
    assert llama.mean_percent["qa1-5"] == (85, 81, 78, 74, 70, 65, 59, 53, 45)
    lm2 = paper()["LM2-1.7B"]
    assert lm2.accuracy_percent["qa7"] == (96, 96, 93, 93, 95, 93, 92, 91, 91)
    assert (lm2.n, lm2.metric) == (100, "not stated")
    assert load_reference("rmt").models[0].training.startswith("fine-tuned per task on noise-mixed data")


def test_chance_is_that_of_the_test_files():
    folder = shared_data("babi/en-10k")
    for number, (task, chance) in enumerate(chance_by_task().items(), start=1):
        assert task == f"qa{number}"
        stories = read_stories(find_task_file(folder, number, "test"), number)
        answers = Counter(problem.answer for story in stories for problem in cut_at_questions(story))
        n = answers.total()
        [(answer, count)] = answers.most_common(1)
        assert (chance.answer, chance.majority) == (answer, pytest.approx(count / n))
        # A label is guessed with probability 1 / labels; lists of qa8 are no label.
        hits = sum(answers[label] for label in TASK_LABELS[task]) / n / len(TASK_LABELS[task])
        assert chance.random == pytest.approx(hits, abs=5.1e-5)
    assert len(chance_by_task()) == 20


def paper_document() -> dict:
    return json.loads(resources.files("lm2.eval").joinpath("references/paper.json").read_text("utf-8"))


def set_in(document: dict, path: tuple, value: object) -> None:
    for key in path[:-1]:
        document = document[key]
    document[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("version",), 2, "kind and version are 'lm2-reference', 2"),
        (("kind",), "lm2-scores", "kind and version are 'lm2-scores', 1"),
        (("extra",), 1, r"reference lacks \[\], and has \['extra'\] too many"),
        (("source",), "", "source is '', but must be a text"),
        (("source",), " arXiv", "source is ' arXiv', but must be a text"),
        (("notes",), "one", "notes is 'one', but must be a list of texts"),
        (("models",), [], r"models are \[\], but there must be one"),
        (("models", 1, "name"), "Llama-3.2-1.2B", "and each once"),
        (("models", 0, "lengths"), ["0k", "2k", "1k", "4k", "8k", "16k", "32k", "64k"], "but must increase"),
        (("models", 0, "lengths", 0), "0.5k", "length is '0.5k'"),
        (("models", 0, "n"), 0, "n is 0, but must be a positive whole number or null"),
        (("models", 0, "n"), True, "n is True"),
        (("models", 0, "accuracy_percent", "qa1", 0), 54.5, "n is 100, but an accuracy is no share"),
        (("models", 0, "accuracy_percent", "qa1", 0), 101, "has 101, but must have percentages or null"),
        (("models", 0, "accuracy_percent", "qa1", 0), "54", "has '54', but must have percentages or null"),
        (("models", 0, "accuracy_percent", "qa1"), [54], "has 1 numbers, but must have 8"),
        (("models", 0, "accuracy_percent", "qa21"), [0] * 8, "task is 'qa21'"),
        (("models", 0, "accuracy_percent"), {"qa2": [0] * 8, "qa1": [0] * 8}, "but must be in order"),
        (("models", 0, "accuracy_percent"), {}, "Llama-3.2-1.2B has no numbers"),
        (("models", 0, "mean_percent", "qa1-3"), [0] * 8, "mean_percent has 'qa1-3'"),
        (("models", 0, "back_computed"), [["qa1", "128k"]], "names qa1 at 128k, which has no value"),
        (("printed_tables", 0, "rows", 0), ["a", 1], "has 1 numbers, but must have 5"),
        (("printed_tables", 0, "errors", 0, "printed"), 1, "has no 1 in column >=8k"),
        (("printed_tables", 0, "errors", 0, "why"), "?", r"error lacks \[\], and has \['why'\]"),
    ],
)
def test_the_loader_is_strict(path, value, message):
    document = paper_document()
    parse_reference(json.dumps(document))
    set_in(document, path, value)
    with pytest.raises(ValueError, match=message):
        parse_reference(json.dumps(document))


def test_a_missing_key_is_named():
    document = paper_document()
    del document["models"][0]["training"]
    with pytest.raises(ValueError, match=r"model lacks \['training'\]"):
        parse_reference(json.dumps(document))
