"""Pictures of ``docs/howto/pictures.md`` and ``docs/index.md``: real searches of the embedded models, seed 0.

Run with ``python -m benchmarks.pictures``. Pages are photographed by a Chromium that is found on the path, or by the
one that ``--browser`` names; ``--pages FOLDER`` keeps the pages.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import inferscale as isc
from inferscale.engine import SearchResult
from inferscale.scaling import scaling_curve
from inferscale.viz import label_lines, plot_answers, plot_frontier, plot_plan, plot_scaling, plot_tree

PICTURES = ("searches", "growing", "curve", "plan")
LIGHT, DARK = "#ffffff", "#131416"
WIDTH = 860


def main() -> None:
    """Writes the pictures that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *PICTURES], metavar="NAME", help=", ".join(PICTURES))
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--browser", default=shutil.which("chromium") or shutil.which("google-chrome"))
    parser.add_argument("--pages", type=Path, help="a folder to keep the pages in")
    options = parser.parse_args()
    if options.browser is None:
        sys.exit("no Chromium on the path: install one (Debian: apt-get install chromium), or name it with --browser")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        pages = options.pages or Path(scratch)
        pages.mkdir(parents=True, exist_ok=True)
        for name in options.names or PICTURES:
            if name == "searches":
                draw_searches(options.out, pages, options.browser)
            elif name == "growing":
                growing(options.out / "growing.png", options.browser)
            else:
                {"curve": curve, "plan": plan}[name](options.out / f"{name}.png")


def draw_searches(out: Path, pages: Path, browser: str) -> None:
    """Trees and votes, as pages and by matplotlib."""
    found = searches()
    (out / "search.svg").write_text(drawing(found.pop("search")), encoding="ascii")
    for name, result in found.items():
        background = DARK if name == "tree-dark" else LIGHT
        photograph(result, background, pages / f"{name}.html", out / f"{name}.png", browser)
    plot_tree(found["tree-dark"]).figure.savefig(out / "tree-plot.png", dpi=90)
    plot_answers(found["votes"]).figure.savefig(out / "answers-plot.png", dpi=90)


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
        ".search{color:#111}@media (prefers-color-scheme:dark){.search{color:#ddd}}"
        ".search .edges .chosen{stroke-width:3}.search .edges .kept{opacity:.5}"
        ".search .edges .pruned{opacity:.5;stroke-dasharray:3 3}"
    )
    tree = re.search("<svg (.*?>)(.*?</svg>)", result.to_html(), flags=re.DOTALL)
    assert tree is not None
    return f'<svg class="search" {tree[1]}<style>{style}</style>{tree[2]}\n'


def photograph(result: SearchResult, background: str, page: Path, picture: Path, browser: str) -> None:
    """Writes the page of a result, and what a browser shows of it without the empty part below."""
    text = "#cfd0d0" if background == DARK else "#111111"
    style = f"margin:14px;background:{background};color:{text}"
    page.write_text(f'<!doctype html><body style="{style}">{result.to_html()}</body>', encoding="ascii")
    shoot(page.resolve().as_uri(), background, picture, browser)


def shoot(address: str, background: str, picture: Path, browser: str) -> None:
    """What a browser shows once everything of a page is loaded, without the empty part below."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-sync", "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
            f"--user-data-dir={profile}", f"--screenshot={picture.resolve()}", f"--window-size={WIDTH},1400",
            "--timeout=300000", address,
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=400)
    _crop(picture, background)


def _crop(picture: Path, background: str, margin: int = 14) -> None:
    from PIL import Image, ImageChops

    image = Image.open(picture).convert("RGB")
    box = ImageChops.difference(image, Image.new("RGB", image.size, background)).getbbox()
    bottom = image.height if box is None else min(image.height, box[3] + margin)
    image.crop((0, 0, image.width, bottom)).save(picture, optimize=True)


class Halting(isc.Generator):
    """A generator that stands still after some calls, so that a search can be looked at."""

    def __init__(self, inside: isc.Generator, calls: int) -> None:
        self.inside, self.calls = inside, calls
        self.stands, self.go_on = threading.Event(), threading.Event()

    def generate(self, requests: Sequence[isc.GenerateRequest]) -> list[list[isc.Step]]:
        """Steps, half a second later, in which the page draws what is there."""
        time.sleep(0.5)
        self.calls -= 1
        if self.calls < 0:
            self.stands.set()
            self.go_on.wait()
        return self.inside.generate(requests)

    def max_sample_tokens(self, request: isc.GenerateRequest) -> int | None:
        """That of the generator inside."""
        return self.inside.max_sample_tokens(request)


def growing(picture: Path, browser: str, calls: int = 5) -> None:
    """The page of a server while it searches.

    The page fills itself in, and holds an image that is sent when the search stands still: a browser takes its picture
    once all images are there.
    """
    import uvicorn
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, Response
    from starlette.routing import Route

    from inferscale.serve import Service
    from inferscale.serve.app import App
    from inferscale.serve.page import make_page

    policy = isc.HFGenerator(*isc.zoo.load("policy-xs"), temperature=1.0, max_new_tokens=160)
    generator = Halting(policy, calls)
    service = Service(generator, prm(), name="policy-xs", strategy="rebase:16")

    async def page(request: Request) -> Response:
        filled = f"at('prompt').value = {json.dumps(isc.zoo.problems('dev')[1].prompt)}; at('ask').requestSubmit();"
        text = make_page(service.name, service.strategy, False, False)
        return HTMLResponse(text.replace("</body>", f'<script>{filled}</script><img src="later" alt=""></body>'))

    async def later(request: Request) -> Response:
        await asyncio.to_thread(generator.stands.wait)
        await asyncio.sleep(2)  # the last event is on its way
        return Response(b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>', media_type="image/svg+xml")

    app = App(service).asgi()
    app.router.routes[:0] = [Route("/picture", page), Route("/later", later)]
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        shoot(f"http://127.0.0.1:{port}/picture", LIGHT, picture, browser)
    finally:
        generator.go_on.set()
        server.should_exit = True
        thread.join()


def plan(picture: Path) -> None:
    """What `isc.plan` tried on forty development problems for two budgets, and chose."""
    found = isc.plan(
        isc.zoo.problems("dev")[:40],
        isc.HFGenerator(*isc.zoo.load("policy-xs"), temperature=1.0, max_new_tokens=160),
        reward_model=isc.HFProcessRewardModel(
            *isc.zoo.load("prm-xs"), good_token="<good>", bad_token="<bad>", reduction="min"
        ),
        budgets=[isc.Budget(flops=1e8), isc.Budget(flops=4e8)],
        most=isc.Budget(flops=3e10),
        strategies=[isc.Greedy(), isc.RepeatedSampling(8), isc.REBASE(4), isc.BeamSearch(1, 4)],
    )
    plot_plan(found).figure.savefig(picture, dpi=90)


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
