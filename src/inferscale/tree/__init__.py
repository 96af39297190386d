"""Problems, sampled steps, and the search tree that they form (standard library only)."""

from ._nodes import Node, UnscoredNodeError, branch_key, root_key
from ._records import FinishReason, Problem, Step, Trajectory

__all__ = ["FinishReason", "Node", "Problem", "Step", "Trajectory", "UnscoredNodeError", "branch_key", "root_key"]
