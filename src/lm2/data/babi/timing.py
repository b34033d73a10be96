"""qa14: who went where yesterday and today, told out of order."""

from random import Random
from typing import NamedTuple

from lm2.data.babi.draft import RECENT_STATEMENTS, Draft, choose_other
from lm2.data.babi.story import Story
from lm2.data.babi.words import TOWN_CAST, move_words

_NUM_QUESTIONS = 5
_TIMES = ("yesterday", "this morning", "this afternoon", "this evening")


class _Visit(NamedTuple):
    person: str
    time: int
    place: str


def simulate_time(rng: Random) -> Story:
    """Makes one story of qa14.

    Each visit is its person's next in time. The visits between two questions are told in another order: the order is a
    single cycle, so two visits always change places (measured on en-10k train: of 2,380 persons told of twice in a
    pair of lines none comes in the order of time; among four lines the shares are those of cycles).
    """
    draft = Draft()
    visits: list[_Visit] = []
    lines: dict[_Visit, int] = {}
    for _ in range(_NUM_QUESTIONS):
        block: list[_Visit] = []
        candidates: list[_Visit] = []
        while not candidates:
            block += [_next_visit(rng, visits + block)]
            block += [_next_visit(rng, visits + block)]
            candidates = _candidates(visits + block)
        visits += block
        for visit in _in_one_cycle(rng, block):
            lines[visit] = draft.tell(_visit_text(rng, visit))
        later = rng.choice(candidates)
        before = next(visit for visit in visits if (visit.person, visit.time) == (later.person, later.time - 1))
        text = f"Where was {later.person} before the {later.place}? "
        draft.ask(text, before.place, (lines[later], lines[before]))
    return draft.finish(14)


def _candidates(visits: list[_Visit]) -> list[_Visit]:
    """Recent visits with one before them, of places that their persons did not go to again."""
    return [
        visit
        for visit in visits[-RECENT_STATEMENTS:]
        if visit.time > 0
        and all(
            (other.person, other.place) != (visit.person, visit.place) or other.time <= visit.time for other in visits
        )
    ]


def _next_visit(rng: Random, visits: list[_Visit]) -> _Visit:
    counts = {person: sum(visit.person == person for visit in visits) for person in TOWN_CAST.persons}
    person = rng.choice([person for person, count in counts.items() if count < len(_TIMES)])
    last_place = next((visit.place for visit in reversed(visits) if visit.person == person), "")
    return _Visit(person, counts[person], choose_other(rng, TOWN_CAST.places, last_place))


def _in_one_cycle(rng: Random, block: list[_Visit]) -> list[_Visit]:
    """A random order that is one cycle of the old one (Sattolo 1986)."""
    order = block.copy()
    for last in range(len(order) - 1, 0, -1):
        other = rng.randrange(last)
        order[last], order[other] = order[other], order[last]
    return order


def _visit_text(rng: Random, visit: _Visit) -> str:
    time = _TIMES[visit.time]
    told = f"{visit.person} {move_words(rng, visit.place)}"
    return f"{told} {time}." if rng.random() < 0.5 else f"{time.capitalize()} {told}."
