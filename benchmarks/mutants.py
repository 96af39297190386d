"""Sixty plausible bugs of the core, put in one at a time: which of them does the quick suite see?

Run with ``python -m benchmarks.mutants``. Each mutant is one changed line in a copy of the package. Its own test files
run first, up to the first failure, and all others for those that pass; a mutant that passes them all has survived, and
shows what no test looks at. What is known stands in ``--results``, so that a run that was stopped goes on; ``--only
functional`` runs the mutants of a room, ``--list`` none.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from inferscale.engine.files import append_line, read_lines

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "inferscale"
QUICK = "not slow and not real and not servers"


class Mutant(NamedTuple):
    """A bug.

    Attributes:
        file: Of the package.
        old: Text that occurs once in it.
        new: What stands there instead.
        breaks: What is wrong then.
        tests: Names of the test files that are tried first, without ``test_``.
    """

    file: str
    old: str
    new: str
    breaks: str
    tests: str


MUTANTS = [
    # functional: allocation, resampling, votes, estimators, reductions, likeness
    Mutant("functional/allocation.py", "math.ceil(left * weight / remaining - _SLACK)",
           "round(left * weight / remaining)", "REBASE rounds shares instead of taking their ceiling",
           "functional_allocation"),
    Mutant("functional/allocation.py", "wanted = xp.where(last == i, left, ops", "wanted = xp.where(last == i, 0, ops",
           "the last node of a batched row gets nothing", "functional_allocation"),
    Mutant("functional/allocation.py", "weights / total[..., None] * budget[..., None] + 0.5",
           "weights / total[..., None] * budget[..., None]", "the paper's rounding rounds down",
           "functional_allocation"),
    Mutant("functional/allocation.py", "own - logsumexp(scaled)", "own",
           "DORA does not share the weight of a direction",
           "functional_allocation strategies_heirs"),
    Mutant("functional/resampling.py", "return scaled.sum(-1) ** 2 / (scaled**2).sum(-1)",
           "return scaled.sum(-1) / (scaled**2).sum(-1)", "the effective sample size depends on the scale",
           "functional_resampling"),
    Mutant("functional/resampling.py", 'ops.searchsorted(running, u * total, side="right")',
           'ops.searchsorted(running, u * total, side="left")', "a particle of weight 0 can be drawn",
           "functional_resampling"),
    Mutant("functional/voting.py", "leaders = ids >= 0", "leaders = ids >= -1", "abstentions win votes",
           "functional_votes"),
    Mutant("functional/voting.py", "return total + error", "return total", "sums of votes depend on their order",
           "functional_votes"),
    Mutant("functional/estimators.py", "math.comb(count - 1, t - 1) * correct", "math.comb(count, t) * correct",
           "majority@k counts an answer's credit too often", "functional_estimators"),
    Mutant("functional/estimators.py", "chosen[-1] * n // (n - k)", "chosen[-1] * n // (n - k + 1)",
           "binomial coefficients of pass@k are wrong", "functional_estimators"),
    Mutant("functional/estimators.py", 'for side in ("left", "right"))', 'for side in ("left", "left"))',
           "tied scores do not share their chance in best-of-k", "functional_estimators"),
    Mutant("functional/reductions.py", "xp.where(present, scores, ops.float64(1.0)).prod(-1)",
           "xp.where(present, scores, ops.float64(0.0)).prod(-1)", "masked steps make a product 0",
           "functional_reductions"),
    Mutant("functional/likeness.py", 'method="average"', 'method="single"', "chains of likeness make one cluster",
           "functional_likeness"),
    # strategies
    Mutant("strategies/levels.py", "width_left = width - len(finished)", "width_left = width",
           "a finished leaf gives its unit of the width back", "strategies_levels"),
    Mutant("strategies/levels.py", "sorted(candidates, key=lambda node: -value[node])",
           "sorted(reversed(candidates), key=lambda node: -value[node])", "among equals the beam keeps the youngest",
           "mutations strategies_levels"),
    Mutant("strategies/levels.py", "if self.threshold is None or c.score >= self.threshold",
           "if self.threshold is None or c.score > self.threshold",
           "depth first prunes a child at the threshold", "strategies_greedy"),
    Mutant("strategies/levels.py", "stack += [c for c in reversed(ranked)", "stack += [c for c in ranked",
           "depth first visits the worst child first", "strategies_greedy"),
    Mutant("strategies/levels.py", "children, self.lookahead)), strict", "children, 0)), strict",
           "beam search does not look ahead", "strategies_levels strategies_composed"),
    Mutant("strategies/mcts.py", "math.sqrt(log_visits / tree.visits_now(kid))",
           "math.sqrt(log_visits / (1 + tree.visits_now(kid)))", "UCT explores less",
           "strategies_golden strategies_mcts"),
    Mutant("strategies/mcts.py", "return self.value[node] * visits / (visits + losses) if losses",
           "return self.value[node] if losses", "virtual losses do not count", "strategies_mcts"),
    Mutant("strategies/mcts.py", "for node in (*path, kid):  # N += 1", "for node in path:  # N += 1",
           "a new child has no visit of its own", "strategies_mcts"),
    Mutant("strategies/particles.py", "return log_potential(new, root, twist) - (0.0 if before == DEAD else before)",
           "return log_potential(new, root, twist)", "particles are weighted by the whole score at every level",
           "strategies_smc"),
    Mutant("strategies/particles.py", "[total - math.log(n) + correction for correction in corrections]",
           "[correction for correction in corrections]", "the estimate of the evidence forgets earlier levels",
           "strategies_smc"),
    Mutant("strategies/particles.py", "particles = [particles[i] for i in (0, *ancestors)]",
           "particles = [particles[i] for i in (*ancestors, 0)]", "particle Gibbs loses the reference's place",
           "strategies_smc"),
    Mutant("strategies/sampling.py", "decided = decided or self.decides", "decided = self.decides",
           "adaptive consistency takes a decision inside a block back", "strategies_adaptive"),
    Mutant("strategies/sampling.py", "for j in range(first + 1)) / (1 << n)", "for j in range(first)) / (1 << n)",
           "adaptive consistency samples on for too long", "strategies_adaptive"),
    # engine
    Mutant("engine/search.py", "tokens - fit * min(bounds)", "tokens", "a call may sample the same budget twice",
           "engine"),
    Mutant("engine/search.py", "else self._payers.setdefault((node, request.generator), node.num_draws)", "else 0",
           "a prompt is paid for once, though two generators read it", "engine_sessions ask"),
    Mutant("engine/search.py", 'if spent is None or spent in ("tokens", "calls"):  # scoring',
           "if spent is None:  # scoring",
           "the answer that the last token bought is not scored", "engine"),
    Mutant("engine/search.py", "node = Node(home.problem, step, home, branch_key(parent.key, draw))",
           "node = Node(home.problem, step, home, branch_key(parent.key, 0))", "siblings share a random stream",
           "engine"),
    Mutant("engine/search.py", "self.replayed_seconds += answer.seconds\n", "pass\n",
           "the clock forgets what a replayed journal took", "journal"),
    Mutant("engine/search.py", 'if samples.stopped_by != "cancel":', "if True:",
           "a cancelled answer is recorded, and the search does not go on", "journal"),
    Mutant("engine/scheduling.py", "own = slice(start, start + len(batch))", "own = slice(0, len(batch))",
           "all searches of a batch are billed and scored as the first", "engine schedule"),
    Mutant("engine/scheduling.py", "asked.steps[place][first + index] = step", "asked.steps[place][index] = step",
           "samples that go on from a journal overwrite those before", "generator_sessions"),
    Mutant("engine/solver.py", 'again = f"#{occurrence}" if occurrence else ""', 'again = ""',
           "equal prompts get equal samples", "engine"),
    Mutant("engine/journal.py", "known = place == count[row[\"root\"]]", "known = True",
           "a journal that lost a line answers the wrong question", "journal"),
    Mutant("engine/files.py", "return row if told == _crc(json.dumps(row)) else None", "return row",
           "a flipped bit is read as if nothing had happened", "journal evaluate_records"),
    Mutant("engine/pool.py", "if bound is None or bound > tokens:", "if bound is None:",
           "a pool of tokens is passed", "pool"),
    # runtime
    Mutant("runtime/sampling.py", "(_shifted(mixed, 11).double() + 0.5)", "_shifted(mixed, 11).double()",
           "a uniform number can be 0", "hf_generator_sampling"),
    Mutant("runtime/sampling.py", "target = numbers[:, None] * cumulated[:, -1:]", "target = numbers[:, None]",
           "unnormalised weights are taken for probabilities", "hf_generator_sampling"),
    Mutant("runtime/sampling.py", "((share.cumsum(dim=-1) - share) < top_p)", "(share.cumsum(dim=-1) < top_p)",
           "the token that reaches top_p is left out", "hf_generator_sampling"),
    Mutant("runtime/sampling.py", "own = _pick(raw, tokens) - log_total\n        return Draws(tokens, shares",
           "own = shares.log().to(raw.dtype)\n        return Draws(tokens, shares",
           "confidences are those after temperature and filters", "hf_generator_sampling"),
    Mutant("runtime/processing.py", "torch.where(seen < 0, seen * self._penalty, seen / self._penalty)",
           "seen / self._penalty", "the repetition penalty favours tokens of negative logits", "generation_controls"),
    Mutant("runtime/charges.py", "(forced if branch.index == 0 else 0)\n        flops", "forced\n        flops",
           "every sample pays for the forced text", "flops_generator"),
    Mutant("runtime/branch.py", "left if self.context is None else min(left, self.context - prompt - path)", "left",
           "a path runs out of the model's context", "hf_generator"),
    Mutant("runtime/text.py", "return text if final else text.rstrip(_PARTIAL)", "return text",
           "half a character is taken for text", "hf_generator generation_controls"),
    Mutant("runtime/prefix_cache.py", "if entry is None or entry.ids != tuple(ids):", "if entry is None:",
           "a collision of names gives another path's keys", "hf_generator_tree"),
    Mutant("runtime/decoding.py", "path = path.grown((*branch.forced, *branch.tokens)[:-1])",
           "path = path.grown((*branch.forced, *branch.tokens))", "a node is parked with a token that was not read",
           "hf_generator_tree"),
    # answers
    Mutant("answers.py", "return all(self._agree(answer, other) or self._agree(other, answer) for other in known)",
           "return any(self._agree(answer, other) or self._agree(other, answer) for other in known)",
           "5 cm and 5 km meet in one group through 5", "real_text"),
    Mutant("answers.py", "position += 1  # an escaped brace is text", "pass",
           "an escaped brace closes a box", "answers"),
    Mutant("answers.py", "Fraction(1, 10**decimal.places)", "Fraction(1, 10 ** (decimal.places - 1))",
           "a decimal agrees with fractions that it does not round", "answers"),
    Mutant("answers.py", "if first.unit != second.unit and first.unit and second.unit:",
           "if first.unit != second.unit:", "15 is not the same as 15 cm", "real_text"),
    Mutant("answers.py", "return self.find(complete, stated=True)", "return self.find(complete)",
           "any number of a text that was cut off is its answer", "answer_kinds real_text"),
    Mutant("answers.py", "return pieces[-1] if pieces else None", "return pieces[0] if pieces else None",
           "an answer is read before thoughts that came later", "thinking"),
    # flops
    Mutant("flops/spec.py", "new * past + new * (new + 1) // 2", "new * past + new * (new - 1) // 2",
           "a token does not see itself", "flops_formulas"),
    Mutant("flops/spec.py", "AttentionGroup(4 * heads * head_dim * count,",
           "AttentionGroup(4 * kv_heads * head_dim * count,",
           "grouped queries are billed as fewer", "flops_formulas"),
    Mutant("flops/spec.py", "2 if cfg.family in _PLAIN else 3", "2", "the gate of an MLP is free", "flops_formulas"),
    Mutant("flops/spec.py", "forward_cost(spec, sampled - 1, prefix, logits=sampled - 1)",
           "forward_cost(spec, sampled, prefix, logits=sampled)",
           "a sample's last token is billed though it is not read", "flops_generator"),
    Mutant("flops/spec.py", "min(past, window - 1)))", "min(past, window)))",
           "a window holds a token too many", "flops_formulas"),
    Mutant("flops/ledger.py", "return 2 * spec.nominal_parameters * tally.sampled",
           "return 2 * spec.nominal_parameters * tally.tokens", "the axis of REBASE's paper counts prompts",
           "flops_conventions"),
]  # fmt: skip


def killer_of(mutant: Mutant, folder: Path, others: bool = False) -> str | None:
    """Return the test that fails with a mutant in the package's copy in `folder`; ``None`` if none does.

    Args:
        mutant: The bug.
        folder: Where the copy is.
        others: True to run all files but the mutant's own, False for those alone.
    """
    target = folder / "inferscale" / mutant.file
    original = (PACKAGE / mutant.file).read_text(encoding="utf-8")
    changed = original.replace(mutant.old, mutant.new)
    ast.parse(changed)  # else any test would kill it
    target.write_text(changed, encoding="utf-8")
    own = [f"tests/test_{name}.py" for name in mutant.tests.split()]
    try:
        return _failing([f"--ignore={name}" for name in own] if others else own, folder)
    finally:
        target.write_text(original, encoding="utf-8")


def _failing(arguments: list[str], folder: Path) -> str | None:
    paths = os.pathsep.join([str(folder), str(ROOT)])
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", QUICK, "-p", "no:xdist"]
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
    if failed is not None:
        return failed[1].removeprefix("tests/")
    if re.search(r"\+ Timeout \+", done.stdout + done.stderr):  # of one test: it ends the process without a report
        return "a test that did not end"
    raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def main() -> None:
    """Prints which mutants were killed, and by which test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("runs/mutants.jsonl"), help="what is known, and will be")
    parser.add_argument("--only", default="", help="the mutants of files whose path begins so")
    parser.add_argument("--list", action="store_true", help="run nothing")
    options = parser.parse_args()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    known = read_lines(options.results.read_bytes())[0] if options.results.exists() else []
    killers = {(row["file"], row["old"], row["new"]): row["killed_by"] for row in known if row is not None}
    chosen = [mutant for mutant in MUTANTS if mutant.file.startswith(options.only)]
    with tempfile.TemporaryDirectory() as name, options.results.open("ab", buffering=0) as results:
        folder = Path(name)
        shutil.copytree(PACKAGE, folder / "inferscale", ignore=shutil.ignore_patterns("__pycache__"))
        for others in (False, True):  # what its own tests kill first: the rest takes minutes for each
            for mutant in [] if options.list else [mutant for mutant in chosen if mutant[:3] not in killers]:
                killer = killer_of(mutant, folder, others)
                if killer or others:
                    killers[mutant[:3]] = killer
                    append_line(results, json.dumps({**mutant._asdict(), "killed_by": killer}))
                print(f"{mutant.file}: {mutant.breaks}: {killer or 'SURVIVED'}", flush=True)
    tried = [mutant for mutant in chosen if mutant[:3] in killers]
    rooms = [mutant.file.partition("/")[0].removesuffix(".py") for mutant in tried]
    dead = Counter(room for room, mutant in zip(rooms, tried, strict=True) if killers[mutant[:3]] is not None)
    print("\n| room | mutants | killed |\n|---|---:|---:|")
    for room, count in Counter(rooms).items():
        print(f"| `{room}` | {count} | {dead[room]} |")
    print(f"| all | {len(tried)} | {dead.total()} |")


if __name__ == "__main__":
    main()
