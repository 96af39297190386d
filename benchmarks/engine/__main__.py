"""The command: ``python -m benchmarks.engine``."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from . import __doc__ as about
from . import beside, memory, reports
from .work import REAL, SIZES, Machine, Work

WORKS = ["search", "problems", "sampler", "rebase", "completions", "fewshot", "memory"]


def main() -> None:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*sorted(SIZES), REAL], default="s")
    parser.add_argument("--prompt", type=int, default=256, help="prompt tokens")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64, help="sampled tokens of each row")
    parser.add_argument("--step", type=int, default=16, help="tokens of a step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", nargs="*", choices=sorted(reports.WAYS), default=["naive", "kept", "gathered"])
    parser.add_argument("--beside", nargs="*", choices=sorted(beside.RUNNERS), default=[], help="other engines")
    parser.add_argument("--work", nargs="*", choices=WORKS, default=["search", "problems", "sampler"])
    parser.add_argument("--problems", type=int, nargs="*", default=[1, 8, 64], help="for --work rebase")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--before", type=Path, help="root of an older checkout: its figures stand beside, in turns")
    parser.add_argument("--json", type=Path, help="write our seconds there")
    options = parser.parse_args()
    if options.before is not None:
        compare_checkouts(options.before, options.repeats)
        return
    run(options)
    if options.json is not None:
        options.json.write_text(json.dumps(reports.FIGURES))


def compare_checkouts(before: Path, repeats: int) -> None:
    """Prints our least seconds in every report that was asked for, with the library of both checkouts."""
    root = Path(__file__).parents[2]
    arguments = [a for a in sys.argv[1:] if a != "--before" and a != str(before)]
    found: dict[Path, list[dict[str, float]]] = {before.resolve(): [], root: []}
    for _ in range(repeats):
        for checkout, figures in found.items():
            with TemporaryDirectory() as folder:
                out = Path(folder) / "figures.json"
                command = [sys.executable, "-m", "benchmarks.engine", *arguments, "--repeats", "1", "--json", str(out)]
                paths = os.pathsep.join([str(checkout / "src"), str(root)])
                env = {**os.environ, "PYTHONPATH": paths}
                subprocess.run(command, env=env, cwd=root, stdout=subprocess.DEVNULL, check=True)
                figures.append(json.loads(out.read_text()))
    print("| work | before | now | times as fast |\n|---|---|---|---|")
    for title in found[root][0]:
        old, new = (min(figures[title] for figures in each) for each in found.values())
        print(f"| {title} | {old:.2f} | {new:.2f} | {old / new:.2f} |")


def run(options: argparse.Namespace) -> None:
    """Every work that was asked for, one after the other."""
    torch.set_num_threads(1)
    machine = Machine(options.device, options.dtype)
    work = Work(options.prompt, options.rows, options.tokens, options.step)
    several = replace(work, rows=4, problems=16)
    common = (options.size, options.repeats, machine)
    if "search" in options.work:
        reports.search(*common, work, options.ways, options.beside)
    if "problems" in options.work:
        reports.problems(*common, several)
    if "sampler" in options.work:
        reports.sampler(*common, work)
    if "rebase" in options.work:
        for count in options.problems:
            reports.rebase(*common, replace(work, problems=count))
    if "completions" in options.work:
        reports.completions(*common, replace(work, rows=64, tokens=4 * work.tokens, problems=4))
    if "fewshot" in options.work:
        reports.fewshot(*common, replace(several, common=7 * work.prompt // 8))
    if "memory" in options.work:
        memory.memory(options.size, options.prompt, options.step, machine)


if __name__ == "__main__":
    main()
