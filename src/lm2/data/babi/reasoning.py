"""qa15 and qa16: from a kind of animal to what it fears or what colour it has."""

from random import Random

from lm2.data.babi.draft import Draft, choose_other
from lm2.data.babi.story import Story

_PLURALS = {"mouse": "mice", "sheep": "sheep", "wolf": "wolves", "cat": "cats"}
_FEARFUL_PERSONS = ("Gertrude", "Winona", "Jessica", "Emily")
_NUM_DEDUCTIONS = 4

_COLOURED_PERSONS = ("Lily", "Bernhard", "Greg", "Julius", "Brian")
_COLOURED_ANIMALS = ("swan", "lion", "frog", "rhino")
_COLOURS = ("gray", "white", "yellow", "green")


def simulate_deduction(rng: Random) -> Story:
    """Makes one story of qa15: four animals' fears and four persons' kinds, then four questions.

    What is told next is drawn from all that is left; a person whose kind comes out as one with an untold fear is drawn
    again (measured on en-10k train: a fear is always told before its animals, and the shares of the orders agree).
    """
    draft = Draft()
    fears = {animal: choose_other(rng, tuple(_PLURALS), animal) for animal in _PLURALS}
    fear_lines: dict[str, int] = {}
    kinds: dict[str, tuple[str, int]] = {}
    left = [*_PLURALS, *_FEARFUL_PERSONS]
    while left:
        subject = rng.choice(left)
        if subject in _PLURALS:
            text = f"{_PLURALS[subject].capitalize()} are afraid of {_PLURALS[fears[subject]]}."
            fear_lines[subject] = draft.tell(text)
        else:
            kind = rng.choice(tuple(_PLURALS))
            if kind not in fear_lines:
                continue
            kinds[subject] = kind, draft.tell(f"{subject} is a {kind}.")
        left.remove(subject)
    for _ in range(_NUM_DEDUCTIONS):
        person = rng.choice(_FEARFUL_PERSONS)
        kind, line = kinds[person]
        draft.ask(f"What is {person.lower()} afraid of?", fears[kind], (line, fear_lines[kind]))
    return draft.finish(15)


def simulate_induction(rng: Random) -> Story:
    """Makes one story of qa16: kinds and colours of five animals, but for one colour, which is asked.

    The ten statements are drawn one by one from all that can be told, a colour after its animal's kind; the last one is
    a colour, and is asked instead. Telling a colour gives it to all of this kind that were told of before; who is told
    of later has any colour (measured on en-10k train: of two alike the colours agree in 100% and 25% of the cases).
    Stories count where one, three or four others are of the asked kind (none of the 10,000 has two). With three or
    four, their colours may differ; the answer is the colour of the one whose kind is told last.
    """
    while True:
        kinds = {person: rng.choice(_COLOURED_ANIMALS) for person in _COLOURED_PERSONS}
        order = _telling_order(rng)
        asked, _ = order.pop()
        if list(kinds.values()).count(kinds[asked]) - 1 not in (0, 2):
            break
    draft = Draft()
    kind_lines: dict[str, int] = {}
    colour_lines: dict[str, int] = {}
    colours: dict[str, str] = {}
    for person, is_colour in order:
        kind = kinds[person]
        if not is_colour:
            kind_lines[person] = draft.tell(f"{person} is a {kind}.")
            colours[person] = rng.choice(_COLOURS)
            continue
        colour_lines[person] = draft.tell(f"{person} is {colours[person]}.")
        for other in kind_lines:
            if kinds[other] == kind and other not in colour_lines:
                colours[other] = colours[person]
    witness = [person for person in kind_lines if person != asked and kinds[person] == kinds[asked]][-1]
    support = kind_lines[asked], kind_lines[witness], colour_lines[witness]
    draft.ask(f"What color is {asked}?", colours[witness], support)
    return draft.finish(16)


def _telling_order(rng: Random) -> list[tuple[str, bool]]:
    """(person, is it the colour) of the ten statements."""
    order: list[tuple[str, bool]] = []
    can_tell = [(person, False) for person in _COLOURED_PERSONS]
    while can_tell:
        statement = rng.choice(can_tell)
        can_tell.remove(statement)
        order.append(statement)
        person, is_colour = statement
        if not is_colour:
            can_tell.append((person, True))
    return order
