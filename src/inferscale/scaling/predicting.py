"""What a search will cost, before anything is run: FLOPs, bytes, rounds, memory, seconds by phase, joules and money.

The strategy itself is run, on a stub that draws texts of the given lengths and scores at random: so any strategy has a
price, your own too. A roofline turns every forward into seconds: the greater of FLOPs over peak and bytes over
bandwidth, and a constant for launching it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import mean
from typing import Any

from inferscale.base import Generator, RewardModel, SearchStrategy
from inferscale.cost import Price
from inferscale.engine.solver import solve_batch
from inferscale.flops import PEAK_BANDWIDTH, PEAK_FLOPS, ModelSpec, forward_flops, model_spec
from inferscale.flow import GenerateRequest
from inferscale.tree import Node, Problem, Step, branch_key


@dataclass(frozen=True)
class Device:
    """Hardware as a roofline sees it.

    Attributes:
        name: Its name.
        flops: Peak of dense matrix products, FLOP/s.
        bandwidth: Peak of its memory, bytes/s.
        latency: Seconds that launching a forward takes, whatever its size.
        watts: Power under load; ``None`` if it is not known, and then joules are not.
    """

    name: str
    flops: float
    bandwidth: float
    latency: float = 0.0
    watts: float | None = None

    def __post_init__(self) -> None:
        """Refuse peaks that are not positive."""
        if not (self.flops > 0 and self.bandwidth > 0 and self.latency >= 0):
            raise ValueError(f"{self!r}: FLOP/s and bytes/s must be greater than 0, and latency 0 or more")

    @property
    def intensity(self) -> float:
        """FLOPs that take as long as moving one byte: the factor of `Prediction.eflops`."""
        return self.flops / self.bandwidth


# Peaks by vendors' data sheets (see `PEAK_FLOPS`); watts are their thermal design power.
_SHEETS = {
    "a100": ("A100-bf16", "A100-80GB", 400.0), "h100": ("H100-SXM-bf16", "H100-SXM", 700.0),
    "h200": ("H200-bf16", "H200", 700.0), "l4": ("L4-bf16", "L4", 72.0), "l40s": ("L40S-bf16", "L40S", 350.0),
    "t4": ("T4-fp16", "T4", 70.0), "v100": ("V100-fp16", "V100", 300.0), "rtx4090": ("RTX4090-bf16", "RTX4090", 450.0),
}  # fmt: skip
DEVICES = {name: Device(name, PEAK_FLOPS[f], PEAK_BANDWIDTH[b], 2e-5, watts) for name, (f, b, watts) in _SHEETS.items()}
"""Devices by name, with 20 microseconds for a forward (captured graphs; without them it is a kernel launch each)."""


def device(name: str) -> Device:
    """A device of `DEVICES`; ``"cpu"`` is measured now (less than a second), and its watts are not known.

    Raises:
        ValueError: If it is neither.
    """
    if name in DEVICES:
        return DEVICES[name]
    if name != "cpu":
        raise ValueError(f"device {name!r}: choose cpu or one of {', '.join(DEVICES)}, or give a Device(...)")
    from inferscale.flops import measured_bandwidth, measured_peak

    return Device("cpu", measured_peak(), measured_bandwidth())


@dataclass(frozen=True)
class Prediction:
    """The cost of one problem, as the mean over a few simulated ones; what cannot be told is ``None``.

    Attributes:
        tokens: Tokens sampled.
        scored_tokens: Tokens that the reward model reads.
        generator_flops: Of the policy.
        reward_flops: Of the reward model.
        generator_bytes: Weights, keys and values that the policy reads and writes: weights once for each
            forward, a shared prefix once for all rows.
        reward_bytes: Of the reward model.
        cache_bytes: The part of both that is keys and values.
        rounds: Forwards that follow one another: the part of latency that no hardware takes away.
        seconds: By phase: ``prefill``, ``decode`` and ``score``.
        memory_bytes: Weights of both models, and the most keys and values at a time.
        joules: Seconds times the device's watts.
        money: By the price given.
        intensity: FLOPs a byte of the device.
    """

    tokens: float
    scored_tokens: float
    generator_flops: float
    reward_flops: float
    generator_bytes: float
    reward_bytes: float
    cache_bytes: float
    rounds: float
    seconds: dict[str, float]
    memory_bytes: float
    joules: float | None
    money: float | None
    intensity: float

    @property
    def flops(self) -> float:
        """Of policy and reward model together."""
        return self.generator_flops + self.reward_flops

    @property
    def bytes(self) -> float:
        """Of policy and reward model together."""
        return self.generator_bytes + self.reward_bytes

    @property
    def eflops(self) -> float:
        """FLOPs + intensity x bytes of keys and values (Kinetics, arXiv:2506.05333, where weights are amortised)."""
        return self.flops + self.intensity * self.cache_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the version of its form."""
        derived = {"flops": self.flops, "bytes": self.bytes, "eflops": self.eflops}
        return {"format": "inferscale.Prediction", "version": 1, **asdict(self), **derived}


def predict_cost(
    policy: Any,
    strategy: SearchStrategy,
    *,
    reward: Any = None,
    prompt: int,
    new: int,
    step: int = 32,
    device: Device,
    bytes_per_number: float = 2,
    batch: int = 1,
    price: Price | None = None,
    samples: int = 4,
    seed: int = 0,
) -> Prediction:
    """What a problem will cost with `strategy`.

    Args:
        policy: A transformers configuration, its dictionary, or a `ModelSpec`.
        strategy: Any strategy; it is run on a stub whose solutions all have `new` tokens in steps of `step`.
        reward: The same of a reward model that reads every step once.
        prompt: Tokens of the prompt.
        new: Tokens of a solution.
        step: Tokens of a step.
        device: Where it runs.
        bytes_per_number: 2 for bfloat16, 4 for float32.
        batch: Problems that share each forward: weights are read, and forwards launched, once for all of them.
        price: What tokens or hours cost.
        samples: Simulated problems, of which the mean is taken.
        seed: Of the simulation.

    Raises:
        UnknownArchitectureError: If a configuration has no closed form.
        ValueError: If a length is not positive.
    """
    lengths = {"prompt": prompt, "new": new, "step": step, "batch": batch, "samples": samples}
    for name, value in lengths.items():
        if value < 1 or value != int(value):
            raise ValueError(f"{name}={value!r}: give a whole number of 1 or more")
    specs = model_spec(policy), None if reward is None else model_spec(reward)
    found = []
    for number in range(samples):
        stub = _Stub(prompt, new, step)
        judge = _Scores(stub) if reward is not None or strategy.needs_scores else None
        solve_batch([Problem(f"Problem {number}?")], strategy, stub, reward_model=judge, seed=seed)
        roofs = [None if spec is None else _Roof(spec, device, bytes_per_number, batch) for spec in specs]
        assert roofs[0] is not None
        found.append(_bill(roofs[0], roofs[1], stub.calls))
    average = {name: mean(bill[name] for bill in found) for name in found[0]}
    seconds = {phase: average.pop(phase) for phase in ("prefill", "decode", "score")}
    total = sum(seconds.values())
    priced = None if price is None else price.at(prompt, average["tokens"], total)
    joules = None if device.watts is None else device.watts * total
    return Prediction(**average, seconds=seconds, joules=joules, money=priced, intensity=device.intensity)


@dataclass
class _Call:
    """One call of a model: the length before it and the new tokens of every row."""

    phase: str
    rows: list[tuple[int, int]] = field(default_factory=list)
    first: list[tuple[int, int]] = field(default_factory=list)  # what is read before the rows: (past, tokens)
    distinct: int = 0  # cached tokens that the rows see, shared ones once
    held: int = 0  # tokens in the cache


class _Stub(Generator):
    """Draws nothing: steps of the given length until a solution has all its tokens, answers by a hash of the path."""

    def __init__(self, prompt: int, new: int, step: int) -> None:
        self.prompt, self.new, self.step = prompt, new, step
        self.calls: list[_Call] = []
        self.held = prompt
        self._read: set[int] = set()

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
        """Steps of each request, in one call."""
        call, answers = _Call("decode"), []
        for request in requests:
            node = request.node
            past = self.length(node)
            left = max(self.new - (past - self.prompt), 1)
            count = left if request.until == "end" else min(self.step, left)
            if request.max_tokens is not None:
                count = min(count, request.max_tokens)
            unread = 0 if node.key in self._read else (self.prompt if node.parent is None else 1)
            self._read.add(node.key)
            if unread:
                call.first.append((past - unread, unread))
            call.rows += [(past, count)] * request.n
            answers.append([self._made(request, draw, count, left) for draw in range(request.n)])
        call.distinct = self.distinct(request.node for request in requests)
        self.held += sum(count for _, count in call.rows)
        call.held = self.held
        self.calls.append(call)
        return answers

    def length(self, node: Node) -> int:
        """Tokens of the prompt and the path."""
        return self.prompt + sum(len(above.step.token_ids) for above in node.path if above.step is not None)

    def distinct(self, nodes: Iterable[Node | None]) -> int:
        """Tokens of the prompt and of all paths to these nodes, shared ones once."""
        above = {step.key: step for node in nodes if node is not None for step in node.path}
        return self.prompt + sum(len(node.step.token_ids) for node in above.values() if node.step is not None)

    def max_sample_tokens(self, request: GenerateRequest) -> int | None:
        """All of a solution, or a step."""
        return self.new if request.until == "end" else self.step

    def _made(self, request: GenerateRequest, draw: int, count: int, left: int) -> Step:
        key = branch_key(request.node.key, request.first + draw)
        is_last = count >= left
        text = f"The answer is {key % 4}" if is_last else f"Step {key}\n"
        return Step(text, (0,) * count, -float(count), 1.0, "eos" if is_last else "step")


class _Scores(RewardModel):
    """Scores by a hash of the path; each step is read once."""

    def __init__(self, stub: _Stub) -> None:
        self._stub = stub
        self._read: set[int] = set()

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """A number for each node."""
        call = _Call("score", held=self._stub.held)
        if not self._read:
            call.first.append((0, self._stub.prompt))
        for node in nodes:
            fresh = [above for above in node.path if above.key not in self._read]
            self._read |= {above.key for above in fresh}
            count = sum(len(above.step.token_ids) for above in fresh if above.step is not None)
            call.rows.append((self._stub.length(node) - count, count))
        call.distinct = self._stub.distinct(node.parent for node in nodes)
        self._stub.calls.append(call)
        return [random.Random(node.key).random() for node in nodes]


@dataclass(frozen=True)
class _Roof:
    """A model on a device: what its forwards do, and how long they take.

    Attributes:
        spec: The model.
        device: The device.
        width: Bytes of a number.
        batch: Problems that share a forward.
    """

    spec: ModelSpec
    device: Device
    width: float
    batch: int

    @property
    def cached(self) -> float:
        """Bytes of the keys and values of one token."""
        return self.width * sum(group.kv_width for group in self.spec.attention)

    def work(self, call: _Call, forwards: int) -> tuple[int, float, float]:
        """FLOPs, bytes in all and bytes of keys and values, of a call that takes so many forwards one after another."""
        drawn = 1 if call.phase == "decode" else 0  # the last token that is drawn has no forward of its own
        flops = sum(forward_flops(self.spec, unread, past, logits=1).causal for past, unread in call.first)
        flops += sum(
            forward_flops(self.spec, count - drawn, past, logits=count - drawn if drawn else 1).causal
            for past, count in call.rows
            if count > drawn
        )
        # Every forward reads the distinct tokens before its rows once, and what each row has drawn by then.
        read = forwards * call.distinct
        read += sum(min(t, count) for _, count in call.rows for t in range(1, forwards + 1)) if drawn else 0
        written = sum(count for _, count in call.rows) + sum(unread for _, unread in call.first)
        cache = self.cached * (read + written)
        return flops, forwards * self.width * self.spec.active_weights / self.batch + cache, cache

    def seconds(self, flops: float, moved: float, forwards: int) -> float:
        """The roofline: compute or memory, whichever takes longer, and the launches."""
        return (
            max(flops / self.device.flops, moved / self.device.bandwidth) + forwards * self.device.latency / self.batch
        )


def _bill(policy: _Roof, reward: _Roof | None, calls: Sequence[_Call]) -> dict[str, float]:
    """The fields of a `Prediction` for the calls of one problem, its seconds by phase."""
    names = ("tokens", "scored_tokens", "generator_flops", "reward_flops", "generator_bytes", "reward_bytes")
    bill = dict.fromkeys((*names, "cache_bytes", "rounds", "prefill", "decode", "score"), 0.0)
    for call in calls:
        if call.phase == "score" and reward is None:
            continue
        roof, part = (reward, "reward") if reward is not None and call.phase == "score" else (policy, "generator")
        prompts = [(past, unread) for past, unread in call.first if unread > 1]
        pieces = [(replace(call, rows=[], first=prompts, distinct=0), 1, "prefill")] if prompts else []
        rest = replace(call, first=[(past, unread) for past, unread in call.first if unread == 1])
        most = max((count for _, count in call.rows), default=0)
        forwards = most - 1 + bool(rest.first) if call.phase == "decode" else 1
        for piece, times, phase in [*pieces, (rest, forwards, call.phase)]:
            flops, moved, cache = roof.work(piece, times)
            bill[f"{part}_flops"] += flops
            bill[f"{part}_bytes"] += moved
            bill["cache_bytes"] += cache
            bill["rounds"] += times
            bill["score" if call.phase == "score" else phase] += roof.seconds(flops, moved, times)
        read = sum(count for _, count in call.rows)
        bill["tokens" if call.phase == "decode" else "scored_tokens"] += read
        bill["scored_tokens"] += sum(unread for _, unread in prompts) if call.phase == "score" else 0
    held = max((call.held for call in calls), default=0)
    models = [policy] if reward is None else [policy, reward]
    bill["memory_bytes"] = sum(m.width * m.spec.parameters + m.cached * held * m.batch for m in models)
    return bill
