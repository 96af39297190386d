"""A toy task whose answer a tiny model cannot compute in one pass, and can with a thought.

A start state and four permutations of eight states are given, and the state that they lead to is asked for::

    <s> s0 g1 g2 g3 g4 = y .                 direct: four compositions in one pass
    <s> s0 g1 g2 g3 g4 = : t1 t2 t3 t4 . y   with the states in between, or filler in their place

A two-layer model that has read both forms composes one permutation per token, so a thought that holds the states in
between makes the answer easy; half of the time it has seen filler there, so good thoughts must be selected.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from inferscale.quiet_star.losses import Objective
from inferscale.quiet_star.model import QuietSTaR
from inferscale.quiet_star.train import Batch, Recipe, start, train

BOS, EQUALS, COLON, DOT = range(4)
_FIRST_STATE = 4


@dataclass(frozen=True)
class PermutationTask:
    """Composition of permutations; a seed fixes which they are.

    Attributes:
        states: Number of states.
        moves: Number of permutations in the alphabet.
        length: Permutations to compose.
        seed: Names the permutations.
    """

    states: int = 8
    moves: int = 6
    length: int = 4
    seed: int = 0

    @cached_property
    def tables(self) -> Tensor:
        """Table of where each permutation sends each state, `[moves, states]`."""
        draw = torch.Generator().manual_seed(self.seed)
        return torch.stack([torch.randperm(self.states, generator=draw) for _ in range(self.moves)])

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return _FIRST_STATE + self.states + self.moves

    @property
    def equals_at(self) -> int:
        """Index of ``=`` in either form; the next token of the direct form is the answer."""
        return self.length + 2

    def problems(self, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw prompts up to ``=``, `[count, length + 3]`, and the states after each move, `[count, length]` (ids)."""
        state = torch.randint(self.states, (count,), generator=draw)
        moves = torch.randint(self.moves, (count, self.length), generator=draw)
        first, chain = state, []
        for step in range(self.length):
            state = self.tables[moves[:, step], state]
            chain.append(state)
        bos, equals = torch.full((count, 1), BOS), torch.full((count, 1), EQUALS)
        prompts = [bos, first[:, None] + _FIRST_STATE, moves + _FIRST_STATE + self.states, equals]
        return torch.cat(prompts, dim=1), torch.stack(chain, dim=1) + _FIRST_STATE

    def direct(self, count: int, draw: torch.Generator) -> Tensor:
        """Draw rows of the direct form, `[count, length + 5]`."""
        prompts, chain = self.problems(count, draw)
        return torch.cat([prompts, chain[:, -1:], torch.full((count, 1), DOT)], dim=1)

    def worked(self, count: int, draw: torch.Generator) -> Tensor:
        """Draw rows with states in between, true for half and random for the others, `[count, 2 * length + 6]`."""
        prompts, chain = self.problems(count, draw)
        filler = torch.randint(self.states, chain.shape, generator=draw) + _FIRST_STATE
        middle = torch.where(torch.rand(count, 1, generator=draw) < 0.5, chain, filler)
        colon, dot = torch.full((count, 1), COLON), torch.full((count, 1), DOT)
        return torch.cat([prompts, colon, middle, dot, chain[:, -1:]], dim=1)


def toy_model(task: PermutationTask, seed: int = 0) -> Any:
    """Make a random Llama of two layers and about 84,000 weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=task.vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        bos_token_id=BOS,
        eos_token_id=DOT,
        pad_token_id=BOS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def pretrain(
    model: Any, task: PermutationTask, steps: int = 3000, batch_size: int = 64, lr: float = 2e-3, seed: int = 0
) -> Iterator[float]:
    """Teach both forms, and yield the loss (nats a token) of each step.

    Args:
        model: Changed in place.
        task: The task.
        steps: Steps of AdamW, 100 of warm-up, then a cosine to 0.
        batch_size: Rows of each form in a step.
        lr: Peak learning rate.
        seed: Names the rows.
    """
    draw = torch.Generator().manual_seed(seed + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    model.train()
    for step in range(steps):
        warm = min((step + 1) / 100, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        direct, worked = task.direct(batch_size, draw), task.worked(batch_size, draw)
        padded = functional.pad(direct, (0, worked.shape[1] - direct.shape[1]), value=-100)
        labels = torch.cat([padded, worked])
        logits = model(input_ids=labels.clamp(min=0), use_cache=False).logits
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield float(loss.detach())
    model.eval()


def toy_quiet(model: Any, task: PermutationTask, **options: Any) -> QuietSTaR:
    """Wrap the model for thoughts as long as the chain; start and end begin as ``:`` and ``.``."""
    return QuietSTaR(model, task.length, start_token_id=COLON, end_token_id=DOT, **options)


def toy_batch(task: PermutationTask, batch_size: int, number: int) -> Batch:
    """Draw a batch of the direct form alone: what Quiet-STaR trains on."""
    return Batch(task.direct(batch_size, torch.Generator().manual_seed(1_000_003 + number)))


@dataclass(frozen=True, slots=True)
class ToyScore:
    """Quality of the predictions of the answer after ``=``.

    Attributes:
        plain_nll: Nats, without a thought.
        nll: Nats, after a thought.
        accuracy: Share of likeliest answers that are right, after a thought.
        chain_rate: Share of thoughts that hold exactly the states in between.
        mixing_weight: Mean weight of the thought.
    """

    plain_nll: float
    nll: float
    accuracy: float
    chain_rate: float
    mixing_weight: float


@torch.no_grad()
def toy_score(
    quiet: QuietSTaR, task: PermutationTask, problems: int = 2000, temperature: float = 1.0, random: bool = False
) -> ToyScore:
    """Score fresh problems.

    Args:
        quiet: The model.
        task: The task.
        problems: How many.
        temperature: Of the thoughts.
        random: Put random states in the place of thoughts: extra compute without content.
    """
    draw = torch.Generator().manual_seed(77)
    prompts, chain = task.problems(problems, draw)
    thoughts = quiet.think(prompts, positions=torch.tensor([task.equals_at]), temperature=temperature, seed=5)
    if random:
        tokens = torch.randint(task.states, thoughts.tokens.shape, generator=draw) + _FIRST_STATE
        thoughts = type(thoughts)(tokens, thoughts.logprobs, thoughts.positions)
    talk = quiet.talk(prompts, None, thoughts)
    answer = chain[:, -1]
    plain, mixed = (quiet.logits(states).log_softmax(-1) for states in (talk.base[:, 0, 0, 0], talk.mixed[:, 0, 0, 0]))
    rows = torch.arange(problems)
    return ToyScore(
        plain_nll=-float(plain[rows, answer].mean()),
        nll=-float(mixed[rows, answer].mean()),
        accuracy=float((mixed.argmax(-1) == answer).float().mean()),
        chain_rate=float((thoughts.tokens[:, 0, 0] == chain).all(-1).float().mean()),
        mixing_weight=float(talk.mixing_weight.mean()),
    )


TASK = PermutationTask()


def recipe(steps: int, seed: int = 0, **objective: Any) -> Recipe:
    """Return the settings of every row: 4 thoughts for each position, unbiased REINFORCE, learning rate 3e-4."""
    settings = {"talk_length": 1, "num_thoughts": 4, "reinforce_temperature": 1.0, **objective}
    return Recipe(
        Objective(**settings),
        lr=3e-4,
        head_lr_scale=10.0,
        embedding_lr_scale=10.0,
        weight_decay=0.0,
        warmup_steps=0,
        steps=steps,
        accumulation=1,
        seed=seed,
    )


def taught(state: dict[str, torch.Tensor], given: Recipe) -> QuietSTaR:
    """Return a copy of the pretrained model after Quiet-STaR."""
    model = toy_model(TASK)
    model.load_state_dict(state)
    quiet = toy_quiet(model, TASK).eval()
    for _ in train(start(quiet, given), lambda number: toy_batch(TASK, 64, 1000 * given.seed + number)):
        pass
    return quiet.eval()


def show(name: str, score: ToyScore) -> None:
    print(
        f"| {name} | {score.plain_nll:.3f} | {score.nll:.3f} | {score.accuracy:.3f} | {score.chain_rate:.3f} "
        f"| {score.mixing_weight:.2f} |",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pretrain-steps", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    given = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    model = toy_model(TASK)
    for _ in pretrain(model, TASK, given.pretrain_steps):
        pass
    state = model.state_dict()
    print("| run | NLL, no thought | NLL, with thought | accuracy | thought = states in between | weight |")
    print("|---|---|---|---|---|---|")
    show("start", toy_score(toy_quiet(model, TASK).eval(), TASK))
    for seed in given.seeds:
        quiet = taught(state, recipe(given.steps, seed))
        show(f"Quiet-STaR, {given.steps} steps, seed {seed}", toy_score(quiet, TASK))
        show(f"the same, likeliest thoughts, seed {seed}", toy_score(quiet, TASK, temperature=0.0))
        show(f"the same, random thoughts, seed {seed}", toy_score(quiet, TASK, random=True))
    show("reinforce temperature 3", toy_score(taught(state, recipe(given.steps, reinforce_temperature=3.0)), TASK))
    show("policy weight 0", toy_score(taught(state, recipe(given.steps, policy_weight=0.0)), TASK))
    print(f"{time.process_time() - started:.0f} s of one core")


if __name__ == "__main__":
    main()
