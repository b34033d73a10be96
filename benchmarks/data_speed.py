"""
Speed of the data: training streams, BABILong samples, and what of their time is the tokenizer's.

    python benchmarks/data_speed.py                       # about a minute on one core
    python benchmarks/data_speed.py --background BOOKS    # a folder of books instead of the built-in text
    python benchmarks/data_speed.py --quick               # does the program work?

One process, one thread. Writes data_speed.json into --out.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
FORMAT_VERSION = 1
SEED = 0
ROUNDS = 5
STREAM_TOKENS = 512
# A stream must not keep a tiny model on one core waiting.
TARGET_TOKENS_PER_SECOND = 200_000
# name -> tasks
MIXTURES = {"qa1": (1,), "qa1-5": tuple(range(1, 6)), "qa1-20": tuple(range(1, 21))}
LENGTHS = {"4k": 50, "128k": 5, "1M": 1}


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    # Before they are imported: thread pools read these once.
    os.environ |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    from measure import run_facts

    from lm2.data.files import write_whole

    rounds = 1 if options.quick else ROUNDS
    encoder = _encoder(options.tokenizer)
    results = {
        "format_version": FORMAT_VERSION,
        "run": {
            **run_facts("cpu", 1, SEED),
            "rounds": rounds,
            "quick": options.quick,
            "clock": "processor time of the one process",
            "tokenizer": {"name": encoder.name, "fingerprint_sha256": encoder.fingerprint},
        },
        "tokenizing": _tokenizing(options.background, encoder, rounds),
        "samples": _samples(options.background, encoder, rounds, options.quick),
        "streams": _streams(options.background, encoder, rounds, options.quick),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "data_speed.json"
    with write_whole(path) as file:
        json.dump(results, file, indent=1)
    _print(results)
    print(f"wrote {path}")
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--background", default="builtin", help="as in lm2 data babilong (%(default)s)")
    parser.add_argument("--tokenizer", default="builtin", help="as in lm2 data babilong (%(default)s)")
    parser.add_argument("--out", type=Path, help=f"folder (default: {RESULTS}; with --quick its subfolder quick)")
    parser.add_argument("--quick", action="store_true", help="one round of little, to see that everything works")
    options = parser.parse_args(arguments)
    # Little work must never overwrite numbers that mean something.
    options.out = options.out or (RESULTS / "quick" if options.quick else RESULTS)
    return options


def _encoder(tokenizer: str):
    from lm2.data.encoding import TextEncoder
    from lm2.data.tokenizer import load_tokenizer

    return TextEncoder(load_tokenizer(tokenizer), tokenizer)


def _background(spec: str, split: str, encoder):
    from lm2.data.noise import TokenizedBackground
    from lm2.data.text import open_background

    return TokenizedBackground(open_background(spec, split), encoder)


def _seconds(work: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def _tokenizing(spec: str, encoder, rounds: int) -> dict:
    """Tokenising a background once: the tokenizer alone, and with what is done around it (not reading the text)."""
    from lm2.data.noise import tokenize_source
    from lm2.data.text import open_background

    class Read:
        def __init__(self, source) -> None:
            self.name, self._sentences = source.name, source.sentences()

        def sentences(self) -> list[str]:
            return self._sentences

    background = open_background(spec, "train")
    sources = [Read(source) for source in background.sources]
    texts = [[f" {sentence}" for sentence in source.sentences()] for source in sources]
    backend = encoder._backend
    alone = _seconds(lambda: [backend.encode_batch_fast(part, add_special_tokens=False) for part in texts], rounds)
    whole = _seconds(lambda: [tokenize_source(source, encoder) for source in sources], rounds)
    num_tokens = sum(len(tokenize_source(source, encoder).token_ids) for source in sources)
    return {
        "background": background.name,
        "tokens": num_tokens,
        "tokenizer_seconds": alone,
        "seconds": whole,
        "tokenizer_tokens_per_second": num_tokens / alone,
    }


def _samples(spec: str, encoder, rounds: int, quick: bool) -> list[dict]:
    """Evaluation samples made and written as JSON, their background tokenised before."""
    from lm2.data.babilong import SampleMaker
    from lm2.data.facts import SimulatedFacts
    from lm2.data.layout import write_rows
    from lm2.data.lengths import context_tokens

    background = _background(spec, "test", encoder)
    maker = SampleMaker(SimulatedFacts(SEED, "test"), background, encoder, SEED, allow_repeats=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cell.json"
        for length, count in LENGTHS.items():
            count = 1 if quick else count
            write_rows(path, [maker.sample(1, length, 0)])
            repeats = maker.sample(1, length, 0).repeats
            indices = range(count)
            made = _seconds(lambda: [maker.sample(1, length, index) for index in indices], rounds)  # noqa: B023
            written = _seconds(lambda: write_rows(path, (maker.sample(1, length, i) for i in indices)), rounds)  # noqa: B023
            rows.append(
                {
                    "length": length,
                    "background": background.name,
                    "samples": count,
                    "repeats": repeats,
                    "draw_seconds_per_sample": made / count,
                    "seconds_per_sample": written / count,
                    "tokens_per_second": context_tokens(length) * count / written,
                }
            )
    return rows


def _streams(spec: str, encoder, rounds: int, quick: bool) -> list[dict]:
    """Training samples of 512 tokens, background tokenised before."""
    from lm2.data.facts import SimulatedFacts
    from lm2.data.stage import Length, Stage
    from lm2.data.stream import BabilongStream

    background, rows = _background(spec, "train", encoder), []
    count = 20 if quick else 1000
    for name, tasks in MIXTURES.items():
        for questions in ("inline", "end"):
            stage = Stage(dict.fromkeys(tasks, 1.0), (Length(STREAM_TOKENS, STREAM_TOKENS),), questions)
            facts = SimulatedFacts(SEED, "train")
            stream = BabilongStream(stage, facts, background, encoder, SEED)
            first = [stream[index] for index in range(count)]
            seconds = _seconds(lambda: [next(stream) for _ in range(count)], rounds)  # noqa: B023
            drawn = [(sample.task, sample.index) for sample in first]
            simulating = _seconds(lambda: [facts.story(task, i, 0) for task, i in drawn], rounds)  # noqa: B023
            tokens_per_second = count * STREAM_TOKENS / seconds
            rows.append(
                {
                    "tasks": name,
                    "questions": questions,
                    "background": background.name,
                    "sample_tokens": STREAM_TOKENS,
                    "questions_per_sample": statistics.mean(len(sample.questions) for sample in first),
                    "samples_per_second": count / seconds,
                    "tokens_per_second": tokens_per_second,
                    "share_of_one_story_each": simulating / seconds,
                    "target": TARGET_TOKENS_PER_SECOND,
                    "met": tokens_per_second >= TARGET_TOKENS_PER_SECOND,
                }
            )
    return rows


def _print(results: dict) -> None:
    part = results["tokenizing"]
    print(
        f"tokenising {part['background']}: {part['tokens']:,} tokens, {part['tokenizer_seconds']:.2f} s in the "
        f"tokenizer, {part['seconds']:.2f} s in all"
    )
    for row in results["samples"]:
        needed = row["tokens_per_second"] / part["tokenizer_tokens_per_second"]
        print(
            f"{row['length']:>5}: {row['seconds_per_sample'] * 1e3:8.2f} ms a sample; tokenising takes {needed:.0f} x"
        )
    for row in results["streams"]:
        print(
            f"{row['tasks']:>7} {row['questions']:>6}: {row['samples_per_second']:,.0f} samples/s, "
            f"{row['tokens_per_second']:,.0f} tokens/s, {row['questions_per_sample']:.1f} questions a sample, "
            f"{row['share_of_one_story_each']:.0%} of the time in the simulator"
        )


if __name__ == "__main__":
    sys.exit(main())
