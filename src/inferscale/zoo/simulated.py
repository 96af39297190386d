"""A simulated process reward model: the exact label plus noise of a chosen quality. Not a trained model."""

from __future__ import annotations

import math
from hashlib import blake2b
from statistics import NormalDist


def simulated_score(prefix: str, is_right: bool, auc: float) -> float:
    """The chance, in 0..1, that a noisy judge of the given quality would give to a prefix being right.

    The same prefix always gets the same score. Over many prefixes, a right one outscores a wrong one with
    probability `auc`, and the score is calibrated when half of the prefixes are right.

    Args:
        prefix: Prompt and solution so far. Without the prompt, equal solutions of two problems share their noise.
        is_right: The exact label, see `inferscale.zoo.task.step_labels`.
        auc: Quality, between 0.5 (noise alone) and 1 (both excluded).

    Raises:
        ValueError: If `auc` is not between 0.5 and 1.

    Its noise is independent between prefixes. A trained model repeats its mistakes on siblings and along a path, so
    a simulated judge helps a search more than a trained one of the same AUC.
    """
    if not 0.5 < auc < 1:
        raise ValueError(f"simulated_score(auc={auc}): choose a value between 0.5 and 1")
    # Binormal model: z ~ N(+-d/2, 1) has AUC Phi(d / sqrt 2) and log-likelihood ratio d * z.
    d = math.sqrt(2) * NormalDist().inv_cdf(auc)
    uniform = (int.from_bytes(blake2b(prefix.encode(), digest_size=6).digest(), "big") + 0.5) / 2**48
    z = (d if is_right else -d) / 2 + NormalDist().inv_cdf(uniform)
    return 1 / (1 + math.exp(-d * z))
