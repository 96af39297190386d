r"""The study on any Hugging Face model and any GSM8K file: ``python -m studies.thoughts``.

Without options it takes a few minutes on embedded models: a short training of thoughts, then ten problems. That is
enough to see the parts work and far too little to compare accuracies: read the intervals. In the paper: baseline
10.16 %, Quiet-STaR 32.03 %, REBASE 10.94, 10.16 and 12.50 % at width 3, 6 and 16, both together 9.38 %, each of 128
questions, where the standard error is 2.7 points. Its settings::

    python -m studies.thoughts --model mistralai/Mistral-7B-v0.1 --quiet ezelikman/quietstar-8-ahead \
        --reward peiyi9979/math-shepherd-mistral-7b-prm --data test.jsonl --problems 128 --max-new-tokens 384 \
        --preset published

``published`` follows the released settings: a step is 96 tokens, a path ends as soon as its last sentences hold a
digit, nodes that score 0.1 or less are dropped, the best-scored fragment answers, and start and end of a thought are
overwritten. ``corrected`` keeps steps whole, lets paths end where the model ends them, and votes. ``--ablation rules``
mends one published rule after the other, with thoughts and without, and so shows which of them the fall comes from.
"""

from __future__ import annotations

import argparse

from . import ABLATIONS, PRESETS, ThoughtStudy


def main() -> None:
    """Print the table of the study, or the rows of an ablation."""
    parser = argparse.ArgumentParser(prog="python -m studies.thoughts", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="policy-s", help="an embedded policy, a model folder, or a hub id")
    parser.add_argument("--quiet", help="folder of a trained wrapper; by default one is trained for --train-steps")
    parser.add_argument("--reward", default="simulated", help="simulated, prm-s, prm-xs, or a PRM's folder or hub id")
    parser.add_argument("--data", help="GSM8K as .jsonl; by default the embedded task")
    parser.add_argument("--preset", choices=PRESETS, default="corrected")
    parser.add_argument("--problems", type=int, default=10)
    parser.add_argument("--votes", type=int, default=6)
    parser.add_argument("--widths", type=int, nargs="+", default=[3, 6, 16])
    parser.add_argument("--step-tokens", type=int, default=96, help="where the published rules cut a step")
    parser.add_argument("--max-new-tokens", type=int, default=160)
    parser.add_argument("--thought-length", type=int, default=3, help="of thoughts trained here (published: 5)")
    parser.add_argument("--train-steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ablation", choices=ABLATIONS)
    options = vars(parser.parse_args())
    ablation = options.pop("ablation")
    study = ThoughtStudy.load(**options)
    print(f"{options['preset']} settings, {len(study.problems)} problems")
    for row in ABLATIONS[ablation](study) if ablation else study.table():
        print(row, flush=True)


if __name__ == "__main__":
    main()
