"""What stands before a sample that is about to begin, and how much of it need not be read again."""

from __future__ import annotations

from dataclasses import dataclass

from .branch import Branch
from .kv_rows import Segment
from .kv_store import KVStore, Piece, chain_key


@dataclass(eq=False)
class Stem:
    """What branches of one node with one forced text have in common.

    The prompt's last token counts as the root's own, so that a shared segment holds what comes before it and every
    node, the root included, has at least one token whose logits lead on.

    Attributes:
        branch: One of them.
        root: Key of the tree's root.
        segment: The prompt without its last token.
        nodes: Name and own tokens of each node of the path, the root's first.
        pieces: What is held of the first of these nodes.
    """

    branch: Branch
    root: int
    segment: Segment
    nodes: list[tuple[int, tuple[int, ...]]]
    pieces: list[Piece]

    @classmethod
    def find(cls, branch: Branch, segment: Segment, store: KVStore) -> Stem:
        """The stem, with the parked pieces of its path up to the first that is missing."""
        root = branch.request.node.root
        nodes: list[tuple[int, tuple[int, ...]]] = []
        key = chain_key(0, branch.prompt[:-1])
        for ids in (branch.prompt[-1:], *(step.token_ids for step in branch.request.node.steps)):
            key = chain_key(key, ids)
            nodes.append((key, ids))
        pieces: list[Piece] = []
        for key, ids in nodes:
            if not ids:
                pieces.append(Piece((), None))
                continue
            piece = store.piece(root.key, key, ids)
            if piece is None:
                break
            pieces.append(piece)
            if len(piece.ids) < len(ids):
                break
        return cls(branch, root.key, segment, nodes, pieces)

    @property
    def ids(self) -> tuple[int, ...]:
        """All private tokens before the first sampled one."""
        return self.branch.prompt[-1:] + self.branch.path + self.branch.forced

    @property
    def held(self) -> int:
        """Private tokens that need not be read; the last one always must, for its logits."""
        return min(sum(len(piece.ids) for piece in self.pieces), len(self.ids) - 1)
