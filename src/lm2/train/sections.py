"""The sections of a recipe: frozen dataclasses that check their own values.

Keys without a default must be given. A value that would have no effect with the others is an error. Messages begin
with the key, so that whoever reads a file can put the section before it (lm2.train.checking).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lm2.data.babi.story import TASK_NAMES
from lm2.data.bounds import at_least, more_than_zero, within
from lm2.data.lengths import TOKENS_PER_ROW, context_tokens, parse_lengths
from lm2.data.recall import MIN_ROW_TOKENS, RecallTask
from lm2.train.primer import MIN_COPY_TOKENS


@dataclass(frozen=True)
class ModelRecipe:
    """The model. The fields of its configuration are checked by whoever builds it.

    Attributes:
        architecture: transformers' `model_type`: "lm2", "llama" and so on.
        config: Fields of the model's configuration.
        init: Folder of a pretrained model to start from; None for random weights.
        embedding_std: Standard deviation of random input embeddings; None for the architecture's own, which is narrow
            (transformers: `initializer_range`). A small model copies sooner with 1 and an output layer of its own.
    """

    architecture: str
    config: Mapping[str, Any]
    init: str | None = None
    embedding_std: float | None = None

    def __post_init__(self) -> None:
        if self.embedding_std is not None:
            more_than_zero("embedding_std", self.embedding_std)
            if self.init is not None:
                raise ValueError(
                    f"embedding_std is {self.embedding_std}, but has no effect on the weights of init; leave it out"
                )


@dataclass(frozen=True)
class DataRecipe:
    """Where samples come from.

    Attributes:
        tokenizer: "builtin", or a tokenizer folder.
        background: "builtin", "pg19", or a folder of books; None where all stages are facts only.
        facts: "simulator", or a folder of bAbI files.
        segment_length_tokens: What stages count lengths in, where they count segments.
        margin_tokens: By how much a sample is shorter than its segments, as room for what a model adds.
        primer_length_tokens: Tokens of a row of the copying primer, where a stage has one. It should fit one segment.
        primer_vocab_size: Tokens of the primer, drawn once for the run; None for all that the tokenizer has. The words
            of the curriculum's tasks that carry content come on top: a model that never copied them does not start to
            in the task. The fewer tokens, the sooner a small model copies.
        tokens_per_row: At most one fact or question for so many tokens of a sample.
        allow_repeats: Whether a sample of training may hold a background sentence twice.
    """

    tokenizer: str = "builtin"
    background: str | None = "builtin"
    facts: str = "simulator"
    segment_length_tokens: int | None = None
    margin_tokens: int = 0
    primer_length_tokens: int | None = None
    primer_vocab_size: int | None = None
    tokens_per_row: int = TOKENS_PER_ROW
    allow_repeats: bool = False

    def __post_init__(self) -> None:
        at_least("segment_length_tokens", self.segment_length_tokens, 1)
        at_least("margin_tokens", self.margin_tokens, 0)
        at_least("primer_length_tokens", self.primer_length_tokens, 2 * MIN_COPY_TOKENS)
        if self.primer_vocab_size is not None:
            if self.primer_length_tokens is None:
                raise ValueError(
                    f"primer_vocab_size is {self.primer_vocab_size}, but has no effect without primer_length_tokens; "
                    "leave it out"
                )
            at_least("primer_vocab_size", self.primer_vocab_size, MIN_COPY_TOKENS)
        at_least("tokens_per_row", self.tokens_per_row, 1)
        if self.segment_length_tokens is None and self.margin_tokens:
            raise ValueError(
                f"margin_tokens is {self.margin_tokens}, but has no effect without segment_length_tokens; leave it out"
            )
        if self.segment_length_tokens is not None and self.margin_tokens >= self.segment_length_tokens:
            raise ValueError(
                f"margin_tokens is {self.margin_tokens}, but must be less than segment_length_tokens, which is "
                f"{self.segment_length_tokens}"
            )


@dataclass(frozen=True)
class SegmentsRecipe:
    """How many segments the samples of a batch have: always `max`, or uniformly drawn from 1 to `max`."""

    max: int
    draw: Literal["uniform", "max"] = "uniform"

    def __post_init__(self) -> None:
        at_least("max", self.max, 1)


@dataclass(frozen=True)
class StageEnd:
    """When a stage ends: after `steps`; or when its validation accuracy reaches `accuracy`.

    Attributes:
        steps: So many steps, whatever the accuracy.
        accuracy: Questions answered right, 0 to 1.
        min_steps: Not before so many steps, however good.
        max_steps: Here at the latest, however bad; the run then goes on with the next stage.
    """

    steps: int | None = None
    accuracy: float | None = None
    min_steps: int = 0
    max_steps: int | None = None

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        at_least("min_steps", self.min_steps, 0)
        at_least("max_steps", self.max_steps, 1)
        if (self.steps is None) == (self.accuracy is None):
            raise ValueError(
                f"steps is {self.steps} and accuracy {self.accuracy}, but a stage ends by exactly one of them; with "
                "accuracy, max_steps bounds the steps"
            )
        if self.accuracy is None:
            if self.min_steps or self.max_steps is not None:
                raise ValueError("min_steps and max_steps have no effect where a stage ends by steps; leave them out")
            return
        within("accuracy", self.accuracy, 0.0, 1.0)
        if self.max_steps is None:
            raise ValueError("max_steps is missing: a stage that ends by accuracy needs it, as it may never get there")
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps is {self.min_steps}, but must be at most max_steps, which is {self.max_steps}")

    @property
    def longest_steps(self) -> int:
        """The most steps that the stage can take."""
        longest = self.max_steps if self.steps is None else self.steps
        assert longest is not None, "one of them is given"
        return longest


@dataclass(frozen=True)
class StageRecipe:
    """A stage of the curriculum. All rows of a batch have one length, drawn once per batch.

    Attributes:
        name: For logs.
        tasks: Weight of each bAbI task; left out in a stage of recall or of primer only.
        recall: Associative recall instead of tasks (lm2.data.recall).
        segments: Lengths as whole segments of `data.segment_length_tokens`; this or `lengths_tokens`.
        lengths_tokens: Lengths in tokens, equally likely; 0 is facts only, without background.
        questions: "inline" asks inside the context, "end" asks one question behind it.
        max_questions: At most so many questions of a story; None for all. Inline only.
        further_questions: At most so many besides, which its facts determine (lm2.data.further). Inline only; not in
            validation.
        shortened: The part of the samples whose facts and questions are shortened (lm2.data.shortening); not those of
            validation.
        primer_every: Every so many batches, one is the copying primer (lm2.train.primer); 1 is primer only.
        until: When the stage ends; None in the last one, which ends with the schedule.
    """

    name: str
    tasks: Mapping[int, float] | None = None
    recall: RecallTask | None = None
    segments: SegmentsRecipe | None = None
    lengths_tokens: tuple[int, ...] | None = None
    questions: Literal["inline", "end"] = "inline"
    max_questions: int | None = None
    further_questions: int = 0
    shortened: float = 0.0
    primer_every: int | None = None
    until: StageEnd | None = None

    def __post_init__(self) -> None:
        at_least("primer_every", self.primer_every, 1)
        at_least("max_questions", self.max_questions, 1)
        at_least("further_questions", self.further_questions, 0)
        within("shortened", self.shortened, 0.0, 1.0)
        if self.primer_every == 1:
            for name, default in _TASK_KEYS.items():
                if getattr(self, name) != default:
                    raise ValueError(f"{name} has no effect with primer_every 1, a stage of primer only; leave it out")
            return
        if self.recall is not None:
            for name in ("tasks", "questions", "max_questions", "further_questions", "shortened"):
                if getattr(self, name) != _TASK_KEYS[name]:
                    raise ValueError(f"{name} has no effect with recall, which has questions of its own; leave it out")
        elif not self.tasks:
            raise ValueError("tasks is empty, but must give at least one task its weight, such as {1: 1.0}")
        for task, weight in (self.tasks or {}).items():
            if task not in TASK_NAMES:
                raise ValueError(f"tasks has {task}, but tasks are 1 to 20")
            more_than_zero(f"tasks.{task}", weight)
        if (self.segments is None) == (self.lengths_tokens is None):
            raise ValueError("segments and lengths_tokens: give exactly one of them")
        if self.lengths_tokens is not None and (not self.lengths_tokens or min(self.lengths_tokens) < 0):
            raise ValueError(f"lengths_tokens is {list(self.lengths_tokens)}, but must be one or more, from 0 on")
        if self.recall is not None and self.lengths_tokens is not None and min(self.lengths_tokens) < MIN_ROW_TOKENS:
            raise ValueError(
                f"lengths_tokens is {list(self.lengths_tokens)}, but recall needs {MIN_ROW_TOKENS} or more each"
            )
        if self.questions == "end" and self.max_questions is not None:
            raise ValueError("max_questions has no effect with questions 'end', where one is asked; leave it out")
        if self.questions == "end" and self.further_questions:
            raise ValueError("further_questions has no effect with questions 'end', where one is asked; leave it out")

    def longest_tokens(self, segment_length_tokens: int | None) -> int:
        """The most tokens that a sample of its tasks or recall can have; 0 for primer and for facts only."""
        if self.segments is not None:
            return self.segments.max * (segment_length_tokens or 0)
        return max(self.lengths_tokens or (0,))


_TASK_KEYS: Mapping[str, Any] = {
    "tasks": None,
    "recall": None,
    "segments": None,
    "lengths_tokens": None,
    "questions": "inline",
    "max_questions": None,
    "further_questions": 0,
    "shortened": 0.0,
}


@dataclass(frozen=True)
class OptimizerRecipe:
    """The optimizer: AdamW, or Muon for hidden matrices with AdamW for the rest (lm2.train.optim).

    Attributes:
        name: "adamw" or "muon".
        learning_rate: At the schedule's peak.
        adamw_learning_rate: With "muon" only: of what AdamW trains there; None for `learning_rate`.
        betas: AdamW's.
        epsilon: AdamW's.
        weight_decay: Decoupled, of matrices only.
        momentum: Muon's; with "muon" only.
    """

    name: Literal["adamw", "muon"]
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    momentum: float | None = None
    adamw_learning_rate: float | None = None

    def __post_init__(self) -> None:
        more_than_zero("learning_rate", self.learning_rate)
        if self.adamw_learning_rate is not None:
            more_than_zero("adamw_learning_rate", self.adamw_learning_rate)
            if self.name == "adamw":
                raise ValueError(
                    f"adamw_learning_rate is {self.adamw_learning_rate}, but has no effect with adamw, whose rate is "
                    "learning_rate; leave it out"
                )
        more_than_zero("epsilon", self.epsilon)
        at_least("weight_decay", self.weight_decay, 0)
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise ValueError(f"betas is {list(self.betas)}, but each must be from 0 to less than 1")
        if self.name == "muon" and (self.momentum is None or not 0 <= self.momentum < 1):
            raise ValueError(f"momentum is {self.momentum}, but must be from 0 to less than 1 with muon, such as 0.95")
        if self.name == "adamw" and self.momentum is not None:
            raise ValueError(f"momentum is {self.momentum}, but has no effect with adamw; leave it out")


@dataclass(frozen=True)
class ScheduleRecipe:
    """The learning rate over the run, and how long the run is: so many steps, or as many as it takes to read so many
    tokens. Models whose stages end when they are ready themselves read equally much only by the latter.

    Attributes:
        name: "cosine", or "wsd" (warm-up, stable, decay).
        total_steps: Optimizer steps of the whole run, all stages; this or `total_tokens`.
        total_tokens: The run ends with the step that reaches so many tokens, padding not counted; with "wsd" only.
        warmup_steps: Linear from 0.
        final_fraction: Of the peak, what the decay ends at.
        decay_steps: The last so many steps decay, linearly; with "wsd" and total_steps only.
        decay_tokens: The last so many tokens decay, linearly; with total_tokens only.
    """

    name: Literal["cosine", "wsd"]
    total_steps: int | None = None
    total_tokens: int | None = None
    warmup_steps: int = 0
    final_fraction: float = 0.0
    decay_steps: int | None = None
    decay_tokens: int | None = None

    def __post_init__(self) -> None:
        if (self.total_steps is None) == (self.total_tokens is None):
            raise ValueError(
                f"total_steps is {self.total_steps} and total_tokens {self.total_tokens}, but a run ends by exactly "
                "one of them"
            )
        at_least("total_steps", self.total_steps, 1)
        at_least("total_tokens", self.total_tokens, 1)
        at_least("warmup_steps", self.warmup_steps, 0)
        within("final_fraction", self.final_fraction, 0.0, 1.0)
        if self.name == "cosine" and self.total_tokens is not None:
            raise ValueError(
                f"total_tokens is {self.total_tokens}, but cosine counts steps; give total_steps, or use wsd"
            )
        own, other = self.unit, "tokens" if self.unit == "steps" else "steps"
        if (unused := getattr(self, f"decay_{other}")) is not None:
            raise ValueError(f"decay_{other} is {unused}, but has no effect with total_{own}; leave it out")
        if self.name == "cosine" and self.decay_steps is not None:
            raise ValueError(f"decay_steps is {self.decay_steps}, but has no effect with cosine; leave it out")
        if self.name == "wsd":
            if self.decay is None:
                raise ValueError(f"decay_{own} is missing: wsd needs it")
            at_least(f"decay_{own}", self.decay, 1)
        # Tokens of the warm-up are not known before.
        least, what = self.decay or 0, "the tokens of the decay"
        if self.total_tokens is None:
            least, what = least + self.warmup_steps, "the steps of warm-up and decay"
        if least > self.total:
            raise ValueError(f"total_{own} is {self.total}, but must be at least {what}, which are {least}")

    @property
    def unit(self) -> Literal["steps", "tokens"]:
        """What `total`, `decay` and `done` count."""
        return "steps" if self.total_tokens is None else "tokens"

    @property
    def total(self) -> int:
        """The length of the run."""
        total = self.total_steps if self.total_tokens is None else self.total_tokens
        assert total is not None, "one of them is given"
        return total

    @property
    def decay(self) -> int | None:
        """How much of it decays; None with "cosine"."""
        return self.decay_steps if self.total_tokens is None else self.decay_tokens

    def done(self, step: int, tokens: int) -> int:
        """How much of it is done after so many steps, which have read so many tokens."""
        return step if self.total_tokens is None else tokens


@dataclass(frozen=True)
class LossRecipe:
    """Which tokens are learned: "answers", "all", or "weighted" (all, and answers `answer_weight` times as much)."""

    on: Literal["answers", "all", "weighted"] = "answers"
    answer_weight: float | None = None

    def __post_init__(self) -> None:
        if (self.on == "weighted") != (self.answer_weight is not None):
            raise ValueError(
                f"answer_weight is {self.answer_weight} and on {self.on!r}, but 'weighted' needs it and nothing else "
                "uses it"
            )
        if self.answer_weight is not None:
            more_than_zero("answer_weight", self.answer_weight)


@dataclass(frozen=True)
class TrainRecipe:
    """How the loop runs.

    Attributes:
        batch_size: Rows of an optimizer step, over all processes.
        micro_batch_size: Rows of one forward pass.
        validate_every_steps: Validation, also at the end of each stage; None for none.
        validation_samples: Rows of one validation.
        checkpoint_every_steps: Checkpoints, also at the end of the run.
        keep_last: So many checkpoints are kept.
        keep_best: Also the one with the best validation accuracy of the last stage.
        log_every_steps: Lines of the log.
        clip_norm: Gradients' greatest norm; None for no clipping.
        precision: "float32", or "bfloat16" for autocast; weights are float32 in both.
        loss: Which tokens are learned.
        activation_checkpointing: Blocks are computed again for the backward pass, which saves memory.
        compile: Blocks go through torch.compile.
        parallel: "single", "ddp" or "fsdp" (FSDP2).
        processes: What torchrun is to start, on all nodes together.
        reshard_after_forward: Whether FSDP frees gathered weights until the backward pass.
        device: "cpu" or "cuda".
        threads: Of torch on the CPU, per process; None for torch's own choice.
        tensorboard: Also write TensorBoard files.
        wandb: Also log to Weights & Biases.
    """

    batch_size: int
    micro_batch_size: int
    validate_every_steps: int | None
    validation_samples: int
    checkpoint_every_steps: int
    keep_last: int = 2
    keep_best: bool = False
    log_every_steps: int = 10
    clip_norm: float | None = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    loss: LossRecipe = field(default_factory=LossRecipe)
    activation_checkpointing: bool = False
    compile: bool = False
    parallel: Literal["single", "ddp", "fsdp"] = "single"
    processes: int = 1
    reshard_after_forward: bool = True
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int | None = None
    tensorboard: bool = False
    wandb: bool = False

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "micro_batch_size",
            "validate_every_steps",
            "validation_samples",
            "checkpoint_every_steps",
            "keep_last",
            "log_every_steps",
            "processes",
            "threads",
        ):
            at_least(name, getattr(self, name), 1)
        if self.clip_norm is not None:
            more_than_zero("clip_norm", self.clip_norm)
        if self.parallel == "single" and self.processes != 1:
            raise ValueError(f"processes is {self.processes}, but must be 1 with parallel 'single'; use ddp or fsdp")
        if self.parallel != "fsdp" and not self.reshard_after_forward:
            raise ValueError("reshard_after_forward is false, but has no effect without parallel 'fsdp'; leave it out")
        if self.keep_best and self.validate_every_steps is None:
            raise ValueError("keep_best is true, but nothing is validated: give validate_every_steps, or leave it out")
        check_shares(self.batch_size, self.micro_batch_size, self.processes)


@dataclass(frozen=True)
class EvaluationRecipe:
    """What is evaluated after training, with BABILong's own samples.

    Attributes:
        tasks: bAbI tasks.
        lengths: Names of lengths, such as 0k, 4k, 1M (lm2.data.lengths).
        samples: Of each task and length.
        samples_at: Other numbers at some of the lengths, such as {128k: 5}, where each question takes long.
        allow_repeats: Whether a sample may hold a background sentence again once it has used all others.
        batch_size: Samples that are answered at a time.
    """

    tasks: tuple[int, ...]
    lengths: tuple[str, ...]
    samples: int = 100
    samples_at: Mapping[str, int] = field(default_factory=dict)
    allow_repeats: bool = False
    batch_size: int = 1

    def __post_init__(self) -> None:
        at_least("samples", self.samples, 1)
        at_least("batch_size", self.batch_size, 1)
        if not self.tasks or not set(self.tasks) <= set(TASK_NAMES) or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks is {list(self.tasks)}, but must name one or more of 1 to 20, each once")
        try:
            parse_lengths(",".join(self.lengths))
        except ValueError as error:
            raise ValueError(f"lengths: {error}") from error
        for length, number in self.samples_at.items():
            at_least(f"samples_at.{length}", number, 1)
            if length not in self.lengths:
                raise ValueError(f"samples_at has {length}, but lengths has {', '.join(self.lengths)} only")
        if self.allow_repeats and not any(map(context_tokens, self.lengths)):
            raise ValueError("allow_repeats has no effect at 0k, which is facts only; leave it out")

    def num_samples(self, length: str) -> int:
        """Of each task at one of the lengths."""
        return self.samples_at.get(length, self.samples)


def check_shares(batch_size: int, micro_batch_size: int, world_size: int) -> None:
    """Refuses a batch that processes and forward passes cannot share evenly.

    Raises:
        ValueError: batch_size is no multiple of micro_batch_size times the number of processes.
    """
    if batch_size % (micro_batch_size * world_size):
        raise ValueError(
            f"batch_size is {batch_size}, but must be a multiple of micro_batch_size times processes, which is "
            f"{micro_batch_size} x {world_size} = {micro_batch_size * world_size}"
        )
