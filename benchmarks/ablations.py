"""
What does each part of LM2 do? One part is changed at a time, on associative recall with overwriting.

    python benchmarks/ablations.py                    # all variants, seeds 0 and 1: three hours of a core
    python benchmarks/ablations.py --jobs 2 --seed 0  # two at a time
    python benchmarks/ablations.py --only base,adamw --seed 7

Every variant is recipes/recall.yaml with some keys set, or with one function of the model replaced, trained by `lm2
train` in a process of its own. Then, with greedy answers to freshly drawn rows:

- accuracy at so many segments: rows like those of training, questions of the last segment;
- kept after so many segments: two segments of facts, then noise only, then each key is asked for.

Results are written after each run; a run that is there for the same recipe is not done again. Prints a table, and
writes results/ablations.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from threading import Lock

import numpy as np
from measure import run_facts

OUT = Path(__file__).parent / "results" / "ablations.json"
RECIPE = Path(__file__).parent.parent / "recipes" / "recall.yaml"
FORMAT_VERSION = 1
# Segments: rows. Longer ones cost more and need not be as exact.
ACCURACY_ROWS = {1: 128, 4: 128, 16: 128, 64: 64, 256: 16}
KEPT_ROWS = {0: 64, 16: 64, 256: 32, 2048: 8}
FACT_SEGMENTS = 2


@dataclass(frozen=True)
class Variant:
    """Attributes: what is changed, a function that changes the recipe's plain values, and one that changes the code."""

    what: str
    change: Callable[[dict], object] = lambda recipe: None
    patch: Callable[[], None] | None = None


def _write_without_erasing() -> None:
    import torch

    from lm2.models.lm2 import memory_lm2

    def add(gate_SN, content_SE):
        return torch.ones_like(gate_SN[..., 0, :]), gate_SN.transpose(-1, -2) @ content_SE.float()

    memory_lm2.erase_and_add = add


def _open_output_gate() -> None:
    from lm2.models.lm2.memory_lm2 import JointRead

    gated = JointRead._read
    JointRead._read = lambda self, *arguments: (*(found := gated(self, *arguments))[:2], found[2] * 0 + 1)


def _start_without_output() -> None:
    import torch

    import lm2.cli.build_model as building

    build = building.build_model

    def build_silent(*arguments):
        model = build(*arguments)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("memory.read.scale"):
                    parameter.zero_()
        return model

    building.build_model = build_silent


def _read_after_attention() -> None:
    from lm2.models.lm2 import block_lm2
    from lm2.models.lm2.memory_lm2 import SeparateRead

    attend, read, found = block_lm2.attend, SeparateRead.forward, []

    def attend_and_tell(attention, *arguments):
        attended = attend(attention, *arguments)
        found.append(attention.o_proj(attended.flatten(-2)))
        return attended

    block_lm2.attend = attend_and_tell
    SeparateRead.forward = lambda self, x_BGQD, *slots: read(self, x_BGQD + found.pop(), *slots)


def _write_seeing_slots() -> None:
    import torch
    import torch.nn.functional as F

    from lm2.models.lm2.memory_lm2 import AddressWrite, SegmentMemory

    begin, write = AddressWrite.__init__, SegmentMemory.write_segment

    def begin_with_gate(self, config):
        begin(self, config)
        self.slot_gate = torch.nn.Linear(config.hidden_size, config.num_memory_heads)

    def write_as_far(self, bank_BND, x_BSD, full_B):
        written = write(self, bank_BND, x_BSD, full_B)
        # Open at the start: sigmoid(2) is 0.88.
        gate_BNM = (self.write.slot_gate(F.rms_norm(bank_BND, bank_BND.shape[-1:])) + 2).sigmoid()
        gate_BND = gate_BNM.repeat_interleave(bank_BND.shape[-1] // gate_BNM.shape[-1], -1)
        return bank_BND + gate_BND * (written - bank_BND)

    def write_in_turn(self, bank, x_BGSD, full_BG, reset_BG, number_BG, last):
        num_rows, num_segments = x_BGSD.shape[:2]
        full_BG, number_BG = (t.expand(num_rows, -1) for t in (full_BG, number_BG))
        return self._write_in_turn(bank, x_BGSD, full_BG, reset_BG, number_BG, num_segments - (not last))

    AddressWrite.__init__ = begin_with_gate
    SegmentMemory.write_segment = write_as_far
    SegmentMemory.write_segments = write_in_turn


def _config(what: str, **fields: object) -> Variant:
    return Variant(what, lambda recipe: recipe["model"]["config"].update(fields))


def _without_copying(recipe: dict) -> None:
    recipe["data"] |= {"primer_length_tokens": None, "primer_vocab_size": None}
    recipe["curriculum"] = recipe["curriculum"][1:]
    del recipe["curriculum"][0]["primer_every"]


def _without_one_segment(recipe: dict) -> None:
    first, single, last = recipe["curriculum"]
    recipe["curriculum"] = [first, {**last, "primer_every": single["primer_every"]}]


def _more_entities(recipe: dict) -> None:
    for stage in recipe["curriculum"][1:]:
        stage["recall"] |= {"num_keys": 64, "num_values": 64}
    # All of them are copied first, as in the base.
    recipe["data"]["primer_vocab_size"] += 2 * (64 - 16)


def _half_rates(recipe: dict) -> None:
    for key in ("learning_rate", "adamw_learning_rate"):
        recipe["optimizer"][key] /= 2


def _rival(family: str, intermediate_size: int, change: Callable[[dict], object] | None = None) -> Callable:
    """Another architecture with as many parameters as LM2 (within 0.5%, which a test holds)."""

    def exchange(recipe: dict) -> None:
        config = recipe["model"]["config"]
        segment = config["segment_length"]
        for key in [key for key in config if "memory" in key or "segment" in key or key == "attention_window"]:
            del config[key]
        config["intermediate_size"] = intermediate_size
        if family != "llama":
            config |= {"num_memory_tokens": 16, "segment_length": segment, "memory_init_std": 1.0}
        recipe["model"]["architecture"] = family
        if change is not None:
            change(recipe)

    return exchange


VARIANTS = {
    "base": Variant("recipes/recall.yaml"),
    # The read.
    "separate": _config("read: a softmax of its own over the slots (the paper's)", memory_read="separate"),
    "separate-after": replace(
        _config("read: the same, asked by what attention found, too", memory_read="separate"),
        patch=_read_after_attention,
    ),
    "no-output-gate": Variant("read: output gate always open", patch=_open_output_gate),
    "silent": Variant("read: output factor starts at 0 instead of 1", patch=_start_without_output),
    "null-slot": _config("read: null slot", memory_null_slot=True),
    "top-k": _config("read: best 4 slots only", memory_top_k=4),
    # The write.
    "attend": _config(
        "write: slots attend to tokens, gates from what they hold", memory_write="attend", memory_write_floor=None
    ),
    "paper": _config(
        "design: to the letter of the paper (64 slots)",
        memory_design="paper",
        num_memory_slots=64,
        num_memory_heads=1,
        memory_write_floor=None,
    ),
    "adding": Variant("write: adds to slots, without erasing", patch=_write_without_erasing),
    "late-write": _config("write: from the state after attention and read", memory_write_source="attention"),
    "closed-gate": _config("write: input gates start at sigmoid(-2)", memory_input_gate_bias=-2.0),
    "no-floor": _config("write: no floor in evaluation", memory_write_floor=0.0),
    "floor-10": _config("write: floor of 0.1 in evaluation instead of 0.03", memory_write_floor=0.1),
    "seeing-slots": Variant("write: how far, from what the slot holds, too", patch=_write_seeing_slots),
    # The bank.
    "identity": _config("bank: starts as rows of the identity", memory_init="identity"),
    "slots-8": _config("bank: 8 slots instead of 16", num_memory_slots=8),
    "slots-32": _config("bank: 32 slots", num_memory_slots=32),
    "heads-1": _config("bank: 1 head instead of 4", num_memory_heads=1),
    "heads-8": _config("bank: 8 heads", num_memory_heads=8),
    "first-block": _config("blocks: memory in the first only", memory_layers=[0]),
    "last-block": _config("blocks: memory in the last only", memory_layers=[1]),
    "four-blocks": _config("four blocks: memory in all", num_hidden_layers=4),
    "four-first-two": _config("four blocks: memory in the first two", num_hidden_layers=4, memory_layers=[0, 1]),
    "four-second": _config("four blocks: memory in every second", num_hidden_layers=4, memory_layers=[1, 3]),
    "four-last-two": _config("four blocks: memory in the last two", num_hidden_layers=4, memory_layers=[2, 3]),
    "four-last": _config("four blocks: memory in the last", num_hidden_layers=4, memory_layers=[3]),
    # Attention and training.
    "window-2": _config("attention over two segments", attention_window=2),
    "bptt-2": _config("gradient through 2 segments", bptt_segments=2),
    "adamw": Variant(
        "optimizer: AdamW 3e-3 for all",
        lambda recipe: recipe.update(optimizer={"name": "adamw", "learning_rate": 3e-3}),
    ),
    "no-primer": Variant("curriculum: no copying", _without_copying),
    "no-single": Variant("curriculum: four segments at once", _without_one_segment),
    "entities-64": Variant("curriculum: 64 keys and values instead of 16", _more_entities),
    "narrow": Variant("embeddings of width 0.1 instead of 1", lambda recipe: recipe["model"].update(embedding_std=0.1)),
    "to-16": Variant(
        "trained on up to 16 segments", lambda recipe: recipe["curriculum"][-1]["segments"].update(max=16)
    ),
    # Rivals, with the same rates and with half of them.
    "rmt": Variant("RMT, 16 memory tokens", _rival("rmt", 211)),
    "rmt-half": Variant("RMT, half the rates", _rival("rmt", 211, _half_rates)),
    "armt": Variant("ARMT, 16 memory tokens", _rival("armt", 143)),
    "armt-half": Variant("ARMT, half the rates", _rival("armt", 143, _half_rates)),
    "base-half": Variant("LM2, half the rates", _half_rates),
    "llama": Variant("Llama, attention over everything", _rival("llama", 214)),
}


def recipe_of(name: str, seed: int) -> dict:
    """The plain values of a variant's recipe."""
    from lm2.train.checking import parse_yaml

    recipe = parse_yaml(RECIPE.read_text("utf-8"))
    VARIANTS[name].change(recipe)
    return {**recipe, "name": name, "seed": seed}


def train_and_measure(name: str, seed: int, out: Path) -> None:
    """In a process of its own, as a variant may have changed the code."""
    import torch

    from lm2.cli.train import train
    from lm2.train.checking import dump_yaml

    torch.set_num_threads(1)
    variant = VARIANTS[name]
    if variant.patch is not None:
        variant.patch()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(dump_yaml(recipe_of(name, seed)), "utf-8")
        run = Path(folder) / "run"
        train(path, out=run)
        out.write_text(json.dumps(measure(run)), "utf-8")


def measure(run: Path) -> dict:
    """Counts of right answers and of questions, by segments."""
    from lm2.cli.load_model import load_model
    from lm2.data.tokenizer import load_tokenizer
    from lm2.eval.runner import keeps_bounded_state
    from lm2.train.batches import BatchSource
    from lm2.train.config import load_recipe

    recipe = load_recipe(run / "recipe.yaml")
    model = load_model(run / "model", "cpu", "auto", None).model
    # The questions are the base's, whatever else was trained on.
    task, segment = load_recipe(RECIPE).curriculum[-1].recall, recipe.data.segment_length_tokens
    known = BatchSource(recipe).recall_vocabulary(len(recipe.curriculum) - 1)
    vocabulary = replace(known, keys=known.keys[: task.num_keys], values=known.values[: task.num_values])
    assert len(load_tokenizer("builtin")) <= model.config.vocab_size
    longest = np.inf if keeps_bounded_state(model) else 64
    accuracy = {
        count: right_answers(
            model, [fresh_row(seed, count * segment, task, vocabulary) for seed in range(rows)], segment
        )
        for count, rows in ACCURACY_ROWS.items()
        if count <= longest
    }
    kept = {
        count: right_answers(model, [told_row(seed, count, segment, task, vocabulary) for seed in range(rows)], None)
        for count, rows in KEPT_ROWS.items()
        if count <= longest
    }
    log = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    stages = {row["stage"]: row["step"] for row in log if row.get("event") == "stage"}
    return {"parameters": model.num_parameters(), "stages": stages, "accuracy": accuracy, "kept": kept}


def fresh_row(seed: int, length_tokens: int, task, vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and the places of all answers, of a row that no training has seen."""
    from lm2.data.recall import recall_row

    row = recall_row(Random(f"ablations {seed}"), length_tokens, task, vocabulary)
    return row.input_ids, row.answers


def told_row(seed: int, noise_segments: int, segment: int, task, vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Two segments like those of training, noise, and a question for each key that was told."""
    rng = Random(f"kept {seed}")
    told, _ = fresh_row(seed, FACT_SEGMENTS * segment, task, vocabulary)
    latest = {}
    for key, value in zip(told[:-1].tolist(), told[1:].tolist(), strict=True):
        if key in vocabulary.keys and value in vocabulary.values:
            latest[key] = value
    noise = [vocabulary.noise[int(rng.random() * len(vocabulary.noise))] for _ in range(noise_segments * segment)]
    asked = [token for key, value in latest.items() for token in (vocabulary.ask, key, value)]
    begin = len(told) + len(noise)
    return np.array([*told, *noise, *asked]), begin + 2 + 3 * np.arange(len(latest))


def right_answers(model, rows: Sequence[tuple[np.ndarray, np.ndarray]], last_tokens: int | None) -> tuple[int, int]:
    """Right answers, and questions, in the last so many tokens of each row; in all of it if None."""
    import torch

    right = asked = 0
    for ids, answers in rows:
        places = answers if last_tokens is None else answers[answers >= len(ids) - last_tokens]
        with torch.inference_mode():
            hidden = model.model(input_ids=torch.from_numpy(ids)[None], use_cache=False).last_hidden_state
            chosen = model.lm_head(hidden[0, places - 1]).argmax(-1).numpy()
        right, asked = right + int((chosen == ids[places]).sum()), asked + len(places)
    return right, asked


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    if options.run:
        train_and_measure(options.run, options.seed[0], options.out)
        return 0
    runs = json.loads(options.out.read_text("utf-8"))["runs"] if options.out.exists() else []
    lock, facts = Lock(), {**run_facts("cpu", threads=1, seed=options.seed[0]), "seed": options.seed}

    def run(name: str, seed: int) -> None:
        recipe = recipe_of(name, seed)
        if any(run["recipe"] == recipe for run in runs):
            return
        with tempfile.TemporaryDirectory() as folder:
            found = Path(folder) / "found.json"
            command = [sys.executable, __file__, "--run", name, "--seed", str(seed), "--out", str(found)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{name}, seed {seed}: failed\n{done.stderr[-2000:]}", file=sys.stderr)
                return
            with lock:
                runs[:] = [run for run in runs if (run["variant"], run["seed"]) != (name, seed)]
                runs.append(
                    {
                        "variant": name,
                        "seed": seed,
                        "commit": facts["commit"],
                        "recipe": recipe,
                        **json.loads(found.read_text()),
                    }
                )
                options.out.write_text(json.dumps({"format_version": FORMAT_VERSION, **facts, "runs": runs}, indent=1))
                print(_line(name, [run for run in runs if run["variant"] == name]), flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda job: run(*job), [(name, seed) for seed in options.seed for name in options.only]))
    print_table(runs)
    return 0


def print_table(runs: Sequence[dict]) -> None:
    """One line for each variant, means over its seeds."""
    print(f"\n{'':<62}{'seeds':>6}  accuracy at segments: {', '.join(map(str, ACCURACY_ROWS))}; kept after: ", end="")
    print(", ".join(map(str, KEPT_ROWS)))
    for name in VARIANTS:
        if mine := [run for run in runs if run["variant"] == name]:
            print(_line(name, mine))


def _line(name: str, runs: Sequence[dict]) -> str:
    def mean(kind: str, count: int) -> str:
        shares = [run[kind][str(count)] for run in runs if str(count) in run[kind]]
        return f"{100 * statistics.mean(right / asked for right, asked in shares):>5.0f}" if shares else "    -"

    numbers = "".join(mean("accuracy", count) for count in ACCURACY_ROWS)
    kept = "".join(mean("kept", count) for count in KEPT_ROWS)
    return f"{VARIANTS[name].what:<62}{len(runs):>6}  {numbers}  |{kept}"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1], help="of training (0 1)")
    parser.add_argument("--only", default=",".join(VARIANTS), help="variants, by name (all)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="results (%(default)s)")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(VARIANTS):
        parser.error(f"--only: no variant {', '.join(sorted(unknown))}; known are {', '.join(VARIANTS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
