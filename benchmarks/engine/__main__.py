"""The command: ``python -m benchmarks.engine``."""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from . import __doc__ as about
from . import beside, memory, reports
from .work import SIZES, Machine, Work

WORKS = ["search", "problems", "sampler", "rebase", "completions", "fewshot", "memory"]


def main() -> None:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="s")
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
    run(parser.parse_args())


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
