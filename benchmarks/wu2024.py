"""Inference scaling laws: the experiments of Wu et al. (arXiv:2408.00724) on models of your choice.

With no options the embedded models are measured on a few problems, in about a minute, with the exact checker as
reward: an oracle, and free, so the search strategies look their best. For the real thing:

    python -m benchmarks.wu2024 --models path/to/7b path/to/34b --reward path/to/prm --dataset math \
        --data math500.jsonl --style boxed --problems 500 --sizes 4 16 64 256 --out figures
"""

import argparse
from pathlib import Path

from inferscale import REBASE, RepeatedSampling, zoo
from inferscale.evaluate import load_examples, prompt_style
from inferscale.evaluate.experiments import (
    compare_strategies,
    curves_by_group,
    reward_quality_sweep,
    table_of_savings,
    temperature_sweep,
)
from inferscale.evaluate.parts import make_generator, make_reward
from inferscale.scaling import fit_optimal_size, pareto_frontier

EXPERIMENTS = ("strategies", "difficulty", "temperature", "reward")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    policies = [card.name for card in zoo.list() if card.kind == "policy"]
    parser.add_argument("--models", nargs="+", default=policies, help="folders, hub ids, or embedded policies")
    parser.add_argument("--reward", default="checker", help="checker, likelihood, or a process reward model")
    parser.add_argument("--dataset", default="embedded")
    parser.add_argument("--data", default=None)
    parser.add_argument("--style", default=None)
    parser.add_argument("--problems", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--max-new-tokens", type=int, default=160)
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--mcts", action="store_true", help="measure Monte Carlo tree search too (slow)")
    parser.add_argument("--out", type=Path, default=None, help="folder for figures (needs matplotlib)")
    return parser.parse_args()


def show(title, points):
    print(f"\n{title}")
    for p in points:
        error = f"{100 * p.accuracy:5.1f} ± {100 * p.standard_error:4.1f} %"
        print(f"  {p.name:<44} n={p.n:<4} {error}  {p.generator_flops:.3g} policy + {p.reward_flops:.3g} reward FLOPs")


def main() -> None:
    given = options()
    style = prompt_style(given.style or ("plain" if given.dataset == "embedded" else "cot"))
    examples = load_examples(given.dataset, given.data, limit=given.problems)
    problems, width = [style.problem(example) for example in examples], max(given.sizes)
    common = {"extract_answer": style.reader(), "seeds": given.seeds}
    models = {name: make_generator(name, given.temperature, given.max_new_tokens) for name in given.models}
    figures = {}

    if "strategies" in given.only:  # error against compute by size and strategy, the optimal size, and table 1
        points = []
        for name, generator in models.items():
            size = generator.model.num_parameters()
            about = {"model": Path(name).name, "parameters": size, **common}
            reward = make_reward(given.reward, name)
            points += compare_strategies(problems, generator, reward, given.sizes, mcts=given.mcts, **about)
        show("Every strategy, vote and model", points)
        show("The best at each budget (policy and reward model)", pareto_frontier(points))
        for row in table_of_savings(points):
            saving = "never as good" if row["saving"] is None else f"{row['saving']:.2f} times less"
            print(f"  REBASE for the best of weighted sampling, {row['model']}: {saving}")
        majority = [p for p in points if p.vote == "majority" and p.strategy == "RepeatedSampling"]
        figures["strategies"] = points
        if len({p.parameters for p in pareto_frontier(majority)}) > 1:
            fit = fit_optimal_size(majority)
            print(f"  optimal size for a majority of samples: log10 C = {fit.a:.2f} log10 N {fit.b:+.2f}")
            figures["sizes"] = (majority, fit)

    first, generator = next(iter(models.items()))
    reward = make_reward(given.reward, first)
    if "difficulty" in given.only:
        groups, strategies = [example.group for example in examples], [RepeatedSampling(width), REBASE(width)]
        split = curves_by_group(
            problems, groups, strategies, generator, reward_model=reward, votes=["weighted"], sizes=[width], **common
        )
        for group, points in split.items():
            show(f"{first}, {group or 'all'} ({points[0].problems} problems)", points)
    if "temperature" in given.only:
        for t, points in temperature_sweep(problems, generator, reward, width, votes=["weighted"], **common).items():
            show(f"{first}, T_b = {t}", points)
    if "reward" in given.only and given.dataset == "embedded":
        sweep = reward_quality_sweep(problems, generator, (0.6, 0.9, 0.99), width, votes=["weighted"], **common)
        for auc, points in sweep.items():
            show(f"{first}, simulated reward of AUC {auc}", points)

    if given.out is not None:
        draw(given.out, figures)


def draw(folder: Path, figures: dict) -> None:
    from inferscale.plotting import plot_frontier, plot_optimal_size, plot_scaling, plot_votes

    folder.mkdir(parents=True, exist_ok=True)
    if "strategies" in figures:
        plot_votes(figures["strategies"]).savefig(folder / "strategies.png", dpi=150)
        votes = [p for p in figures["strategies"] if p.vote in ("majority", "weighted")]
        axes = plot_scaling(votes, y="error", x="generator_flops")
        plot_frontier(votes, y="error", x="generator_flops", ax=axes)
        axes.figure.savefig(folder / "error.png", dpi=150)
    if "sizes" in figures:
        plot_optimal_size(*figures["sizes"]).figure.savefig(folder / "optimal_size.png", dpi=150)
    print(f"\nfigures in {folder}")


if __name__ == "__main__":
    main()
