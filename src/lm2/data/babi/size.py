"""qa18: what is bigger than what, over a third thing."""

from random import Random
from typing import NamedTuple

from lm2.data.babi.draft import Draft, flip
from lm2.data.babi.story import Story

# By size; the four containers' order is drawn for each story.
_SMALL = ("chocolate", "box of chocolates")
_LARGE = ("box", "chest", "container", "suitcase")
_NUM_FACTS = 5
_NUM_QUESTIONS = 5


class _Fact(NamedTuple):
    smaller: str
    bigger: str
    line: int


class _Chain(NamedTuple):
    """Two facts and the answer that they give, in the order in which a question names them as its support."""

    fact: _Fact
    other: _Fact
    answer: bool


def simulate_sizes(rng: Random) -> Story:
    """Makes one story of qa18: five facts, five more until two of them chain, then five questions.

    At times a story breaks off its questions, tells five more facts and asks five more questions (measured on en-10k
    train: 34 of 1,978 stories; the cause is not known, so this one rule is drawn by chance).
    """
    draft = Draft()
    things = [*_SMALL, *rng.sample(_LARGE, len(_LARGE))]
    facts: list[_Fact] = []
    num_asked = 0
    while num_asked < _NUM_QUESTIONS:
        num_asked = 0
        facts += [_tell_fact(draft, rng, things) for _ in range(_NUM_FACTS)]
        chains = _chains(facts)
        while chains and num_asked < _NUM_QUESTIONS and not _breaks_off(rng, num_asked, len(facts)):
            _ask(draft, rng, chains, facts)
            num_asked += 1
    return draft.finish(18)


def _breaks_off(rng: Random, num_asked: int, num_facts: int) -> bool:
    return num_asked >= 2 and rng.random() < (0.0017 if num_facts == _NUM_FACTS else 0.0186)


def _tell_fact(draft: Draft, rng: Random, things: list[str]) -> _Fact:
    smaller, bigger = sorted(rng.sample(things, 2), key=things.index)
    if flip(rng):
        return _Fact(smaller, bigger, draft.tell(f"The {smaller} fits inside the {bigger}."))
    return _Fact(smaller, bigger, draft.tell(f"The {bigger} is bigger than the {smaller}."))


def _chains(facts: list[_Fact]) -> list[_Chain]:
    """Each fact with the first other one about one of its two things, where the two go on in one direction.

    Measured on en-10k train, without exception: the other fact is the first one told about the thing in the middle.
    """
    chains = []
    for fact in facts:
        for middle in (fact.smaller, fact.bigger):
            other = next(
                (other for other in facts if other is not fact and middle in (other.smaller, other.bigger)), None
            )
            if other is None:
                continue
            if middle == fact.smaller == other.bigger:
                chains.append(_Chain(fact, other, True))
            elif middle == fact.bigger == other.smaller:
                chains.append(_Chain(fact, other, False))
    return chains


def _weight(chain: _Chain, facts: list[_Fact]) -> float:
    """How often a chain is drawn: of equal facts a later one is preferred (fitted on en-10k train, 10,000 draws)."""
    fact = chain.fact
    equal_lines = [other.line for other in facts if other[:2] == fact[:2]]
    earlier, later = fact.line > equal_lines[0], fact.line < equal_lines[-1]
    return (1.5 if earlier else 1.0) * (0.37 if later else 1.0)


def _ask(draft: Draft, rng: Random, chains: list[_Chain], facts: list[_Fact]) -> None:
    fact, other, answer = rng.choices(chains, [_weight(chain, facts) for chain in chains])[0]
    smallest, biggest = (other.smaller, fact.bigger) if answer else (fact.smaller, other.bigger)
    inner, outer = (smallest, biggest) if answer else (biggest, smallest)
    if flip(rng):
        text = f"Does the {inner} fit in the {outer}?"
    else:
        text = f"Is the {outer} bigger than the {inner}?"
    draft.ask(text, "yes" if answer else "no", (fact.line, other.line))
