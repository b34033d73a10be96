"""qa20: why persons go somewhere and take something."""

from random import Random

from lm2.data.babi.draft import Draft
from lm2.data.babi.story import Story
from lm2.data.babi.words import get_words, move_words

_PERSONS = ("Sumit", "Yann", "Jason", "Antoine")
# motive: (where it leads, what is taken there)
_MOTIVES = {
    "hungry": ("kitchen", "apple"),
    "thirsty": ("kitchen", "milk"),
    "bored": ("garden", "football"),
    "tired": ("bedroom", "pajamas"),
}


def simulate_motives(rng: Random) -> Story:
    """Makes one story of qa20: each statement with a question, until nobody has anything left to do.

    Persons have motives of their own, which may be the same; there is one object for each motive, so only the first who
    takes it does (measured on en-10k train: 8 statements and one more for each different motive).
    """
    draft = Draft()
    motives = {person: rng.choice(tuple(_MOTIVES)) for person in _PERSONS}
    motive_lines: dict[str, int] = {}
    gone: set[str] = set()
    taken: set[str] = set()

    def can_act(person: str) -> bool:
        return person not in gone or motives[person] not in taken

    while active := [person for person in _PERSONS if can_act(person)]:
        person = rng.choice(active)
        motive = motives[person]
        place, thing = _MOTIVES[motive]
        if person not in motive_lines:
            motive_lines[person] = draft.tell(f"{person} is {motive}.")
            text, answer = f"Where will {person.lower()} go?", place
        elif person not in gone:
            gone.add(person)
            draft.tell(f"{person} {move_words(rng, place)}.")
            text, answer = f"Why did {person.lower()} go to the {place}?", motive
        else:
            taken.add(motive)
            draft.tell(f"{person} {get_words(rng, thing)}.")
            text, answer = f"Why did {person.lower()} get the {thing}?", motive
        draft.ask(text, answer, (motive_lines[person],))
    return draft.finish(20)
