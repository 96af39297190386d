"""Pictures of ``docs/howto/pictures.md`` and ``docs/index.md``: real searches of the embedded models, seed 0.

Run with ``python -m benchmarks.pictures``. Pages are photographed by a Chromium that is found on the path, or by the
one that ``--browser`` names; ``--pages FOLDER`` keeps the pages.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import inferscale as isc
from inferscale.engine import SearchResult
from inferscale.scaling import scaling_curve
from inferscale.viz import label_lines, plot_answers, plot_frontier, plot_scaling, plot_tree

LIGHT, DARK = "#ffffff", "#131416"
WIDTH = 860


def main() -> None:
    """Writes all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--browser", default=shutil.which("chromium") or shutil.which("google-chrome"))
    parser.add_argument("--pages", type=Path, help="a folder to keep the pages in")
    parser.add_argument("--no-curve", action="store_true", help="leave out the scaling curve, which takes longest")
    options = parser.parse_args()
    if options.browser is None:
        sys.exit("no Chromium on the path: install one (Debian: apt-get install chromium), or name it with --browser")
    options.out.mkdir(parents=True, exist_ok=True)
    found = searches()
    with tempfile.TemporaryDirectory() as scratch:
        pages = options.pages or Path(scratch)
        pages.mkdir(parents=True, exist_ok=True)
        (options.out / "search.svg").write_text(drawing(found.pop("search")), encoding="ascii")
        for name, result in found.items():
            background = DARK if name == "tree-dark" else LIGHT
            photograph(result, background, pages / f"{name}.html", options.out / f"{name}.png", options.browser)
    plot_tree(found["tree-dark"]).figure.savefig(options.out / "tree-plot.png", dpi=90)
    plot_answers(found["votes"]).figure.savefig(options.out / "answers-plot.png", dpi=90)
    if not options.no_curve:
        curve(options.out / "curve.png")


def searches() -> dict[str, SearchResult]:
    """Results by the name of their picture."""
    easy, hard = isc.zoo.problems("dev")[:2]
    generator = isc.HFGenerator(*isc.zoo.load("policy-xs"), temperature=1.0, max_new_tokens=160)
    judge = prm()

    def search(problem: isc.Problem, strategy: isc.SearchStrategy) -> SearchResult:
        vote = isc.MajorityVote(weighted=True)
        return isc.solve(problem, strategy, generator, reward_model=judge, aggregator=vote, seed=0)

    first, better = isc.zoo.problems("test")[0], isc.HFGenerator(*isc.zoo.load("policy-s"), max_new_tokens=160)
    return {
        "search": isc.solve(first, isc.REBASE(4), better, reward_model=judge),
        "tree-5": search(hard, isc.RepeatedSampling(4)),
        "tree-dark": search(easy, isc.BeamSearch(2, 2)),
        "tree-500": search(hard, isc.REBASE(84)),
        "votes": search(hard, isc.RepeatedSampling(64)),
    }


def prm() -> isc.RewardModel:
    """The embedded process reward model."""
    return isc.HFProcessRewardModel(
        *isc.zoo.load("prm-s"), good_token="<good>", bad_token="<bad>", reduction="min"
    )  # fmt: skip


def drawing(result: SearchResult) -> str:
    """The tree of a result in the colours of the reader's screen, or of the page that it is a part of."""
    style = (
        ".search{color:#111}@media (prefers-color-scheme:dark){.search{color:#ddd}}.search .chosen{stroke-width:3}"
        ".search .kept{opacity:.5}.search .pruned{opacity:.5;stroke-dasharray:3 3}"
    )
    tree = re.search("<svg (.*?>)(.*?</svg>)", result.to_html(), flags=re.DOTALL)
    assert tree is not None
    return f'<svg class="search" {tree[1]}<style>{style}</style>{tree[2]}\n'


def photograph(result: SearchResult, background: str, page: Path, picture: Path, browser: str) -> None:
    """Writes the page of a result, and what a browser shows of it without the empty part below."""
    text = "#cfd0d0" if background == DARK else "#111111"
    style = f"margin:14px;background:{background};color:{text}"
    page.write_text(f'<!doctype html><body style="{style}">{result.to_html()}</body>', encoding="ascii")
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--hide-scrollbars", f"--user-data-dir={profile}",
            f"--screenshot={picture.resolve()}", f"--window-size={WIDTH},1400", page.resolve().as_uri(),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    _crop(picture, background)


def _crop(picture: Path, background: str, margin: int = 14) -> None:
    from PIL import Image, ImageChops

    image = Image.open(picture).convert("RGB")
    box = ImageChops.difference(image, Image.new("RGB", image.size, background)).getbbox()
    bottom = image.height if box is None else min(image.height, box[3] + margin)
    image.crop((0, 0, image.width, bottom)).save(picture, optimize=True)


def curve(picture: Path, size: int = 40) -> None:
    """Accuracy against FLOPs on development problems."""
    problems = isc.zoo.problems("dev")[:size]
    judge = prm()
    points = []
    for name in ("policy-xs", "policy-s"):
        generator = isc.HFGenerator(*isc.zoo.load(name), temperature=1.0, max_new_tokens=160)
        strategies = [isc.RepeatedSampling(16), *(isc.REBASE(width) for width in (2, 4, 8, 16))]
        points += scaling_curve(
            problems, strategies, generator, reward_model=judge, votes=["majority", "weighted"], model=name
        )
    shown = [p for p in points if p.vote == ("weighted" if p.strategy == "REBASE" else "majority")]
    named = [replace(p, strategy=p.strategy.replace("RepeatedSampling", "sampling")) for p in shown]
    axes = plot_frontier(named, ax=plot_scaling(named))
    label_lines(axes)
    axes.figure.savefig(picture, dpi=90)


if __name__ == "__main__":
    main()
