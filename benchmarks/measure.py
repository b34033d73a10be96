"""How time, floating-point operations and peak memory are measured."""

import contextlib
import ctypes
import gc
import itertools
import math
import multiprocessing
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from unittest import mock

import torch
import transformers
from cells import LLAMA, LM2, ModelSpec, random_tokens, training_step
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import lm2.models.lm2.memory_lm2 as memory_module
from lm2 import LM2Cache

FLOPS_COUNTED = (
    "Multiplications and additions (2 per multiply-add) of all matrix products and of scaled-dot-product attention, "
    "forward and backward, by torch's FlopCounterMode; elementwise operations, norms and the embedding count nothing. "
    "On the CPU, attention counts what the flash kernel computes: 2 products forward and 5 backward, over all keys, or "
    "if causal over all blocks of keys that a block of queries touches. On CUDA, torch's own formulas, over all keys. "
    "`flops` leaves out what a checkpoint computes a second time; `flops_executed` has it."
)
TIME_MEASURED = (
    "One process, models in turns; a ratio is the median of the rounds' ratios, with the smallest and the largest. "
    "`cpu` is the process's processor time in seconds, `wall` the clock's."
)
MEMORY_MEASURED = (
    "CPU: the most bytes that torch holds at once in a training step (parameters, gradients and activations; no "
    "optimizer), by the allocations and frees that torch.profiler records; exact and the same every time. CUDA: "
    "torch.cuda.max_memory_allocated."
)
PREFILL_MEMORY_MEASURED = (
    "CPU: a fresh child process per model; growth of its peak resident size (VmHWM) from just before the model is "
    "built, one thread, MALLOC_ARENA_MAX=1, and a C library told to give back every block of 64 KiB or more when it is "
    "freed, so that the peak is what is in use and not how its heap has come to lie. CUDA: "
    "torch.cuda.max_memory_allocated."
)

# mallopt's M_MMAP_THRESHOLD, and the bytes from which a block is its own mapping.
_MMAP_THRESHOLD, _MAPPED_BYTES = -3, 1 << 16


def judged_clock(device: str, threads: int) -> str:
    """Processor time is the less disturbed of the two where one thread does all the work."""
    return "cpu" if device == "cpu" and threads == 1 else "wall"


# Time


def time_once(function: Callable[[], object], device: str) -> dict[str, float]:
    """Seconds that a call takes: `cpu` and `wall`."""
    _synchronize(device)
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    _synchronize(device)
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def time_in_turns(
    functions: dict[str, Callable[[], object]],
    rounds: int,
    device: str,
    warm_up: bool = True,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, list[float]]]:
    """Calls all functions once a round: name -> clock -> seconds of every round. The garbage collector waits."""
    times = {name: {"cpu": [], "wall": []} for name in functions}
    for index in range(-int(warm_up), rounds):
        for name, function in functions.items():
            gc.collect()
            gc.disable()
            seconds = time_once(function, device)
            gc.enable()
            if index >= 0:
                for clock, value in seconds.items():
                    times[name][clock].append(value)
        tick()
    return times


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of the ratios of values that were taken one after the other."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# Floating-point operations


def count_flops(model: torch.nn.Module, tokens: torch.Tensor) -> dict[str, int]:
    """Operations of one training step; see FLOPS_COUNTED."""
    counts = {"flops_executed": _count_step(model, tokens)}
    with mock.patch.object(memory_module, "recompute", lambda function, *tensors: function(*tensors)):
        counts["flops"] = _count_step(model, tokens)
    model.zero_grad(set_to_none=True)
    return counts


def _count_step(model: torch.nn.Module, tokens: torch.Tensor) -> int:
    aten = torch.ops.aten
    formulas = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        training_step(model, tokens)
    return counter.get_total_flops()


def _attention_flops(query, key, value, dropout_p=0.0, is_causal=False, *, out_shape=None, **_) -> int:
    pairs = query[0] * query[1] * attended_pairs(query[2], key[2], is_causal)
    return 2 * pairs * (query[3] + value[3])


def _attention_backward_flops(
    grad_out, query, key, value, out, logsumexp, dropout_p=0.0, is_causal=False, *, out_shape=None, **_
) -> int:
    # Logits again, and the gradients of query and key: 3 products of the key's width; 2 of the value's.
    pairs = query[0] * query[1] * attended_pairs(query[2], key[2], is_causal)
    return 2 * pairs * (3 * query[3] + 2 * value[3])


def attended_pairs(num_queries: int, num_keys: int, is_causal: bool) -> int:
    """
    Pairs of query and key that torch's CPU flash kernel computes for one head. It goes through blocks of queries, each
    against blocks of keys, and if causal leaves out blocks of keys that begin behind the block's last query.
    """
    if not is_causal:
        return num_queries * num_keys
    query_block = 256 if num_queries >= 768 else 64 if num_queries >= 192 else 32
    key_block, pairs = 512, 0
    for begin in range(0, num_queries, query_block):
        end = min(begin + query_block, num_queries)
        pairs += (end - begin) * min(math.ceil(min(end, num_keys) / key_block) * key_block, num_keys)
    return pairs


# Peak memory


def start_children() -> None:
    """
    Prepares the server that children are forked from: it has everything imported and has computed nothing, so that a
    child is fresh and yet starts at once.
    """
    # Read by the C library at the server's start; one arena keeps a child's heap from depending on its threads.
    os.environ["MALLOC_ARENA_MAX"] = "1"
    # One path of search for the server too, which otherwise would not find its own preloads, and skip them silently.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    multiprocessing.get_context("forkserver").set_forkserver_preload(["measure"])


def in_child(function: Callable, *arguments):
    """
    Calls a function in a fresh child process and returns its result.

    Raises:
        RuntimeError: the child failed; with its traceback, or its exit code if it left none.
    """
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, function, arguments), daemon=True)
    child.start()
    sender.close()
    try:
        failure, result = receiver.recv()
    except EOFError:
        child.join()
        raise RuntimeError(f"a measuring process ended early with exit code {child.exitcode}") from None
    child.join()
    if failure:
        raise RuntimeError(f"a measuring process failed:\n{failure}")
    return result


def _child(sender, function: Callable, arguments: tuple) -> None:
    try:
        sender.send((None, function(*arguments)))
    except BaseException:
        sender.send((traceback.format_exc(), None))


def training_peak(model: torch.nn.Module, tokens: torch.Tensor, device: str) -> int:
    """Peak bytes of a training step that adds to gradients, as the second of an accumulation."""
    training_step(model, tokens)
    held = sum(2 * parameter.nbytes for parameter in model.parameters())
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        others = torch.cuda.memory_allocated() - held
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        return torch.cuda.max_memory_allocated() - others
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return held + max(itertools.accumulate(event.nbytes() for event in events))


def prefill_ladder(
    spec: ModelSpec, first: int, longest: int, piece: int, device: str, dtype: str, of_memory: bool
) -> list[dict]:
    """
    Reads one endless row in pieces and notes at `first`, 2 * `first`, ... `longest` tokens the seconds so far, or if
    `of_memory` the peak bytes so far. Runs in a child; for [`in_child`].
    """
    _warm_up_child(device, dtype)
    with PeakMemory(device) if of_memory else contextlib.nullcontext() as peak, torch.no_grad():
        model = spec.build(device, dtype).eval()
        notes = []
        length = first
        # A length below a piece is a call of its own.
        while length < min(piece, longest):
            cache = _new_cache(spec, model)
            seconds = time_once(lambda c=cache, n=length: _read(model, c, n, 0, device), device)
            notes.append({"tokens": length} | ({"bytes": peak.bytes()} if peak else seconds))
            length *= 2
        cache, seen, total = _new_cache(spec, model), 0, {"cpu": 0.0, "wall": 0.0}
        while seen < longest:
            # Tokens are made piece by piece: a row of a million would itself be part of the peak.
            seconds = time_once(lambda c=cache, s=seen: _read(model, c, piece, s, device), device)
            total = {clock: total[clock] + seconds[clock] for clock in total}
            seen += piece
            if seen >= length:
                notes.append({"tokens": seen} | ({"bytes": peak.bytes()} if peak else total))
                length *= 2
        return notes


def _new_cache(spec: ModelSpec, model: torch.nn.Module):
    return LM2Cache(model.config) if spec.kind == LM2 else transformers.DynamicCache(config=model.config)


def _read(model: torch.nn.Module, cache, count: int, seed: int, device: str) -> None:
    tokens = random_tokens(count, seed, device)
    model(input_ids=tokens, cache=cache, use_cache=True, logits_to_keep=1)


class PeakMemory:
    """
    Growth of this process's (or on CUDA: of torch's allocations') peak bytes since the block began. Slows the process
    down, as freed memory goes back to the system: nothing is timed in the same process.
    """

    def __init__(self, device: str):
        self.device = device

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._base = torch.cuda.memory_allocated()
            return self
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            library.mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES)
            library.malloc_trim(0)
        # Sets VmHWM to the present size, which importing may have exceeded.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._base = _status_bytes("VmHWM")
        return self

    def __exit__(self, *_) -> None:
        pass

    def bytes(self) -> int:
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() - self._base
        return _status_bytes("VmHWM") - self._base


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        raise RuntimeError("peak memory on the CPU is read from /proc, which this system does not have")
    line = next(line for line in status.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def _warm_up_child(device: str, dtype: str) -> None:
    """Loads kernels and lazy modules, with both kinds of model alike, before the first byte is counted."""
    torch.set_num_threads(1)
    memory = {"segment_length": 64, "num_memory_slots": 8}
    for spec in (ModelSpec(LM2, 128, memory), ModelSpec(LM2, 64, {"memory_design": "paper"}), ModelSpec(LLAMA, 128)):
        model = spec.build(device, dtype)
        training_step(model, random_tokens(192, seed=0, device=device))
        with torch.no_grad():
            cache = _new_cache(spec, model)
            for count in (192, 1):
                _read(model.eval(), cache, count, 0, device)


# The machine


def run_facts(device: str, threads: int, seed: int) -> dict:
    """What a reader needs to judge a number, and to make it again."""
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git_commit(),
        "seed": seed,
        "machine": _machine_facts(device, threads),
    }


def _machine_facts(device: str, threads: int) -> dict:
    facts = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "ram_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": list(os.getloadavg()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": device,
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _git_commit() -> str:
    """The checked-out commit, with "+changes" if files other than results differ; "unknown" outside a repository."""
    folder = Path(__file__).parent
    try:
        commit, changes = (
            subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no", ":!results"))
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if changes else "")
