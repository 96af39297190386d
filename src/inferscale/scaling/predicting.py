"""Costs of a search before anything is run: FLOPs, bytes, rounds, memory, seconds by phase, joules and money.

The strategy itself is run, on a stub that draws texts of the given lengths and scores at random: so any strategy has a
price, your own too. A roofline turns every forward into seconds: the greater of FLOPs over peak and bytes over
bandwidth, and a constant for launching it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import mean
from typing import Any

from inferscale.base import Generator, RewardModel, SearchStrategy
from inferscale.cost import Price
from inferscale.engine.solver import solve_batch
from inferscale.flops import PEAK_BANDWIDTH, PEAK_FLOPS, ModelSpec, UnknownArchitectureError, model_spec
from inferscale.flops.spec import forward_cost
from inferscale.flops.traffic import RowGroup, count_traffic
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

    Raises:
        ValueError: If a peak is not above 0, or the latency below 0.

    Example:
        >>> from inferscale.scaling import Device
        >>> board = Device("my board", flops=2.75e14, bandwidth=2.0e11, watts=60)
        >>> board.intensity  # FLOPs for each byte: below that many, memory sets the time
        1375.0
    """

    name: str
    flops: float
    bandwidth: float
    latency: float = 0.0
    watts: float | None = None

    def __post_init__(self) -> None:
        """Refuse peaks that are not positive."""
        watts = 1.0 if self.watts is None else self.watts
        if not (self.flops > 0 and self.bandwidth > 0 and self.latency >= 0 and watts > 0):
            raise ValueError(f"{self!r}: FLOP/s, bytes/s and watts must be greater than 0, and latency 0 or more")

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
"""Devices by name with the peaks of their data sheets, and 20 microseconds for launching a forward, which is what a
captured graph takes; without one every kernel is launched by itself.

Example:
    >>> from inferscale.scaling import DEVICES
    >>> for name in ("t4", "l40s", "h200"):  # FLOPs that take as long as moving one byte
    ...     print(name, round(DEVICES[name].intensity))
    t4 203
    l40s 419
    h200 206
"""


def device(name: str) -> Device:
    """A device of `DEVICES`; ``"cpu"`` is measured now (less than a second), and its watts are not known.

    Raises:
        ValueError: If it is neither.

    Example:
        >>> from inferscale.scaling import device
        >>> h200 = device("h200")
        >>> h200.bandwidth / 1e12, h200.watts  # terabytes a second; device("cpu") measures this machine
        (4.8, 700.0)
    """
    if name.lower() in DEVICES:
        return DEVICES[name.lower()]
    if name.lower() != "cpu":
        raise ValueError(f"device {name!r}: choose cpu or one of {', '.join(DEVICES)}, or give a Device(...)")
    from inferscale.flops import measured_bandwidth, measured_peak

    return Device("cpu", measured_peak(), measured_bandwidth())


@dataclass(frozen=True)
class Prediction:
    """The cost of one problem, as the mean over a few simulated ones; what cannot be told is ``None``.

    Fields are those of the `Cost` that a search has when it has been run, under the same names.

    Attributes:
        tokens: Tokens sampled.
        scored_tokens: Tokens that the reward model reads.
        generator_flops: FLOPs of the policy.
        reward_flops: FLOPs of the reward model.
        generator_bytes: Weights, keys and values that the policy reads and writes: weights once for each
            forward, the prompt's keys and values once for all rows (`inferscale.flops.traffic`).
        reward_bytes: The same of the reward model.
        cache_bytes: The part of both that is keys and values.
        rounds: Forwards that follow one another: the part of latency that no hardware takes away.
        phases: Seconds by phase: ``prefill``, ``decode`` and ``score``.
        memory_bytes: Weights of both models, and the most keys and values (and states of samples) at a time.
        joules: Seconds times the device's watts; ``None`` if these are not known.
        money: By the price given; ``None`` without one.
        intensity: FLOPs a byte of the device.

    Example:
        >>> from inferscale import REBASE
        >>> from inferscale.scaling import DEVICES, predict_cost
        >>> llama = {
        ...     "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        ...     "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        ... }
        >>> found = predict_cost(llama, REBASE(16), reward=llama, prompt=100, new=256, device=DEVICES["l4"])
        >>> print(f"{found.tokens:.0f} tokens, {found.flops:.1e} FLOPs, {found.seconds:.1f} s, {found.joules:.0f} J")
        4096 tokens, 1.9e+13 FLOPs, 2.2 s, 161 J
        >>> max(found.phases, key=found.phases.get)  # where the time goes
        'decode'
    """

    tokens: float
    scored_tokens: float
    generator_flops: float
    reward_flops: float
    generator_bytes: float
    reward_bytes: float
    cache_bytes: float
    rounds: float
    phases: dict[str, float]
    memory_bytes: float
    joules: float | None
    money: float | None
    intensity: float

    @property
    def seconds(self) -> float:
        """Seconds of all phases together."""
        return sum(self.phases.values())

    @property
    def flops(self) -> float:
        """FLOPs of policy and reward model together."""
        return self.generator_flops + self.reward_flops

    @property
    def bytes(self) -> float:
        """Bytes of policy and reward model together."""
        return self.generator_bytes + self.reward_bytes

    @property
    def eflops(self) -> float:
        """FLOPs + intensity x bytes of keys and values (Kinetics, arXiv:2506.05333, where weights are amortised)."""
        return self.flops + self.intensity * self.cache_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the version of its form."""
        derived = {name: getattr(self, name) for name in ("seconds", "flops", "bytes", "eflops")}
        return {"format": "inferscale.Prediction", "version": 2, **asdict(self), **derived}


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
    """Predict the cost of a problem with `strategy`.

    Args:
        policy: A transformers configuration, its dictionary, or a `ModelSpec`. A family without a closed form is
            measured with small forwards of a model without weights, for which a dictionary will not do.
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

    Example:
        >>> from inferscale import RepeatedSampling
        >>> from inferscale.scaling import DEVICES, predict_cost
        >>> mistral = {
        ...     "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        ...     "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32768,
        ... }
        >>> for batch in (1, 32):
        ...     cost = predict_cost(
        ...         mistral, RepeatedSampling(16), prompt=100, new=256, device=DEVICES["h200"], batch=batch
        ...     )
        ...     print(f"{batch} problems at a time: {cost.seconds:.3f} s each")
        1 problems at a time: 0.779 s each
        32 problems at a time: 0.061 s each
    """
    lengths = {"prompt": prompt, "new": new, "step": step, "batch": batch, "samples": samples}
    for name, value in lengths.items():
        if value < 1 or value != int(value):
            raise ValueError(f"{name}={value!r}: give a whole number of 1 or more")
    if not 0 < bytes_per_number < math.inf:
        raise ValueError(f"bytes_per_number={bytes_per_number!r}: give 2 for bfloat16, 4 for float32")
    specs = _form_of(policy), None if reward is None else _form_of(reward)
    found = []
    for number in range(samples):
        stub = _Stub(prompt, new, step)
        judge = _Scores(stub) if reward is not None or strategy.needs_scores else None
        solve_batch([Problem(f"Problem {number}?")], strategy, stub, reward_model=judge, seed=seed)
        roofs = [None if spec is None else _Roof(spec, device, bytes_per_number, batch) for spec in specs]
        assert roofs[0] is not None
        found.append(_bill(roofs[0], roofs[1], stub.calls))
    average = {name: mean(bill[name] for bill in found) for name in found[0]}
    phases = {phase: average.pop(phase) for phase in ("prefill", "decode", "score")}
    total = sum(phases.values())
    priced = None if price is None else price.at(prompt, average["tokens"], total)
    joules = None if device.watts is None else device.watts * total
    return Prediction(**average, phases=phases, joules=joules, money=priced, intensity=device.intensity)


def _form_of(config: Any) -> ModelSpec:
    try:
        spec = model_spec(config)
    except UnknownArchitectureError:
        if isinstance(config, Mapping):  # makes no model that could be measured
            raise
        from inferscale.flops import calibrate

        spec = calibrate(config)
    if spec.states is None:
        raise UnknownArchitectureError(f"what a {spec.family!r} model keeps of a text is not known, nor are its bytes")
    return spec


@dataclass
class _Call:
    """One call of a model: its rows, and the tokens and the ends of samples that are in the cache then."""

    phase: str
    batch: list[RowGroup] = field(default_factory=list)
    held: int = 0
    ends: int = 0


class _Stub(Generator):
    """Draws nothing: steps of the given length until a solution has all its tokens, answers by a hash of the path."""

    def __init__(self, prompt: int, new: int, step: int) -> None:
        self.prompt, self.new, self.step = prompt, new, step
        self.calls: list[_Call] = []
        self.held, self.ends = prompt, 0
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
            call.batch.append(RowGroup(past, unread, [count] * request.n, shared=self.prompt))
            answers.append([self._made(request, draw, count, left) for draw in range(request.n)])
            self.held += count * request.n
            self.ends += request.n
        call.held, call.ends = self.held, self.ends
        self.calls.append(call)
        return answers

    def length(self, node: Node) -> int:
        """Tokens of the prompt and the path."""
        return self.prompt + sum(len(above.step.token_ids) for above in node.path if above.step is not None)

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
        call, prompt = _Call("score", held=self._stub.held, ends=self._stub.ends), self._stub.prompt
        for node in nodes:
            fresh = [above for above in node.path if above.key not in self._read]
            count = sum(len(above.step.token_ids) for above in fresh if above.step is not None)
            count += 0 if self._read else prompt  # the first node reads it
            self._read |= {above.key for above in fresh}
            call.batch.append(RowGroup(self._stub.length(node), count, shared=prompt))
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

    def memory(self, tokens: int, ends: int) -> float:
        """Bytes of the weights, of the keys and values of so many tokens, and of so many rows' states."""
        narrow, wide = self.spec.states or (0, 0)
        kept = tokens * sum(group.kv_width for group in self.spec.attention) + ends * narrow
        return self.width * (self.spec.parameters + kept * self.batch) + 4 * wide * ends * self.batch

    def work(self, batch: Sequence[RowGroup]) -> tuple[int, float, float]:
        """FLOPs, bytes in all and bytes of keys and values; what is only read has logits at one position."""
        flops = 0
        for rows in batch:
            flops += forward_cost(self.spec, rows.unread, rows.past - rows.unread, 1)
            flops += sum(forward_cost(self.spec, count - 1, rows.past, count - 1) for count in rows.sampled)
        weights, cache = count_traffic(self.spec, batch, self.width, self.width, state=4)
        return flops, weights / self.batch + cache, cache

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
        scores = call.phase == "score"
        if scores and reward is None:
            continue
        roof, part = (reward, "reward") if scores and reward is not None else (policy, "generator")
        pieces = [(call.batch, call.phase)]
        if not scores:  # a prompt is a forward of its own, a last token is read with the first step of decoding
            prompts = [replace(rows, sampled=()) for rows in call.batch if rows.unread > 1]
            rest = [replace(rows, unread=0) if rows.unread > 1 else rows for rows in call.batch]
            pieces = [(prompts, "prefill"), (rest, "decode")]
        for batch, phase in pieces:
            flops, moved, cache = roof.work(batch)
            forwards = max((rows.forwards for rows in batch), default=0)
            bill[f"{part}_flops"] += flops
            bill[f"{part}_bytes"] += moved
            bill["cache_bytes"] += cache
            bill["rounds"] += forwards
            bill[phase] += roof.seconds(flops, moved, forwards)
        bill["tokens"] += sum(sum(rows.sampled) for rows in call.batch)
        bill["scored_tokens"] += sum(rows.unread for rows in call.batch) if scores else 0
    held, ends = max(((call.held, call.ends) for call in calls), default=(0, 0))
    models = [policy] if reward is None else [policy, reward]
    bill["memory_bytes"] = sum(model.memory(held, ends) for model in models)
    return bill
