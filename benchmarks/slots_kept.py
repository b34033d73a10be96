"""
What is left in the slots that a story was written to, after so many segments of noise? For each block and head.

    python benchmarks/slots_kept.py                            # the LM2 that ships
    python benchmarks/slots_kept.py runs/a/model runs/b/model

A story of qa1 is read, then background. A slot counts as written where the segments of the story replaced at least 30%
of it; what is kept of it follows from the forget gates of the segments behind them, each segment keeping a factor of
what was there. Printed for each block and head: slots that a story is written to, the median of what is kept, and the
share of the slots that keep half or more. For writes that address slots.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from lm2.cli.load_model import load_model
from lm2.cli.options import BUILTIN_MODEL, model_folder
from lm2.data.babilong import open_maker
from lm2.data.encoding import TextEncoder
from lm2.eval.retention import make_stories
from lm2.models.lm2.memory_lm2 import AddressWrite

WRITTEN = 0.3
SEGMENTS = (256, 2048)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, default=[BUILTIN_MODEL], help="folders (the one that ships)")
    parser.add_argument("--stories", type=int, default=24, help="(%(default)s)")
    parser.add_argument("--segments", type=int, default=256, help="of noise that are read (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of stories and noise (%(default)s)")
    options = parser.parse_args(arguments)
    for folder in options.models:
        loaded = load_model(model_folder(folder), "cpu", "auto", None)
        print(f"{folder}: slots a story is written to, and what noise leaves of them")
        print(
            f"{'block':>6}{'head':>6}{'slots':>8}" + "".join(f"{f'median {n}':>14}{'half kept':>11}" for n in SEGMENTS)
        )
        for (block, head), (slots, log_keeps) in sorted(measure(loaded, options).items()):
            found = f"{block:>6}{head:>6}{slots:>8.1f}"
            for count in SEGMENTS:
                kept = np.exp(count * log_keeps)
                found += (
                    f"{np.median(kept):>14.3f}{np.mean(kept >= 0.5):>11.2f}" if len(kept) else f"{'-':>14}{'-':>11}"
                )
            print(found)
    return 0


def measure(loaded, options: argparse.Namespace) -> dict[tuple[int, int], tuple[float, np.ndarray]]:
    """By block and head: written slots per story, and of each the mean log of what a segment of noise keeps."""
    model, segment = loaded.model, loaded.model.config.segment_length
    encoder = TextEncoder(loaded.tokenizer, loaded.tokenizer_name)
    maker = open_maker("simulator", "builtin", encoder, options.seed, allow_repeats=True)
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    for story in make_stories(maker, 1, options.stories, options.segments * segment):
        ids = np.concatenate([story.facts, story.noise])
        ids = ids[: len(ids) // segment * segment]
        num_told = -(-len(story.facts) // segment)
        for block, keep_GNM in enumerate(keeps_of(model, ids)):
            log_keep_GNM = np.log(np.maximum(keep_GNM, 1e-30))
            is_written_NM = np.exp(log_keep_GNM[:num_told].sum(0)) <= 1 - WRITTEN
            rate_NM = log_keep_GNM[num_told:].mean(0)
            for head in range(keep_GNM.shape[2]):
                found.setdefault((block, head), []).append(rate_NM[is_written_NM[:, head], head])
    return {key: (sum(map(len, rates)) / len(rates), np.concatenate(rates)) for key, rates in found.items()}


@torch.inference_mode()
def keeps_of(model, ids: np.ndarray) -> list[np.ndarray]:
    """For each block that has memory, what each segment keeps of each slot: [G, N, M]."""
    keeps: list[np.ndarray] = []
    writes = [module for module in model.modules() if isinstance(module, AddressWrite)]
    if not writes:
        raise ValueError("the model has no writes that address slots; give an LM2 with memory_write='address'")
    handles = [
        write.register_forward_hook(lambda _, __, effect: keeps.append(effect[0][0, ..., 0].numpy()))
        for write in writes
    ]
    try:
        model.model(torch.from_numpy(ids.astype(np.int64))[None], use_cache=True)
    finally:
        for handle in handles:
            handle.remove()
    return keeps


if __name__ == "__main__":
    sys.exit(main())
