"""What runs a batch of branches, and what it has really done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .branch import Branch


@dataclass
class GeneratorStats:
    """What a generator has really done, repeats included.

    Attributes:
        prefill_tokens: Prompt and path tokens read by the model.
        reused_tokens: Prompt and path tokens of branches that were not read, since their keys and values were held.
        decoded_tokens: Tokens sampled and kept.
        wasted_tokens: Tokens drawn beyond the end of a step, or again after memory ran out.
        cache_bytes: Keys and values held now.
        peak_cache_bytes: The most keys and values held at a time, rows that decode included.
        evictions: Parked nodes and prompts dropped for room.
        seconds: Time in `HFGenerator.generate`.
    """

    prefill_tokens: int = 0
    reused_tokens: int = 0
    decoded_tokens: int = 0
    wasted_tokens: int = 0
    cache_bytes: int = 0
    peak_cache_bytes: int = 0
    evictions: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Sampled tokens per second."""
        return self.decoded_tokens / self.seconds if self.seconds else 0.0


class Decoder(ABC):
    """Next-token logits for a batch of branches that grow token by token.

    Attributes:
        refills: Whether `start` can add rows, behind those that are left of the batch.
        follows_branches: Whether it reads what the branches have sampled, so that they must be told of every token.
    """

    refills: bool = False
    follows_branches: bool = True

    @abstractmethod
    def start(self, branches: Sequence[Branch]) -> Tensor:
        """Logits `[branches, vocabulary]` of the first token of each branch."""

    @abstractmethod
    def step(self, tokens: Tensor) -> Tensor:
        """Logits `[rows, vocabulary]` after one more token `[rows]` in each row that is left."""

    @abstractmethod
    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but these; their branches have ended."""

    def make_room(self) -> None:
        """Memory ran out: lets go of everything that can be computed again."""

    def release(self, root: int) -> None:
        """The tree with this root key will not grow any more."""
