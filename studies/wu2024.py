"""Inference scaling laws: the experiments of Wu et al. (arXiv:2408.00724) on models of your choice.

With no options the embedded models are measured on a few problems, in a few minutes, with the exact checker as
reward: an oracle, and free, so the search strategies look their best. For the real thing:

    python -m studies.wu2024 --models path/to/7b path/to/34b --reward path/to/prm --dataset math \
        --data math500.jsonl --style boxed --problems 500 --sizes 4 16 64 256 --out figures

One experiment alone: ``--only strategies`` (error against compute by model size and strategy with the frontier, the
optimal size and table 1), ``difficulty`` (levels 1-2 against 3-5), ``temperature`` (T_b of REBASE), ``domains``
(subjects of MATH, types of SVAMP), ``style`` (chain of thought against direct answer), ``reward`` (several reward
models; on the embedded task also simulated ones of rising quality).
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from inferscale import REBASE, RepeatedSampling, zoo
from inferscale.base import Generator
from inferscale.evaluate import STYLES, Example, PromptStyle, load_examples, prompt_style
from inferscale.evaluate.parts import make_generator, make_reward
from inferscale.scaling import CurvePoint, fit_optimal_size, pareto_frontier
from studies.experiments import (
    compare_rewards,
    compare_strategies,
    compare_styles,
    curves_by_group,
    easy_or_hard,
    reward_quality_sweep,
    table_of_savings,
    temperature_sweep,
)

EXPERIMENTS = ("strategies", "difficulty", "temperature", "domains", "style", "reward")
Curves = Mapping[Any, Sequence[CurvePoint]]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    policies = [card.name for card in zoo.list() if card.kind == "policy"]
    parser.add_argument("--models", nargs="+", default=policies, help="folders, hub ids, or embedded policies")
    parser.add_argument("--reward", nargs="+", default=["checker"], help="checker, likelihood, or reward models")
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


class Study:
    """The experiments; those on one model take the first that is given."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.style = prompt_style(given.style or ("plain" if given.dataset == "embedded" else "cot"))
        self.examples: list[Example] = load_examples(given.dataset, given.data, limit=given.problems)
        self.problems = [self.style.problem(example) for example in self.examples]
        self.common: dict[str, Any] = {"read_answer": self.style.reader(), "seeds": given.seeds}
        self.name = given.models[0]
        self.generator = self._generator(self.name)
        self.reward = make_reward(given.reward[0], self.name)
        width = max(given.sizes)
        self.pair, self.width = [RepeatedSampling(width), REBASE(width)], width
        self.weighted = {"votes": ["weighted"], "sizes": [width], **self.common}

    def _generator(self, name: str) -> Generator:
        return make_generator(name, self.given.temperature, self.given.max_new_tokens)

    def strategies(self) -> list[CurvePoint]:
        """Every strategy, vote and size of every model."""
        points = []
        for name in self.given.models:
            generator: Any = self.generator if name == self.name else self._generator(name)
            about = {"model": Path(name).name, "parameters": generator.model.num_parameters(), **self.common}
            reward = make_reward(self.given.reward[0], name)
            sizes, mcts = self.given.sizes, self.given.mcts
            points += compare_strategies(self.problems, generator, reward, sizes, mcts=mcts, **about)
        return points

    def difficulty(self) -> Curves:
        """Easy and hard levels apart; nothing for rows without levels."""
        if not all(example.group.startswith("level ") for example in self.examples):
            return {}
        return self._by([easy_or_hard(example.group) for example in self.examples])

    def domains(self) -> Curves:
        """Subjects or types apart."""
        return self._by([example.domain or "all" for example in self.examples])

    def _by(self, groups: Sequence[str]) -> Curves:
        chosen = {"reward_model": self.reward, **self.weighted}
        return curves_by_group(self.problems, groups, self.pair, self.generator, **chosen)

    def temperature(self) -> Curves:
        """REBASE at several T_b."""
        sweep = temperature_sweep(self.problems, self.generator, self.reward, self.width, **self.weighted)
        return {f"T_b = {t}": points for t, points in sweep.items()}

    def styles(self) -> Curves:
        """A chain of thought against a direct answer."""
        direct = STYLES["direct"]
        if self.given.dataset == "embedded":  # its models know one format: the answer's line is begun for them
            direct = PromptStyle("{question}The answer is:", stop="")
        styles = {"chain of thought": self.style, "direct answer": direct}
        chosen = {"votes": ["majority"], "seeds": self.given.seeds}
        return compare_styles(self.examples, styles, [RepeatedSampling(self.width)], self.generator, **chosen)

    def rewards(self) -> Curves:
        """The given reward models, and on the embedded task simulated ones."""
        rewards = {text: make_reward(text, self.name) for text in self.given.reward}
        curves = compare_rewards(self.problems, rewards, self.pair, self.generator, **self.weighted)
        if self.given.dataset != "embedded":
            return dict(curves)
        sweep = reward_quality_sweep(self.problems, self.generator, (0.6, 0.9, 0.99), self.width, **self.weighted)
        return {**curves, **{f"simulated reward of AUC {auc}": points for auc, points in sweep.items()}}


def show(title: str, points: Iterable[CurvePoint]) -> None:
    print(f"\n{title}")
    for p in points:
        error = f"{100 * p.accuracy:5.1f} ± {100 * p.standard_error:4.1f} %"
        print(f"  {p.name:<44} n={p.n:<4} {error}  {p.generator_flops:.3g} policy + {p.reward_flops:.3g} reward FLOPs")


def summary(points: Sequence[CurvePoint]) -> Iterator[str]:
    """Table 1, without and with the reward model, and the optimal size."""
    for cost, what in (("generator_flops", "policy alone"), ("flops", "with the reward model")):
        for row in table_of_savings(points, cost):  # type: ignore[arg-type]
            saving = "never as good" if row["saving"] is None else f"{row['saving']:.2f} times less"
            yield f"  REBASE for the best of weighted sampling, {row['model']}, {what}: {saving}"
    majority = _majority(points)
    if len({p.parameters for p in pareto_frontier(majority)}) > 1:
        fit = fit_optimal_size(majority)
        yield f"  optimal size for a majority of samples: log10 C = {fit.a:.2f} log10 N {fit.b:+.2f}"


def main() -> None:
    given = options()
    study = Study(given)
    if "strategies" in given.only:
        points = study.strategies()
        show("Every strategy, vote and model", points)
        show("The best at each budget (policy and reward model)", pareto_frontier(points))
        print(*summary(points), sep="\n")
        if given.out is not None:
            draw(given.out, points)
    tasks = {
        "difficulty": study.difficulty, "domains": study.domains, "temperature": study.temperature,
        "style": study.styles, "reward": study.rewards,
    }  # fmt: skip
    for name in (name for name in tasks if name in given.only):
        for group, curve in tasks[name]().items():
            show(f"{study.name}, {name}: {group} ({curve[0].problems} problems)", curve)


def _majority(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    return [p for p in points if p.vote == "majority" and p.strategy == "RepeatedSampling"]


def draw(folder: Path, points: Sequence[CurvePoint]) -> None:
    """Error against compute, a panel for each vote; with the frontier; and the optimal size."""
    from inferscale.viz import plot_frontier, plot_optimal_size, plot_scaling, plot_votes

    folder.mkdir(parents=True, exist_ok=True)
    plot_votes(points, y="error").savefig(folder / "strategies.png", dpi=150)
    votes = [p for p in points if p.vote in ("majority", "weighted")]
    axes = plot_scaling(votes, y="error", x="generator_flops")
    plot_frontier(votes, y="error", x="generator_flops", ax=axes)
    axes.figure.savefig(folder / "error.png", dpi=150)
    if len({p.parameters for p in pareto_frontier(_majority(points))}) > 1:
        fit = fit_optimal_size(_majority(points))
        plot_optimal_size(_majority(points), fit).figure.savefig(folder / "optimal_size.png", dpi=150)
    print(f"\nfigures in {folder}")


if __name__ == "__main__":
    main()
