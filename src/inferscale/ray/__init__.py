"""Many problems over many machines: searches in an actor pool of Ray Data (extra ``ray``).

Each actor holds one generator and one reward model, on a GPU or a CPU, and solves batches of problems as `solve_batch`
does. On one machine nothing needs to be set up; on a cluster call ``ray.init(address="auto")`` before.
"""

from ._dataset import solve_dataset, stream_dataset

__all__ = ["solve_dataset", "stream_dataset"]
