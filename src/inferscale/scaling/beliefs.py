"""Beliefs on many configurations after a few problems: all accuracies together, and what more would tell.

The accuracies ``theta`` of C configurations are Gaussian beforehand, more alike the more two configurations share and
the closer their costs are. On one problem they score ``theta`` plus noise that they have in common, most of all votes
over the same samples. The posterior is then a matter of linear algebra; it shrinks the one that looks best of many
towards its kin (no winner's curse), smooths over sizes, and sets what was tried on few problems beside others on the
same ones, which corrects for easy beginnings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Standard deviations of accuracies beforehand. How far configurations of the same cost are apart: all of them together
# from the mean, then those that share no label, and those that share the first, the first two, ... but not the next.
_LEVEL, _TREND, _KIN, _OWN = 0.3, 0.1, (0.15, 0.06, 0.04), 0.015
_OCTAVES = 2.5  # factor 2 of cost over which accuracies change smoothly
_WEIGHT = 10  # problems that the variance of all configurations counts for in that of one
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(15)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


@dataclass(frozen=True)
class Beliefs:
    """The posterior of C accuracies.

    Attributes:
        names: Of the configurations.
        mean: `[C]`.
        covariance: `[C, C]`.
        noise: `[C]`, variance of the outcomes of one configuration over problems.
    """

    names: tuple[str, ...]
    mean: Floats
    covariance: Floats
    noise: Floats

    def chances(self, among: Sequence[int], draws: int = 2000) -> dict[int, float]:
        """For each of these rows the chance that its accuracy is the greatest."""
        rows = list(among)
        root = np.linalg.cholesky(self.covariance[np.ix_(rows, rows)] + 1e-12 * np.eye(len(rows)))
        drawn = self.mean[rows, None] + root @ np.random.default_rng(0).standard_normal((len(rows), draws))
        counts = np.bincount(drawn.argmax(axis=0), minlength=len(rows)) / draws
        return dict(zip(rows, counts.tolist(), strict=True))

    def gains(self, among: Sequence[int], rows: Sequence[int], problems: Sequence[int]) -> Floats:
        """The gain that is expected in the best of `among` once each of `rows` is tried on so many more problems.

        The knowledge gradient with correlated beliefs (Frazier, Powell and Dayanik 2009): means will move by a normal
        multiple of ``covariance[:, row] / sqrt(covariance[row, row] + noise[row] / problems)``.
        """
        told = np.sqrt(self.covariance[rows, rows] + self.noise[rows] / np.asarray(problems))
        move = self.covariance[np.ix_(list(among), list(rows))] / told
        means = self.mean[list(among)]
        later = (means[:, None, None] + move[:, :, None] * _NODES).max(axis=0) @ _WEIGHTS
        return np.asarray(np.maximum(later - means.max(), 0.0))


def believe(
    columns: Mapping[str, Floats], costs: Mapping[str, float], runs: Mapping[str, str],
    kin: Mapping[str, tuple[str, ...]],
) -> Beliefs:  # fmt: skip
    """The posterior after what was seen.

    Args:
        columns: Values `[n]` of each configuration, each on a beginning of the same problems.
        costs: Mean cost of a problem.
        runs: The run that each was read out of: its noise is shared.
        kin: Labels that configurations share, from coarse to fine; none for what is like no other.
    """
    names = tuple(columns)
    sizes = np.asarray([len(columns[name]) for name in names])
    labels = [kin.get(name, ()) for name in names]
    covariance = _noise([columns[n] for n in names], [runs[n] for n in names], [label[:1] for label in labels])
    prior = _prior(np.asarray([costs[name] for name in names]), labels)
    middle = float(np.mean([columns[name].mean() for name in names]))
    precision, pulled = np.linalg.inv(prior), np.zeros(len(names))
    done = 0
    for upto in sorted(set(sizes.tolist())):  # those that were tried on further problems compare on these too
        here = np.flatnonzero(sizes >= upto)
        means = np.asarray([columns[names[i]][done:upto].mean() for i in here]) - middle
        weight = (upto - done) * np.linalg.inv(covariance[np.ix_(here, here)])
        precision[np.ix_(here, here)] += weight
        pulled[here] += weight @ means
        done = upto
    posterior = np.linalg.inv(precision)
    return Beliefs(names, middle + posterior @ pulled, (posterior + posterior.T) / 2, np.diagonal(covariance).copy())


def _noise(columns: Sequence[Floats], runs: Sequence[str], first: Sequence[tuple[str, ...]]) -> Floats:
    """`[C, C]`: covariance of outcomes over problems.

    What two configurations have in common is taken to be the same for all pairs of a kind: of one run, of one first
    label, others. So a difference is never told by the sum, as unequal covariances would have it.
    """
    sizes = np.asarray([len(column) for column in columns])
    own = np.asarray([column.var() for column in columns])
    usual = max(float(own @ sizes / sizes.sum()), 0.01)
    own = (own * sizes + usual * _WEIGHT) / (sizes + _WEIGHT)  # few problems tell a variance badly
    rows = np.zeros((len(columns), int(sizes.max())))
    for row, column in zip(rows, columns, strict=True):
        row[: len(column)] = column - column.mean()
    products, both = rows @ rows.T, np.minimum.outer(sizes, sizes)
    same_run = _same(runs)
    related = same_run | (_same(first) & np.asarray([bool(label) for label in first]))
    apart = ~np.eye(len(columns), dtype=bool)
    found = np.zeros_like(products)
    least = 0.0  # what is closer has at least as much in common, so that this stays a covariance
    for kind in (apart & ~related, apart & related & ~same_run, apart & same_run):
        count = both[kind].sum()
        least = max(float(products[kind].sum() / count) if count else 0.0, least)
        found[kind] = least
    np.fill_diagonal(found, np.maximum(own, least + 0.1 * usual))
    return found


def _prior(costs: Floats, labels: Sequence[tuple[str, ...]]) -> Floats:
    """`[C, C]`: covariance of accuracies beforehand."""
    octaves = np.log2(np.maximum(costs, 1e-300))
    near = np.exp(-0.5 * ((octaves[:, None] - octaves) / _OCTAVES) ** 2)
    total = _LEVEL**2 + _TREND**2 * near
    for depth, deviation in enumerate(_KIN, start=1):
        same = _same([label[:depth] if len(label) >= depth else (str(i), depth) for i, label in enumerate(labels)])
        total = total + deviation**2 * near * same
    return np.asarray(total + _OWN**2 * np.eye(len(costs)))


def _same(labels: Iterable[object]) -> NDArray[np.bool_]:
    known: dict[object, int] = {}
    ids = np.asarray([known.setdefault(label, len(known)) for label in labels])
    return np.asarray(ids[:, None] == ids)
