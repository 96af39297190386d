"""Inference scaling laws (arXiv:2408.00724) in small: accuracy against FLOPs of votes, best-of-n and REBASE.

For your own models and data change the line below, for example to
`"Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-Math-PRM-7B", ("gsm8k", "test.jsonl")`. The long study of the embedded
models is `python -m studies.scaling`, that of any models `python -m studies.wu2024`.
"""

from inferscale import REBASE, RepeatedSampling
from inferscale.evaluate import load_problems
from inferscale.evaluate.parts import make_generator, make_reward
from inferscale.scaling import CurvePoint, pareto_frontier, scaling_curve

MODEL, REWARD, DATA = "policy-s", "prm-s", ("embedded", None)
PROBLEMS, SIZES = 20, (1, 4, 16)

problems = load_problems(*DATA, limit=PROBLEMS)
points = scaling_curve(
    problems,
    [RepeatedSampling(max(SIZES)), *(REBASE(width) for width in SIZES[1:])],
    make_generator(MODEL, temperature=1.0, max_new_tokens=160),
    reward_model=make_reward(REWARD, MODEL),
    sizes=SIZES,
    model=MODEL,
)

print(f"{MODEL} judged by {REWARD}, {len(problems)} problems; means for a problem")
print(f"{'strategy':18} {'vote':10} {'n':>3} {'accuracy':>14} {'policy':>10} {'reward':>10}")
for p in points:
    if p.vote != "coverage":  # what a perfect judge would reach: no method
        accuracy = f"{100 * p.accuracy:5.1f} ± {100 * p.standard_error:4.1f} %"
        print(f"{p.strategy:18} {p.vote:10} {p.n:3} {accuracy:>14} {p.generator_flops:10.3g} {p.reward_flops:10.3g}")


def show_best(charged: str, frontier: list[CurvePoint]) -> None:
    names = [f"{p.strategy} {p.vote} {p.n}" for p in frontier if p.vote != "coverage"]
    print(f"best at each number of FLOPs of {charged}:", *names, sep="\n  ")


show_best("the policy alone (as published)", pareto_frontier(points, "generator_flops"))
show_best("policy and reward model", pareto_frontier(points, "flops"))

try:
    from inferscale.viz import plot_scaling

    plot_scaling([p for p in points if p.vote != "coverage"]).figure.savefig("scaling.png", dpi=150)
    print("drawn in scaling.png")
except ImportError as error:
    print(f"no picture: {error}")
