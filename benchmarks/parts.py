"""The four parts of the benchmark; each takes its settings and returns what belongs into the JSON."""

import copy
import gc
import itertools
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import transformers
from cells import (
    LLAMA,
    LM2,
    MATCHED,
    SEED,
    DecodePlan,
    ModelSpec,
    TrainingCell,
    compared_models,
    decode_plan,
    length_plan,
    prefill_plan,
    random_tokens,
    training_cells,
    training_step,
)
from measure import (
    FLOPS_COUNTED,
    MEMORY_MEASURED,
    PREFILL_MEMORY_MEASURED,
    TIME_MEASURED,
    count_flops,
    in_child,
    judged_clock,
    paired_ratio,
    prefill_ladder,
    time_in_turns,
    time_once,
    training_peak,
)
from progress import Progress

from lm2 import LM2Cache
from lm2.models.lm2.modeling_lm2 import PREFILL_SEGMENTS


@dataclass(frozen=True)
class Settings:
    """
    What holds for all parts.

    Attributes:
        device: "cpu" or "cuda".
        dtype: of the weights, a name of torch's.
        threads: that compute, in this process; children have one.
        quick: tiny shapes.
    """

    device: str
    dtype: str
    threads: int
    quick: bool

    @property
    def clock(self) -> str:
        return judged_clock(self.device, self.threads)

    def build(self, spec: ModelSpec) -> torch.nn.Module:
        return spec.build(self.device, self.dtype)

    def tokens(self, count: int) -> torch.Tensor:
        return random_tokens(count, SEED + 1, self.device)


# Training


def measure_training(settings: Settings) -> dict:
    """Time, peak memory and operations of a training step."""
    cells = training_cells(settings.quick)
    progress = Progress("training", sum(_training_work(cell) for cell in cells))
    measured = [_measure_training_cell(cell, settings, progress) for cell in cells]
    return {
        "cells": measured,
        "flops_counted": FLOPS_COUNTED,
        "time_measured": TIME_MEASURED,
        "memory_measured": MEMORY_MEASURED,
    }


def _step_work(hidden: int, tokens: int) -> float:
    """Work of a training step, in matrix operations of a backbone, to tell the time left."""
    return 6 * tokens * 4 * (12 * hidden**2 + hidden * min(tokens, 512))


def _training_work(cell: TrainingCell) -> float:
    return 3 * (cell.rounds + 3) * _step_work(cell.hidden, cell.tokens)


def _measure_training_cell(cell: TrainingCell, settings: Settings, progress: Progress) -> dict:
    progress.say(cell.name)
    specs = compared_models(cell.hidden, cell.memory, cell.head_dim)
    tokens = settings.tokens(cell.tokens)
    models = {name: settings.build(spec).train() for name, spec in specs.items()}
    steps = {name: _bind(training_step, model, tokens) for name, model in models.items()}
    work = _step_work(cell.hidden, cell.tokens)
    times = time_in_turns(steps, cell.rounds, settings.device, tick=lambda: progress.add(3 * work))
    flops = {name: count_flops(model, tokens) for name, model in models.items()}
    parameters = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    peaks = {name: training_peak(model, tokens, settings.device) for name, model in models.items()}
    progress.add(6 * work)

    clocks = ("cpu", "wall")
    ratios = {
        f"time_vs_{short}": {clock: paired_ratio(times[LM2][clock], times[name][clock]) for clock in clocks}
        for short, name in (("llama", LLAMA), ("matched", MATCHED))
    }
    for short, name in (("llama", LLAMA), ("matched", MATCHED)):
        ratios[f"memory_vs_{short}"] = peaks[LM2] / peaks[name]
        ratios[f"flops_vs_{short}"] = flops[LM2]["flops"] / flops[name]["flops"]
    ratios["flops_executed_vs_llama"] = flops[LM2]["flops_executed"] / flops[LLAMA]["flops_executed"]
    judged = ratios["time_vs_llama"][settings.clock]["median"]
    ratios["time_over_flops"] = judged / ratios["flops_vs_llama"]
    targets = {
        name: _judge(_median(ratios[name], settings.clock), at_most=bound) for name, bound in cell.targets().items()
    }
    return {
        **cell.describe(),
        "models": {
            name: {
                "config": specs[name].config().to_diff_dict(),
                "parameters": parameters[name],
                "seconds": times[name],
                "peak_bytes": peaks[name],
                **flops[name],
            }
            for name in specs
        },
        "ratios": ratios,
        "targets": targets,
    }


# Length


def measure_length(settings: Settings) -> dict:
    """Training steps on ever longer rows."""
    plan = length_plan(settings.quick)
    specs = compared_models(plan.hidden, plan.memory, plan.head_dim)
    models = {name: settings.build(specs[name]).train() for name in (LM2, LLAMA)}

    def work(tokens: int) -> float:
        # Full attention comes to outweigh everything else.
        return 2 * _step_work(plan.hidden, tokens) + 28 * plan.hidden * tokens**2

    shortest = min(plan.rounds)
    progress = Progress("length", sum(work(n) * rounds for n, rounds in plan.rounds.items()) + work(shortest))
    cells = []
    for num_tokens, rounds in plan.rounds.items():
        progress.say(f"{num_tokens} tokens")
        tokens = settings.tokens(num_tokens)
        steps = {name: _bind(training_step, model, tokens) for name, model in models.items()}
        # Long rows last long enough for the first call's overhead to vanish in them.
        warm_up = rounds > 2 or num_tokens == shortest
        times = time_in_turns(
            steps, rounds, settings.device, warm_up=warm_up, tick=lambda n=num_tokens: progress.add(work(n))
        )
        ratios = {clock: paired_ratio(times[LM2][clock], times[LLAMA][clock]) for clock in ("cpu", "wall")}
        targets = {}
        if num_tokens in plan.targets:
            targets["time_vs_llama"] = _judge(ratios[settings.clock]["median"], at_most=plan.targets[num_tokens])
        cells.append(
            {
                "tokens": num_tokens,
                "hidden": plan.hidden,
                "rounds": rounds,
                "seconds": times,
                "ratios": {"time_vs_llama": ratios},
                "targets": targets,
            }
        )
    return {"plan": asdict(plan), "cells": cells, "time_measured": TIME_MEASURED}


# Prefill


def measure_prefill(settings: Settings) -> dict:
    """Reading rows of up to a million tokens through the cache."""
    plan = prefill_plan(settings.quick)
    specs = compared_models(plan.hidden, plan.memory, plan.head_dim)
    piece = PREFILL_SEGMENTS * plan.memory["segment_length"]
    longest = {LM2: plan.lm2_longest, LLAMA: plan.llama_longest}

    def work(name: str, tokens: int) -> float:
        linear = _step_work(plan.hidden, tokens) / 3
        return linear + (8 * plan.hidden * tokens**2 if name == LLAMA else 0)

    progress = Progress("prefill", sum(work(name, n) for name in longest for n in (longest[name][0], *longest[name])))
    cells = []
    for name, lengths in longest.items():

        def climb(tokens: int, of_memory: bool, name: str = name) -> list[dict]:
            progress.say(f"{name} to {tokens} tokens, {'memory' if of_memory else 'time'}")
            arguments = (specs[name], plan.first, tokens, piece, settings.device, settings.dtype, of_memory)
            notes = in_child(prefill_ladder, *arguments)
            progress.add(work(name, tokens))
            return notes

        ladders = [climb(tokens, of_memory=False) for tokens in lengths]
        peaks = climb(lengths[0], of_memory=True)
        for index, note in enumerate(ladders[0]):
            notes = [ladder[index] for ladder in ladders if index < len(ladder)]
            cells.append(
                {
                    "model": name,
                    "tokens": note["tokens"],
                    "seconds": {clock: [n[clock] for n in notes] for clock in ("cpu", "wall")},
                    "peak_bytes": peaks[index]["bytes"],
                }
            )
    return {
        "plan": asdict(plan),
        "piece_tokens": piece,
        "cells": cells,
        "targets": _prefill_targets([cell for cell in cells if cell["model"] == LM2], plan.linear_from, settings),
        "memory_measured": PREFILL_MEMORY_MEASURED,
        "llama_stops_because": plan.why_not_longer,
        "measured": (
            "One row per child process, read in pieces; seconds since the row's start, noted on the way (a row shorter "
            "than a piece is a call of its own). First entries are from the child that read furthest, from which "
            "doublings are taken. Peak bytes in a process of their own."
        ),
    }


def _prefill_targets(cells: list[dict], linear_from: int, settings: Settings) -> dict:
    clock = settings.clock
    judged = [cell for cell in cells if cell["tokens"] >= linear_from]
    doublings = {
        f"{later['tokens']}": later["seconds"][clock][0] / earlier["seconds"][clock][0]
        for earlier, later in itertools.pairwise(judged)
    }
    growth = judged[-1]["peak_bytes"] / judged[0]["peak_bytes"]
    name = f"peak_at_{judged[-1]['tokens']}_vs_{judged[0]['tokens']}"
    targets = {name: _judge(growth, at_most=1.05)}
    for tokens, ratio in doublings.items():
        targets[f"time_of_{tokens}_vs_half"] = _judge(ratio, at_most=2.1, at_least=1.9)
    return targets


# Decode


def measure_decode(settings: Settings) -> dict:
    """One token after the other, after contexts of several lengths; all contexts and models in turns."""
    plan = decode_plan(settings.quick)
    specs = compared_models(plan.hidden, plan.memory, plan.head_dim)
    models = {name: settings.build(specs[name]).eval() for name in (LM2, LLAMA)}
    per_token = 24 * plan.hidden**2
    progress = Progress("decode", (plan.contexts[-1] + 8 * len(plan.contexts) * plan.lm2_tokens) * per_token)
    with torch.no_grad():
        caches = _read_contexts(models[LM2], plan, settings, progress, per_token)
        caches = {(LM2, n): cache for n, cache in caches.items()}
        for context in plan.contexts:
            caches[LLAMA, context] = _filled_llama_cache(models[LLAMA], context, settings)
        seconds = {key: {"cpu": [], "wall": []} for key in caches}
        token = settings.tokens(1)
        for (name, _), cache in caches.items():
            models[name](input_ids=token, cache=copy.deepcopy(cache), use_cache=True)
        gc.collect()
        progress.say("tokens in turns")
        for index in range(max(plan.lm2_tokens, plan.llama_tokens)):
            for key, cache in caches.items():
                if index >= (plan.lm2_tokens if key[0] == LM2 else plan.llama_tokens):
                    continue
                call = _bind(models[key[0]], input_ids=token, cache=cache, use_cache=True)
                for clock, value in time_once(call, settings.device).items():
                    seconds[key][clock].append(value)
            progress.add(8 * len(plan.contexts) * per_token)
    cells = []
    for (name, context), clocks in seconds.items():
        cell = {"model": name, "context": context, "tokens": len(clocks["cpu"]), "seconds": clocks}
        cell["median"] = {clock: statistics.median(values) for clock, values in clocks.items()}
        cell["mean"] = {clock: statistics.fmean(values) for clock, values in clocks.items()}
        if name == LM2:
            # The token that completes the segment also writes the bank.
            closing = plan.memory["segment_length"] - 1
            cell["closing_token_over_median"] = {
                clock: values[closing] / cell["median"][clock] for clock, values in clocks.items()
            }
        cells.append(cell)
    ends = [seconds[LM2, context] for context in (plan.contexts[-1], plan.contexts[0])]
    ratio = {clock: paired_ratio(ends[0][clock], ends[1][clock]) for clock in ("cpu", "wall")}
    name = f"time_after_{plan.contexts[-1]}_vs_{plan.contexts[0]}"
    return {
        "plan": asdict(plan),
        "cells": cells,
        "ratios": {name: ratio},
        "targets": {name: _judge(ratio[settings.clock]["median"], at_most=plan.target)},
        "measured": (
            "Seconds of every token, all models and contexts in turns. LM2 really reads its contexts and decodes one "
            "whole segment, the token that closes it and writes the bank included; `mean` spreads that over the "
            "segment. Llama's cache is filled with random keys and values of the context's length, as reading it would "
            "take long and change nothing."
        ),
    }


def _read_contexts(
    model: torch.nn.Module, plan: DecodePlan, settings: Settings, progress: Progress, per_token: float
) -> dict[int, LM2Cache]:
    cache, caches, piece = LM2Cache(model.config), {}, PREFILL_SEGMENTS * plan.memory["segment_length"]
    for context in plan.contexts:
        progress.say(f"reading {context} tokens")
        while cache.get_seq_length() < context:
            count = min(piece, context - cache.get_seq_length())
            model(input_ids=settings.tokens(count), cache=cache, use_cache=True, logits_to_keep=1)
            progress.add(count * per_token)
        caches[context] = copy.deepcopy(cache)
    return caches


def _filled_llama_cache(model: torch.nn.Module, context: int, settings: Settings) -> transformers.DynamicCache:
    config, cache = model.config, transformers.DynamicCache(config=model.config)
    shape = (1, config.num_key_value_heads, context, config.head_dim)
    for layer in range(config.num_hidden_layers):
        states = torch.randn(shape, device=settings.device, dtype=model.dtype)
        cache.update(states, states.clone(), layer)
    return cache


# Helpers


def _bind(function: Callable, *arguments, **named) -> Callable[[], object]:
    return lambda: function(*arguments, **named)


def _median(ratio: float | dict, clock: str) -> float:
    return ratio[clock]["median"] if isinstance(ratio, dict) else ratio


def _judge(measured: float, at_most: float, at_least: float | None = None) -> dict:
    met = measured <= at_most and (at_least is None or measured >= at_least)
    return {"at_least": at_least, "at_most": at_most, "measured": measured, "met": met}


PARTS: dict[str, Callable[[Settings], dict]] = {
    "training": measure_training,
    "length": measure_length,
    "prefill": measure_prefill,
    "decode": measure_decode,
}
