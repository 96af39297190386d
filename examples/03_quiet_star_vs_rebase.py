"""Quiet-STaR, REBASE, and both (arXiv:2412.16260) in small: votes and search, with and without thoughts.

It takes about a minute on embedded models: a short training of thoughts, then ten problems. That is enough to see the
parts work and far too little to compare accuracies. The whole study, with the published rules and its ablations, for
any models and any GSM8K file, is `python -m studies.thoughts`.
"""

import inferscale as isc
from inferscale.quiet_star import Objective, QuietSTaR, QuietSTaRGenerator, Recipe
from inferscale.quiet_star.train import start, task_batches, train

MODEL, REWARD, PROBLEMS, TRAIN_STEPS, WIDTH = "policy-s", "prm-s", 10, 10, 4

base, tokenizer = isc.zoo.load(MODEL)
quiet = QuietSTaR(isc.zoo.load(MODEL)[0], thought_length=3)
objective = Objective(talk_length=1, num_thoughts=2, reinforce_temperature=1.0)
recipe = Recipe(objective, lr=3e-4, head_lr_scale=10.0, embedding_lr_scale=10.0, steps=TRAIN_STEPS, accumulation=1)
for report in train(start(quiet, recipe), task_batches(4, talk_length=1, level=1)):
    print(f"step {report.step}: {report.base:.3f} nats a token, thinking {report.talk:.3f}")

generators = {
    "plain": isc.HFGenerator(base, tokenizer, max_new_tokens=160),
    "with thoughts": QuietSTaRGenerator(quiet.eval(), tokenizer, max_new_tokens=160),
}
judge = isc.HFProcessRewardModel(*isc.zoo.load(REWARD), good_token="<good>", bad_token="<bad>", reduction="min")
problems = isc.zoo.problems("dev")[:PROBLEMS]

print(f"{MODEL} judged by {REWARD}, {len(problems)} problems; means for a problem")
for strategy in (isc.RepeatedSampling(WIDTH), isc.REBASE(WIDTH)):
    for name, generator in generators.items():
        reward = judge if strategy.needs_scores else None
        results = isc.solve_batch(problems, strategy, generator, reward_model=reward)
        right = sum(r.answer is not None and isc.same_answer(r.answer, r.problem.answer or "") for r in results)
        cost, n = sum((r.cost for r in results), isc.Cost()), len(results)
        print(
            f"{type(strategy).__name__:16} {name:13} {right:2} right  {cost.generated_tokens / n:4.0f} tokens "
            f"+ {cost.thought_tokens / n:5.0f} thought  {cost.generator_flops / n:.3g} FLOPs"
        )
