"""What `lm2 reproduce` finds out before any work: whether rivals can be compared, and whether all can run here."""

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lm2.train.config import Recipe

# What rivals must share for their results to be comparable. Of the evaluation's lengths and samples a rival may have
# fewer than the leader.
_SHARED = (
    "data",
    "curriculum",
    "schedule",
    "train.batch_size",
    "train.loss",
    "evaluation.tasks",
    "evaluation.allow_repeats",
)
_MOST_DIFFERENCE = 0.03


def check_job(rivals: "list[Recipe]") -> None:
    """Checks the recipes of one seed, the leader first.

    Raises:
        ValueError: names that are not distinct, recipes whose results could not be compared, models of other sizes,
            devices that are not there, samples that cannot be made, or lengths that a model cannot read.
        OSError: data cannot be read.
    """
    _check_equal(rivals)
    _check_devices(rivals)
    _check_data(rivals[0])
    _check_models(rivals)


def _check_equal(rivals: "list[Recipe]") -> None:
    from lm2.train.config import differing_keys

    leader, *others = rivals
    names = [rival.name for rival in rivals]
    if len(set(names)) < len(names):
        raise ValueError(f"recipes are named {', '.join(names)}, but each needs a name of its own")
    shared = tuple(f"{key}." for key in _SHARED)
    for other in others:
        lines = differing_keys(leader, other)
        if different := [line for line in lines if f"{line.partition(':')[0]}.".startswith(shared)]:
            raise ValueError(
                f"recipes {leader.name} and {other.name} differ in {'; '.join(different)}. Rivals must read the same "
                "samples and be asked the same; make them equal"
            )
        _check_asked(leader, other)


def _check_asked(leader: "Recipe", other: "Recipe") -> None:
    """What a rival is asked must be part of what the leader is asked."""
    for length in other.evaluation.lengths:
        of_leader = leader.evaluation.num_samples(length) if length in leader.evaluation.lengths else 0
        if (number := other.evaluation.num_samples(length)) > of_leader:
            raise ValueError(
                f"evaluation of {other.name} has {number} samples at {length}, but that of {leader.name}, which leads, "
                f"{of_leader}; a rival may be asked less, not more"
            )


def _check_devices(rivals: "list[Recipe]") -> None:
    import torch

    for rival in rivals:
        if rival.train.device != "cuda":
            continue
        found = torch.cuda.device_count()
        if not found:
            raise ValueError(
                f"train.device of {rival.name} is 'cuda', but there is no CUDA device; choose another scale"
            )
        if rival.train.processes > found:
            raise ValueError(
                f"train.processes of {rival.name} is {rival.train.processes}, one device each, but this machine has "
                f"{found}; give --set train.processes={found}, or use lm2 train on several machines (docs/training.md)"
            )


def _check_data(leader: "Recipe") -> None:
    """Tries the samples of training and of evaluation at all their lengths."""
    from lm2.cli.eval_babilong import open_questions
    from lm2.data.encoding import TextEncoder
    from lm2.data.lengths import context_tokens
    from lm2.data.tokenizer import load_tokenizer
    from lm2.train.batches import BatchSource

    BatchSource(
        replace(leader, train=replace(leader.train, processes=1, parallel="single", reshard_after_forward=True))
    )
    data, asked = leader.data, leader.evaluation
    has_background = any(map(context_tokens, asked.lengths))
    tokenizer = load_tokenizer(data.tokenizer)
    questions = open_questions(
        dataset=None,
        parts=None,
        tokenizer=tokenizer,
        encoder=TextEncoder(tokenizer, data.tokenizer),
        lengths=asked.lengths,
        facts=data.facts,
        background=data.background if has_background else None,
        seed=None,
        allow_repeats=asked.allow_repeats,
    )
    for length in asked.lengths:
        for task in asked.tasks:
            questions.check(task, length, asked.num_samples(length))


def _check_models(rivals: "list[Recipe]") -> None:
    """Compares sizes, and the longest context asked with the positions that a model has."""
    import torch

    from lm2.cli.build_model import build_model
    from lm2.data.lengths import context_tokens
    from lm2.data.tokenizer import load_tokenizer
    from lm2.eval.runner import max_text_tokens

    counts = {}
    for rival in rivals:
        with torch.device("meta"):
            model = build_model(rival.model, load_tokenizer(rival.data.tokenizer), 0)
        counts[rival.name] = model.num_parameters()
        longest, limit = max(rival.evaluation.lengths, key=context_tokens), max_text_tokens(model)
        if limit is not None and context_tokens(longest) >= limit:
            raise ValueError(
                f"evaluation.lengths of {rival.name} has {longest}, but its model has {limit:,} positions; give "
                "shorter lengths, or more max_position_embeddings"
            )
    most, least = max(counts.values()), min(counts.values())
    if most > (1 + _MOST_DIFFERENCE) * least:
        sizes = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        raise ValueError(f"models differ by more than {_MOST_DIFFERENCE:.0%} in parameters: {sizes}")
