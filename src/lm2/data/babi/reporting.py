"""qa9 to qa13: what is said of where persons are, plainly, with negation, in doubt, with pronouns and in pairs.

Two statements and a question, five times. In all five tasks persons truly move from place to place with every
statement (measured on en-10k train: the places that follow a negation are spread as if its person had moved on).
"""

from collections.abc import Callable
from random import Random
from typing import NamedTuple, TypeAlias

from lm2.data.babi.draft import RECENT_STATEMENTS, Draft, choose_other, flip
from lm2.data.babi.story import Story
from lm2.data.babi.words import HOME_CAST, NEXT_WORDS, PRONOUNS, TOWN_CAST, Cast, move_words

_NUM_QUESTIONS = 5


class _Report(NamedTuple):
    """What was last told of a person: in which places the person may be, or (`is_negative`) is not."""

    place: str
    listed: tuple[str, ...]
    is_negative: bool
    line: int


_Teller: TypeAlias = Callable[[Draft, Random, str, str, str], _Report]


def simulate_negation(rng: Random) -> Story:
    """Makes one story of qa9: a person moves on, told as a move, as "is in", or as not being there any more."""
    return _simulate_reports(9, rng, HOME_CAST, _tell_negation)


def simulate_doubt(rng: Random) -> Story:
    """Makes one story of qa10: a person moves on, told as a move, as "is in", or as one of two places."""
    return _simulate_reports(10, rng, TOWN_CAST, _tell_doubt)


def simulate_pronouns(rng: Random) -> Story:
    """Makes one story of qa11: a person moves, then he or she moves."""
    draft = Draft()
    places = _start_places(rng, HOME_CAST)
    told: dict[str, tuple[int, int]] = {}
    actors: list[str] = []
    for _ in range(_NUM_QUESTIONS):
        person = rng.choice(HOME_CAST.persons)
        first = _tell_move(draft, rng, person, [person], places)
        then = _tell_move(draft, rng, f"{rng.choice(NEXT_WORDS)} {PRONOUNS[person]}", [person], places)
        told[person] = first, then
        actors += [person, person]
        asked = rng.choice(actors[-RECENT_STATEMENTS:])
        draft.ask(f"Where is {asked}? ", places[asked], told[asked])
    return draft.finish(11)


def simulate_pairs(rng: Random) -> Story:
    """Makes one story of qa12: two persons move together."""
    draft = Draft()
    places = _start_places(rng, HOME_CAST)
    told: dict[str, int] = {}
    movers: list[str] = []
    for _ in range(_NUM_QUESTIONS):
        for _ in range(2):
            pair = rng.sample(HOME_CAST.persons, 2)
            line = _tell_move(draft, rng, " and ".join(pair), pair, places)
            told.update(dict.fromkeys(pair, line))
            movers += pair
        # A pair counts as two statements: of the third-last pair only the second person is asked about (measured).
        asked = rng.choice(movers[-RECENT_STATEMENTS:])
        draft.ask(f"Where is {asked}? ", places[asked], (told[asked],))
    return draft.finish(12)


def simulate_pair_pronouns(rng: Random) -> Story:
    """Makes one story of qa13: two persons move together, then they move."""
    draft = Draft()
    places = _start_places(rng, HOME_CAST)
    told: dict[str, tuple[int, int]] = {}
    movers: list[str] = []
    for _ in range(_NUM_QUESTIONS):
        pair = rng.sample(HOME_CAST.persons, 2)
        first = _tell_move(draft, rng, " and ".join(pair), pair, places)
        then = _tell_move(draft, rng, f"{rng.choice(NEXT_WORDS)} they", pair, places)
        told.update(dict.fromkeys(pair, (first, then)))
        movers += pair * 2
        asked = rng.choice(movers[-RECENT_STATEMENTS:])
        draft.ask(f"Where is {asked}? ", places[asked], told[asked])
    return draft.finish(13)


def _tell_negation(draft: Draft, rng: Random, person: str, old: str, new: str) -> _Report:
    """Half moves, a quarter "is in", a quarter negative: the place that the person left, in two wordings."""
    if flip(rng):
        return _Report(new, (new,), False, draft.tell(f"{person} {move_words(rng, new)}."))
    if flip(rng):
        return _Report(new, (new,), False, draft.tell(f"{person} is in the {new}."))
    words = "is not in" if flip(rng) else "is no longer in"
    return _Report(old, (old,), True, draft.tell(f"{person} {words} the {old}."))


def _tell_doubt(draft: Draft, rng: Random, person: str, old: str, new: str) -> _Report:
    """Half moves, a quarter "is in", a quarter two places: the true one and any, which is the same one at times."""
    if flip(rng):
        return _Report(new, (new,), False, draft.tell(f"{person} {move_words(rng, new)}."))
    if flip(rng):
        return _Report(new, (new,), False, draft.tell(f"{person} is in the {new}."))
    listed = [new, rng.choice(TOWN_CAST.places)]
    rng.shuffle(listed)
    line = draft.tell(f"{person} is either in the {listed[0]} or the {listed[1]}.")
    return _Report(new, tuple(listed), False, line)


def _simulate_reports(task: int, rng: Random, cast: Cast, tell: _Teller) -> Story:
    draft = Draft()
    places = _start_places(rng, cast)
    reports: dict[str, _Report] = {}
    actors: list[str] = []
    for _ in range(_NUM_QUESTIONS):
        for _ in range(2):
            person = rng.choice(cast.persons)
            old, new = places[person], choose_other(rng, cast.places, places[person])
            reports[person] = tell(draft, rng, person, old, new)
            places[person] = new
            actors.append(person)
        person = rng.choice(actors[-RECENT_STATEMENTS:])
        report = reports[person]
        if report.is_negative or flip(rng):
            place = report.place
        else:
            place = choose_other(rng, cast.places, report.place)
        draft.ask(f"Is {person} in the {place}? ", _answer(report, place), (report.line,))
    return draft.finish(task)


def _answer(report: _Report, place: str) -> str:
    if report.is_negative or place not in report.listed:
        return "no"
    # The same place named twice is in doubt too, as in the released files.
    return "yes" if len(report.listed) == 1 else "maybe"


def _start_places(rng: Random, cast: Cast) -> dict[str, str]:
    return {person: rng.choice(cast.places) for person in cast.persons}


def _tell_move(draft: Draft, rng: Random, subject: str, movers: list[str], places: dict[str, str]) -> int:
    place = choose_other(rng, HOME_CAST.places, *(places[mover] for mover in movers))
    places.update(dict.fromkeys(movers, place))
    return draft.tell(f"{subject} {move_words(rng, place)}.")
