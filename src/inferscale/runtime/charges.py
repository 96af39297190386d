"""The price of a sample or a score: closed-form FLOPs and bytes that do not depend on the batch."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

import torch

from inferscale.base import Traffic
from inferscale.cost import Cost
from inferscale.flops.calibration import calibrate, closed_form, language_model, unwrapped
from inferscale.flops.spec import ModelSpec, UnknownArchitectureError, forward_cost, model_spec, sample_flops
from inferscale.flops.traffic import RowGroup, count_traffic
from inferscale.flow import GenerateRequest
from inferscale.tree import Step

from .branch import Branch, BranchFactory


class Charges:
    """Closed-form costs of a model's forwards, convention ``causal``, no padding.

    The form comes from the configuration, or from a few small forwards; a model that cannot be run so is charged 0
    FLOPs, with one warning.

    Attributes:
        spec: The constants of the closed form, or ``None``.
        widths: Bytes of a weight, and of a number in the cache; ``None`` of a model that runs elsewhere.
    """

    def __init__(self, model: Any) -> None:
        """Finds the closed form of a model, or of the configuration of one that runs elsewhere."""
        self.spec: ModelSpec | None = None
        self.widths: tuple[float, int] | None = None
        try:
            self.spec = _form_of(model)
        except UnknownArchitectureError as error:
            warnings.warn(f"FLOPs of this model will be reported as 0: {error}", UserWarning, stacklevel=4)
            return
        if isinstance(model, torch.nn.Module):
            part = unwrapped(language_model(model)[0])
            stored = sum(map(_stored_bytes, part.parameters()))
            self.widths = stored / self.spec.parameters, int(model.dtype.itemsize)  # type: ignore[arg-type]

    def traffic(self, batch: Collection[RowGroup]) -> Traffic | None:
        """Bytes that one batch of rows moves; ``None`` if they are not known."""
        if self.spec is None or self.widths is None or self.spec.states is None:
            return None
        return count_traffic(self.spec, batch, *self.widths, state=4)

    def forward(self, new: int, past: int, logits: int) -> int:
        """FLOPs of `new` tokens after `past` cached ones, with the head run at `logits` positions."""
        return forward_cost(self.spec, new, past, logits)

    def sample(self, branch: Branch) -> tuple[int, int]:
        """Prompt tokens and FLOPs of one finished sample.

        The first draw from a node pays for what no forward has read yet: the prompt at the root, the node's last token
        elsewhere. The first sample of a request pays for its forced text, which is read once for all of them.
        """
        sampled, forced, path = len(branch.tokens), len(branch.forced), len(branch.path)
        if not sampled:
            return 0, 0
        first_draw = branch.request.first + branch.index == branch.request.payer
        unread = (1 if path else len(branch.prompt)) if first_draw else 0
        read = unread + (forced if branch.index == 0 else 0)
        flops = sample_flops(self.spec, len(branch.prefix), read, sampled)
        prompt_tokens = (len(branch.prompt) if first_draw and not path else 0) + (forced if branch.index == 0 else 0)
        return prompt_tokens, flops

    def scoring(self, tokens: int, logits: int, past: int = 0) -> Cost:
        """The cost of reading `tokens` after `past` cached ones with the head run at `logits` positions, on its own."""
        return self.scorings([(tokens, past, logits)], [None])[0]

    def scorings(
        self, bills: Sequence[tuple[int, int, int]], trees: Sequence[Hashable], shared: Sequence[int] = ()
    ) -> list[Cost]:
        """The cost of each of several paths that are scored in one call.

        The paths of one tree share the weights, and the keys and values of its prompt; the first of them is charged
        with the bytes of all. So a search pays for itself alone, whatever else is scored in the call.

        Args:
            bills: Of each path the tokens read, the cached ones before them, and the positions where the head runs.
            trees: Names the tree of each path.
            shared: Of each path the tokens of the prompt, if rows share its keys and values.
        """
        read: dict[Hashable, list[RowGroup]] = {tree: [] for tree in trees}
        for (tokens, past, _), tree, prompt in zip(bills, trees, shared or [0] * len(bills), strict=True):
            if tokens:
                read[tree].append(RowGroup(past + tokens, tokens, prompt=tree, shared=prompt))
        unpaid = {tree: self.traffic(rows) for tree, rows in read.items()}
        costs = []
        for (tokens, past, logits), tree in zip(bills, trees, strict=True):
            moved = unpaid[tree]
            if moved is not None:
                unpaid[tree] = Traffic(0, 0)
            costs.append(
                Cost(
                    scored_tokens=tokens,
                    reward_flops=self.forward(tokens, past, logits),
                    reward_bytes=None if moved is None else sum(moved),
                    cache_bytes=None if moved is None else moved.cache,
                )
            )
        return costs


def row_groups(
    branches: BranchFactory,
    requests: Sequence[GenerateRequest],
    answers: Sequence[Sequence[Step]],
    shares_prompts: bool = True,
) -> list[RowGroup]:
    """The rows of answered requests, as they are charged with FLOPs.

    The first draw from a node reads the prompt, or the node's last token; a request's first sample the forced text.

    Args:
        branches: Knows the ids of requests.
        requests: The requests.
        answers: Their steps.
        shares_prompts: True if the keys and values of a prompt are read once for all rows of a tree.
    """
    groups = []
    for request, steps in zip(requests, answers, strict=True):
        prompt, forced = branches.ids(request)
        path = len(request.node.token_ids)
        is_first = request.first <= request.payer < request.first + request.n
        unread = ((1 if path else len(prompt)) if is_first else 0) + len(forced)
        sampled = [int(step.generated_tokens) for step in steps]
        shared = len(prompt) if shares_prompts else 0
        before = len(prompt) + path + len(forced)
        groups.append(RowGroup(before, unread if any(sampled) else 0, sampled, request.node.root.key, shared))
    return groups


def _stored_bytes(tensor: Any) -> int:
    """Bytes of a tensor; of a quantised one those of the tensors that it is made of."""
    inner = getattr(tensor, "__tensor_flatten__", None)
    if inner is None:
        return int(tensor.numel() * tensor.element_size())
    return sum(_stored_bytes(getattr(tensor, name)) for name in inner()[0])


def _form_of(model: Any) -> ModelSpec:
    if isinstance(model, torch.nn.Module):
        return closed_form(model)
    try:
        return model_spec(model)
    except UnknownArchitectureError:
        if isinstance(model, Mapping):  # makes no model that could be measured
            raise
        return calibrate(model)
