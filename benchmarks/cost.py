"""Predicted seconds against measured ones: ``python -m benchmarks.cost``.

Ten configurations of embedded models on this CPU, one thread. The device is measured first: the peak of a matrix
product, the bandwidth of a copy, and the latency of a forward of one token of the smallest policy, which is what tiny
models wait for. A prediction knows the mean length of a prompt, a solution and a step from other problems. Seconds
are CPU time of the process; the error is predicted / measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import torch

import inferscale as isc
from inferscale.scaling import Device, device, predict_cost

CONFIGURATIONS = [
    ("policy-xs", None, isc.RepeatedSampling(4)), ("policy-xs", None, isc.RepeatedSampling(16)),
    ("policy-s", None, isc.RepeatedSampling(16)), ("policy-m", None, isc.RepeatedSampling(4)),
    ("policy-m", None, isc.RepeatedSampling(16)), ("policy-xs", "prm-xs", isc.REBASE(8)),
    ("policy-s", "prm-xs", isc.REBASE(16)), ("policy-s", "prm-s", isc.REBASE(16)),
    ("policy-s", "prm-s", isc.BeamSearch(4, 4)), ("policy-m", "prm-s", isc.DVTS(4, 4)),
]  # fmt: skip


def measured_device() -> Device:
    """This CPU, with the latency of a forward."""
    model, _ = isc.zoo.load("policy-xs")
    ids, seconds = torch.zeros(1, 1, dtype=torch.long), []
    with torch.inference_mode():
        for _ in range(100):
            start = time.process_time()
            model(ids)
            seconds.append(time.process_time() - start)
    return replace(device("cpu"), latency=statistics.median(seconds))


def lengths(policy: isc.HFGenerator) -> tuple[int, int, int]:
    """Mean tokens of a prompt, a solution and a step, of problems that are not measured."""
    results = isc.solve_batch(isc.zoo.problems("test")[100:110], isc.RepeatedSampling(1), policy)
    steps = [len(ids) for r in results for t in r.trajectories for s in t.steps for _, ids in s.inner_steps()]
    prompt = statistics.mean(r.cost.prompt_tokens for r in results)
    return round(prompt), round(statistics.mean(r.cost.tokens for r in results)), round(statistics.mean(steps))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=8, help="solved together, sharing forwards")
    options = parser.parse_args()
    torch.set_num_threads(1)
    here = measured_device()
    problems = isc.zoo.problems("test")[: options.problems]
    print(f"{here.flops:.3g} FLOP/s, {here.bandwidth:.3g} bytes/s, {1e3 * here.latency:.2f} ms a forward")
    print(f"{'configuration':<44}{'predicted s':>12}{'measured s':>12}{'ratio':>8}{'FLOPs ratio':>13}")
    ratios = []
    for name, judge, strategy in CONFIGURATIONS:
        policy = isc.HFGenerator(*isc.zoo.load(name), temperature=1.0, max_new_tokens=160)
        reward: Any = None
        if judge is not None:
            reward = isc.HFProcessRewardModel(
                *isc.zoo.load(judge), good_token="<good>", bad_token="<bad>", reduction="min"
            )
        prompt, new, step = lengths(policy)
        found = predict_cost(
            policy.model.config, strategy, reward=None if reward is None else reward.model.config, prompt=prompt,
            new=new, step=step, device=here, bytes_per_number=4, batch=len(problems),
        )  # fmt: skip
        seconds = []
        for seed in range(3):
            start = time.process_time()
            results = isc.solve_batch(problems, strategy, policy, reward_model=reward, seed=seed)
            seconds.append((time.process_time() - start) / len(problems))
        measured, predicted = statistics.median(seconds), found.seconds
        flops = statistics.mean(r.cost.flops for r in results)
        ratios.append(predicted / measured)
        label = f"{name}, {type(strategy).__name__}, {judge or 'no reward'}"
        print(f"{label:<44}{predicted:>12.4f}{measured:>12.4f}{ratios[-1]:>8.2f}{found.flops / flops:>13.2f}")
    print(f"median ratio {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
