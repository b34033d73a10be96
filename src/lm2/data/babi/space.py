"""qa4, qa17 and qa19: where places and shapes lie, seen from one another."""

from random import Random

from lm2.data.babi.draft import Draft, flip
from lm2.data.babi.story import Story
from lm2.data.babi.words import HOME_CAST, OPPOSITE

_COMPASS = tuple(OPPOSITE)

# All shapes that the released files name.
_SHAPES = ("blue square", "pink rectangle", "red sphere", "red square", "triangle", "yellow square")
_STEPS = {"to the left of": (-1, 0), "to the right of": (1, 0), "above": (0, 1), "below": (0, -1)}
_OPPOSITE_RELATION = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}
_NUM_SHAPE_QUESTIONS = 8

# neighbours[a][d] is the place that lies in direction d of a.
_Neighbours = dict[str, dict[str, str]]


def simulate_directions(rng: Random) -> Story:
    """Makes one story of qa4: three places in a straight line, and what lies in a direction of one of them."""
    draft = Draft()
    first, middle, last = rng.sample(HOME_CAST.places, 3)
    direction = rng.choice(_COMPASS)
    neighbours: _Neighbours = {first: {}, middle: {}, last: {}}
    _join(neighbours, first, direction, middle)
    _join(neighbours, middle, direction, last)
    facts = _facts(rng, neighbours)
    for subject, direction, other in facts:
        draft.tell(f"The {subject} is {direction} of the {other}.")
    line = rng.randrange(len(facts)) + 1
    subject, direction, other = facts[line - 1]
    if flip(rng):
        text = f"What is {direction} of the {other}?"
    else:
        text = f"What is the {other} {OPPOSITE[direction]} of?"
    draft.ask(text, subject, (line,))
    return draft.finish(4)


def simulate_paths(rng: Random) -> Story:
    """Makes one story of qa19: a way of two steps, and three places beside its three places.

    The places beside are three of the eight free sides of the way's places (measured on en-10k train: the shapes of the
    trees agree, and two places may lie on the same spot).
    """
    draft = Draft()
    source, middle, target, *beside = rng.sample(HOME_CAST.places, 6)
    first_step = rng.choice(_COMPASS)
    second_step = rng.choice([step for step in _COMPASS if step != OPPOSITE[first_step]])
    neighbours: _Neighbours = {place: {} for place in (source, middle, target, *beside)}
    _join(neighbours, source, first_step, middle)
    _join(neighbours, middle, second_step, target)
    sides = [(place, side) for place in (source, middle, target) for side in _COMPASS if side not in neighbours[place]]
    for (place, side), other in zip(rng.sample(sides, 3), beside, strict=True):
        _join(neighbours, place, side, other)
    lines = {}
    for subject, direction, other in _facts(rng, neighbours):
        lines[frozenset((subject, other))] = draft.tell(f"The {subject} is {direction} of the {other}.")
    support = lines[frozenset((source, middle))], lines[frozenset((middle, target))]
    draft.ask(f"How do you go from the {source} to the {target}?", f"{first_step[0]},{second_step[0]}", support)
    return draft.finish(19)


def simulate_positions(rng: Random) -> Story:
    """Makes one story of qa17: two shapes beside a third one, and eight questions about these two.

    Half of the questions name a relation that holds, any of them; the other half one that does not.
    """
    draft = Draft()
    pivot, *ends = rng.sample(_SHAPES, 3)
    # relations[i] is how ends[i] lies to the pivot.
    relations = rng.sample(tuple(_STEPS), 2)
    for end, relation in zip(ends, relations, strict=True):
        if rng.random() < 2 / 3:  # measured on en-10k train
            draft.tell(f"The {pivot} is {_OPPOSITE_RELATION[relation]} the {end}.")
        else:
            draft.tell(f"The {end} is {relation} the {pivot}.")
    for _ in range(_NUM_SHAPE_QUESTIONS):
        asked = rng.randrange(2)
        (x, y), (other_x, other_y) = _STEPS[relations[asked]], _STEPS[relations[1 - asked]]
        holds = {
            relation: step_x * (x - other_x) + step_y * (y - other_y) > 0
            for relation, (step_x, step_y) in _STEPS.items()
        }
        truth = flip(rng)
        relation = rng.choice([relation for relation in _STEPS if holds[relation] is truth])
        text = f"Is the {ends[asked]} {relation} the {ends[1 - asked]}?"
        draft.ask(text, "yes" if truth else "no", (asked + 1, 2 - asked))
    return draft.finish(17)


def _join(neighbours: _Neighbours, place: str, direction: str, other: str) -> None:
    neighbours[place][direction] = other
    neighbours[other][OPPOSITE[direction]] = place


def _facts(rng: Random, neighbours: _Neighbours) -> list[tuple[str, str, str]]:
    """All pairs of neighbours as (subject, its direction, other), each once.

    A fact is drawn as a place and one of its neighbours, and again where it was told. So a place with few neighbours is
    more often the subject, and told of earlier (measured on en-10k train: in qa4 the middle place is the subject in a
    third of the facts, in qa19 the two facts of the way come late).
    """
    facts: list[tuple[str, str, str]] = []
    told: set[frozenset[str]] = set()
    places = tuple(neighbours)
    while len(facts) < len(places) - 1:
        subject = rng.choice(places)
        direction, other = rng.choice(tuple(neighbours[subject].items()))
        pair = frozenset((subject, other))
        if pair not in told:
            told.add(pair)
            facts.append((subject, OPPOSITE[direction], other))
    return facts
