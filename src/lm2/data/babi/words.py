"""Words and sentences of the bAbI v1.2 stories (Weston et al. 2015), as counted in the released en-10k files."""

from random import Random
from typing import NamedTuple


class Cast(NamedTuple):
    """The persons, places and objects of a group of tasks; who is first here receives first, what is first is given."""

    persons: tuple[str, ...]
    places: tuple[str, ...]
    objects: tuple[str, ...] = ()


_HOME = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
_TOWN = ("bedroom", "cinema", "kitchen", "office", "park", "school")
_THINGS = ("apple", "football", "milk")

HOME_CAST = Cast(("John", "Mary", "Sandra", "Daniel"), _HOME, _THINGS)
GIVING_CAST = Cast(("Mary", "Fred", "Bill", "Jeff"), _HOME, _THINGS)
TOWN_CAST = Cast(("Mary", "Fred", "Bill", "Julie"), _TOWN)

PRONOUNS = {"Mary": "she", "Sandra": "she", "John": "he", "Daniel": "he"}
# "went back to" is a verb like the others: most places that it names were never visited before.
MOVE_VERBS = ("went to", "journeyed to", "travelled to", "went back to", "moved to")
GET_VERBS = ("picked up", "got", "took", "grabbed")
DROP_VERBS = ("left", "discarded", "dropped", "put down")
GIVE_VERBS = ("passed", "gave", "handed")
NEXT_WORDS = ("After that", "Afterwards", "Following that", "Then")
COUNT_WORDS = ("none", "one", "two", "three")
OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}


def move_words(rng: Random, place: str) -> str:
    """What follows the mover's name: `went to the garden`."""
    return f"{rng.choice(MOVE_VERBS)} the {place}"


def get_words(rng: Random, thing: str, there_share: float = 1.0) -> str:
    """What follows the taker's name: `got the milk there`, with "there" in `there_share` of the sentences."""
    return f"{rng.choice(GET_VERBS)} the {thing}{_there(rng, there_share)}"


def drop_words(rng: Random, thing: str, there_share: float) -> str:
    """What follows the dropper's name: `put down the milk`, with "there" in `there_share` of the sentences."""
    return f"{rng.choice(DROP_VERBS)} the {thing}{_there(rng, there_share)}"


def _there(rng: Random, share: float) -> str:
    return " there" if rng.random() < share else ""
