"""Command line of the study.

``python -m studies.scaling run`` makes the records (resumable), ``report`` prints the tables, ``plot`` draws them,
``claims`` answers the questions that the study is made for, and ``pages`` puts all of them into the documentation.
``pack`` joins files of records, ``paper`` prints the tables of Wu et al. (arXiv:2408.00724) for the same records, and
``voting`` sets the theory of votes beside the measurement, ``hedging`` best-of-n beside its pessimistic vote, and
``pools`` one budget for all problems beside uniform shares.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from inferscale import zoo

from .cells import cells, sensitivity_cells
from .claims import claims
from .hedging import hedging
from .judges import judges_table
from .measure import pack, read, run_all
from .page import fill
from .paper import paper, paper_parts
from .plots import plot_all
from .pools import pools
from .report import Records, report, sensitivity_tables
from .voting import voting

READERS = ("report", "pages", "plot", "claims", "paper", "voting", "hedging", "pools")


def main() -> None:
    """Runs or reports."""
    parser = argparse.ArgumentParser(prog="python -m studies.scaling", description=__doc__)
    parser.add_argument("what", choices=("run", "sensitivity", "pack", *READERS))
    parser.add_argument("--policies", nargs="+", default=["policy-xs", "policy-s", "policy-m"])
    parser.add_argument("--reward", default="prm-s")
    parser.add_argument("--problems", type=int, default=500, help="of the 500 test problems")
    parser.add_argument("--split", choices=("test", "dev"), default="test")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--widths", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--strategies", nargs="+", default=["RepeatedSampling", "REBASE", "BeamSearch", "DVTS"])
    parser.add_argument("--reduction", default="last", help="of step scores, in the report")
    parser.add_argument("--records", type=Path, nargs="+", default=[Path("runs/scaling/records.jsonl")])
    parser.add_argument("--compare", nargs=2, default=["policy-s", "policy-m"], help="small and large policy")
    parser.add_argument("--plots", type=Path, default=Path("docs/images"), help="folder for the pictures")
    parser.add_argument("--packed", type=Path, default=Path("studies/scaling/records.jsonl.gz"), help="for pack")
    parser.add_argument("--docs", type=Path, default=Path("docs/project"), help="folder of the pages")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--progress", action="store_true")
    options = parser.parse_args()
    if options.what == "pack":
        print(pack(options.records, options.problems, options.packed), "records in", options.packed)
        return
    if options.what in READERS:
        found = {record["key"]: record for path in options.records for record in read(path)}
        records = sorted(found.values(), key=_order)
        for line in _printed(options, records):
            print(line, flush=True)
        return
    import torch

    torch.set_num_threads(options.threads)
    problems = zoo.problems(options.split)[: options.problems]
    if options.what == "run":
        chosen = cells(options.policies, options.reward, options.seeds, options.widths)
    else:
        chosen = sensitivity_cells(options.policies[0], options.reward, options.seeds, 16)
    chosen = (cell for cell in chosen if type(cell.strategy).__name__ in options.strategies)
    run_all(chosen, problems, options.records[0], options.progress)


def _order(record: dict[str, Any]) -> tuple[object, ...]:
    """Small policies first, each with its trained judges before others."""
    policies = ["policy-xs", "policy-s", "policy-m"]
    place = policies.index(record["policy"]) if record["policy"] in policies else len(policies)
    return place, not record["reward"].startswith("prm"), record["reward"], record["seed"]


def _tables(records: Records, options: argparse.Namespace) -> dict[str, list[str]]:
    """All tables, by the part of the page that they stand in."""
    return {
        "tables": [*judges_table(records, options.reduction), *report(records, options.reduction)],
        "sensitivity": sensitivity_tables(records, options.compare[0], options.reward, options.reduction),
    }


def _pages(records: Records, options: argparse.Namespace) -> Iterable[str]:
    """Prints the pages of the study and of the papers anew: tables, claims and pictures."""
    given = records, options.reward, options.reduction
    fill(options.docs / "scaling_study.md", {"claims": claims(*given, *options.compare), **_tables(records, options)})
    fill(options.docs / "papers.md", paper_parts(*given, options.plots))
    yield from map(str, plot_all(*given, options.plots))


def _printed(options: argparse.Namespace, records: Records) -> Iterable[object]:
    """What a command prints of the records."""
    given = records, options.reward, options.reduction
    match options.what:
        case "pages":
            return _pages(records, options)
        case "plot":
            return plot_all(*given, options.plots)
        case "claims":
            return claims(*given, *options.compare)
        case "paper":
            return paper(*given, options.plots)
        case "hedging":
            return hedging(*given)
        case "pools":
            return pools(records, options.compare[0], *given[1:], options.seeds)
        case "voting":
            return voting(records, options.compare[0], *given[1:], options.plots / "voting.png")
        case _:
            return chain(*_tables(records, options).values())


if __name__ == "__main__":
    main()
