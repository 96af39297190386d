"""Cached thinking against recomputation, and the bill against what ran.

Run with ``python -m benchmarks.quiet_star``. One random Llama (4 layers, width 256) thinks 5 tokens before every
visible one, in three ways that give the same tokens:

* cached: keys and values kept, T + 1 passes over the newest tokens, thoughts cropped (`QuietSTaRGenerator`);
* recomputed: T + 1 passes, each over the whole text, a thought at its end alone;
* everywhere: as the released evaluation runs, thoughts at every position of the text for every visible token, T + 3
  passes over all positions.

Ways are timed in turn on the same prompts, batch by batch; the figure is the ratio of their times. The FLOPs per
visible token that a step is charged with are compared with the closed form, term by term, and what a dispatch-mode
counter sees of one token with the sum of its passes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from inferscale.flops.spec import forward_flops, model_spec
from inferscale.flow import GenerateRequest
from inferscale.quiet_star import QuietSTaR, QuietSTaRGenerator
from inferscale.quiet_star.cache import CachedText, think_once
from inferscale.quiet_star.generator import ThinkingDecoder, Trace
from inferscale.quiet_star.head import mix
from inferscale.quiet_star.parallel import open_session, run_text
from inferscale.quiet_star.thoughts import branch_numbers
from inferscale.runtime.branch import Branch
from inferscale.runtime.sampling import Sampler
from inferscale.tree import Node, Problem, root_key
from inferscale.zoo.tokenizer import build_tokenizer

Sampled: TypeAlias = tuple[tuple[int, ...], int, int]
"""Ids, FLOPs and thought tokens of a sample."""


class Recomputing(ThinkingDecoder):
    """Decoder that reads the whole text again in every pass; a thought at its end."""

    def start(self, branches: Sequence[Branch]) -> Tensor:
        """Compute logits of the first tokens."""
        self._live = list(branches)
        self._traces.update({id(branch): Trace(branch) for branch in branches})
        self._rows = [list(branch.prefix) for branch in branches]
        return self._again()

    def step(self, tokens: Tensor) -> Tensor:
        """Compute logits after one more token."""
        self._rows = [[*row, token] for row, token in zip(self._rows, tokens.tolist(), strict=True)]
        return self._again()

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        self._live = [self._live[row] for row in rows]
        self._rows = [self._rows[row] for row in rows]

    def _again(self) -> Tensor:
        for branch in self._live:
            self._traces[id(branch)].thought.append(True)
        numbers = branch_numbers(self._live, 1, self.settings.length, self.quiet.backbone.device)
        base, after = self._states(numbers)
        return self.quiet.logits(mix(base, after, self.quiet.head(base, after)))

    def _states(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        quiet = self.quiet
        ids = torch.tensor(self._rows)
        embeds = torch.cat([quiet.backbone.embed(ids), quiet.start.expand(len(ids), 1, -1)], dim=1)
        base = None
        for number in range(numbers.shape[1]):
            hidden = quiet.backbone.states(embeds)
            base = hidden[:, ids.shape[1] - 1] if base is None else base
            draws = self._sampler.draw(quiet.logits(hidden[:, -1]), numbers[:, number])
            embeds = torch.cat([embeds, quiet.backbone.embed(draws.tokens[:, None])], dim=1)
        after = quiet.backbone.states(torch.cat([embeds, quiet.end.expand(len(ids), 1, -1)], dim=1))[:, -1]
        assert base is not None
        return base, after


class Everywhere(Recomputing):
    """Decoder that thinks at every position of the text for every visible token and uses the last one."""

    def _states(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        quiet = self.quiet
        ids = torch.tensor(self._rows)
        text = run_text(quiet.backbone, quiet.backbone.embed(ids), None, "mask")
        positions = torch.arange(ids.shape[1])
        session = open_session(quiet.backbone, text, positions, "mask", 256)
        spread = numbers[:, None].expand(-1, len(positions), -1)
        tokens, _ = quiet.sample_thoughts(session, spread, self._sampler)
        session.feed(quiet.backbone.embed(tokens[:, :, -1:]))
        after = session.feed(quiet.end.expand(len(ids), len(positions), 1, -1))[:, -1, 0]
        return text.hidden[:, -1], after


def thinker(length: int, seed: int = 0) -> QuietSTaR:
    """Make a random model of 4 layers and width 256 with a head that mixes."""
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.1,
    )
    torch.manual_seed(seed)
    quiet = QuietSTaR(LlamaForCausalLM(config), length, start_token_id=10, end_token_id=11)
    with torch.no_grad():
        quiet.head.last.weight.normal_(std=0.1)
    return quiet.eval()


def prompts(count: int, tokens: int) -> list[str]:
    """Make prompts of exactly so many tokens (digits; ``<s>`` in front counts)."""
    return ["".join(str((7 * i + j) % 10) for i in range(tokens - 1)) for j in range(count)]


def run(quiet: QuietSTaR, way: type[ThinkingDecoder], batch: int, prompt: int, new: int) -> tuple[float, list[Sampled]]:
    """Return seconds, and the samples."""
    generator = QuietSTaRGenerator(quiet, build_tokenizer(), max_step_tokens=new, max_new_tokens=new, eos_token_id=0)
    if way is not ThinkingDecoder:
        decoder = way(quiet, generator.settings, generator.stats)
        generator._decoder = generator._runner._plain = decoder
    requests = [
        GenerateRequest(Node(Problem(text), key=root_key(text)), until="end") for text in prompts(batch, prompt)
    ]
    started = time.perf_counter()
    answers = generator.generate(requests)
    return time.perf_counter() - started, [(s.token_ids, s.flops, s.thought_tokens) for (s,) in answers]


def closed_form(quiet: QuietSTaR, context: int, length: int) -> int:
    """Compute FLOPs of one visible token with `context` tokens before the newest one, written out."""
    config = quiet.model.config
    d, layers, vocabulary = config.hidden_size, config.num_hidden_layers, config.vocab_size
    body: int = layers * (4 * d * d + 3 * d * config.intermediate_size)
    attention: int = sum(4 * layers * d * (context + i + 1) for i in range(length + 3))
    heads: int = (length + 1) * 2 * d * vocabulary + 6 * d * d + 2 * d
    return (length + 3) * 2 * body + attention + heads


def check_bill(length: int, prompt: int, new: int) -> None:
    """Compare charged FLOPs per visible token with the closed form; executed ones of a token with its passes."""
    quiet = thinker(length)
    _, answers = run(quiet, ThinkingDecoder, 1, prompt, new)
    tokens, flops, _ = answers[0]
    config = quiet.model.config
    body = config.num_hidden_layers * (4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size)
    attention = 4 * config.num_hidden_layers * config.hidden_size * (prompt - 1) * prompt // 2
    prefill = (prompt - 1) * 2 * body + attention
    expected = sum(closed_form(quiet, prompt - 1 + token, length) for token in range(len(tokens)))
    print(f"T={length}: charged {flops - prefill:,} FLOPs for {len(tokens)} visible tokens, closed form {expected:,}")
    assert flops - prefill == expected
    executed, wanted = _one_token(quiet, prompt, length)
    print(f"T={length}: one token executes {executed:,} FLOPs (attention as rectangles), its passes say {wanted:,}")
    assert executed == wanted


@torch.no_grad()
def _one_token(quiet: QuietSTaR, context: int, length: int) -> tuple[int, int]:
    """Return FLOPs of one visible token: what a dispatch-mode counter sees, and the sum of the passes."""
    quiet.model.set_attn_implementation("eager")
    text = CachedText.prefill(quiet.backbone, [list(range(10, 10 + context))])
    newest = quiet.backbone.embed(torch.tensor([[9]]))
    with FlopCounterMode(display=False) as counter:
        thought = think_once(quiet, text, newest, torch.full((1, length), 0.5, dtype=torch.float64), Sampler())
        assert thought.before is not None
        quiet.logits(mix(thought.before, thought.after, quiet.head(thought.before, thought.after)))
    quiet.model.set_attn_implementation("sdpa")
    spec = model_spec(quiet.model.config)
    sizes = [2, *[1] * (length - 1), 2] if length else [3]
    wanted, past = quiet.head.flops, context
    for new in sizes:
        wanted += forward_flops(spec, new, past, logits=1).full
        past += new
    return counter.get_total_flops(), wanted


def main() -> None:
    """Print the ratios and the bills."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--thought-length", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=16, help="visible tokens sampled")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for length in (0, 1, given.thought_length):
        check_bill(length, given.prompt, given.new)
    quiet = thinker(given.thought_length)
    ways = {"cached": ThinkingDecoder, "recomputed": Recomputing, "everywhere": Everywhere}
    for batch in given.batches:
        times: dict[str, list[float]] = {name: [] for name in ways}
        found = {}
        run(quiet, ThinkingDecoder, batch, given.prompt, 2)
        for _ in range(given.repeats):
            for name, way in ways.items():
                seconds, found[name] = run(quiet, way, batch, given.prompt, given.new)
                times[name].append(seconds)
        assert found["cached"] == found["recomputed"] == found["everywhere"], "the ways must give the same tokens"
        median = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
        print(
            f"batch {batch}, prompt {given.prompt}, {given.new} tokens, T={given.thought_length}: "
            + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in median.items())
            + f"; recomputed/cached {median['recomputed'] / median['cached']:.1f}x, "
            f"everywhere/cached {median['everywhere'] / median['cached']:.1f}x"
        )


if __name__ == "__main__":
    main()
