"""
Speed and memory of LM2 against Llama.

    python benchmarks/speed.py                            # everything; about half an hour on one quiet core
    python benchmarks/speed.py --parts prefill,decode     # these parts anew; the others stay in the JSON
    python benchmarks/speed.py --quick                    # tiny shapes: does the program work?
    python benchmarks/speed.py --profile default-h512-t2048

Writes speed.json, speed.md and one PNG per part into --out, after every part.
"""

import argparse
import json
import os
import sys
from pathlib import Path

PARTS = ("training", "length", "prefill", "decode")
RESULTS = Path(__file__).parent / "results"
FORMAT_VERSION = 2


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    # Before torch is imported: its thread pools read these once.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("speed.py: --device cuda, but torch finds no CUDA device; use --device cpu", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    if options.profile:
        return _profile(options)

    import parts
    import report
    from cells import SEED
    from measure import run_facts, start_children

    from lm2.data.files import write_whole

    start_children()
    settings = parts.Settings(options.device, options.dtype, options.threads, options.quick)
    path = options.out / "speed.json"
    results = _load(path)
    for name in options.parts:
        run = {
            **run_facts(options.device, options.threads, SEED),
            "quick": options.quick,
            "dtype": options.dtype,
            "clock": settings.clock,
        }
        measured = {"run": run, **parts.PARTS[name](settings)}
        # The order of the parts, not of their measurement.
        known = results["parts"] | {name: measured}
        results["parts"] = {part: known[part] for part in PARTS if part in known}
        with write_whole(path) as file:
            json.dump(results, file, indent=1)
        report.write_reports(results, options.out)
    missed = [target for part in results["parts"].values() for target in _targets(part) if not target["met"]]
    print(f"wrote {path} and {path.with_suffix('.md')}; {len(missed)} targets missed")
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="parts to measure, comma-separated (%(default)s)")
    parser.add_argument("--out", type=Path, help=f"folder (default: {RESULTS}; with --quick its subfolder quick)")
    parser.add_argument("--threads", type=int, default=1, help="of torch; children always have one (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that everything works")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--profile", metavar="CELL", help="only profile a training cell, by its name in speed.json")
    options = parser.parse_args(arguments)
    options.parts = [name.strip() for name in options.parts.split(",") if name.strip()]
    # Tiny shapes must never overwrite numbers that mean something.
    options.out = options.out or (RESULTS / "quick" if options.quick else RESULTS)
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"--parts: {', '.join(unknown)} unknown; choose from {', '.join(PARTS)}")
    if options.threads < 1:
        parser.error("--threads: at least 1")
    return options


def _load(path: Path) -> dict:
    if not path.exists():
        return {"format_version": FORMAT_VERSION, "parts": {}}
    results = json.loads(path.read_text())
    if results.get("format_version") != FORMAT_VERSION:
        raise SystemExit(f"speed.py: {path} has another format; move it away or choose another --out")
    return results


def _targets(part: dict) -> list[dict]:
    of_cells = [target for cell in part["cells"] for target in cell.get("targets", {}).values()]
    return [*of_cells, *part.get("targets", {}).values()]


def _profile(options: argparse.Namespace) -> int:
    """Writes torch.profiler's tables of a cell's training step, one per model."""
    from cells import SEED, compared_models, random_tokens, training_cells, training_step
    from torch.profiler import ProfilerActivity, profile

    cells = {cell.name: cell for quick in (False, True) for cell in training_cells(quick)}
    if options.profile not in cells:
        print(f"speed.py: --profile: no cell {options.profile}; there are {', '.join(cells)}", file=sys.stderr)
        return 2
    cell = cells[options.profile]
    activities, order = [ProfilerActivity.CPU], "self_cpu_time_total"
    if options.device == "cuda":
        activities, order = [*activities, ProfilerActivity.CUDA], "self_cuda_time_total"
    tables = []
    tokens = random_tokens(cell.tokens, SEED + 1, options.device)
    for name, spec in compared_models(cell.hidden, cell.memory, cell.head_dim).items():
        model = spec.build(options.device, options.dtype).train()
        training_step(model, tokens)
        with profile(activities=activities, profile_memory=True) as profiler:
            training_step(model, tokens)
        table = profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60)
        tables.append(f"{name}: one training step of {cell.name}\n{table}\n")
    path = options.out / f"profile_{cell.name}.txt"
    path.write_text("\n".join(tables))
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
