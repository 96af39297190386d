"""The page of a server in headless Chromium: typed into, watched while a search grows, and heard by nobody else."""

import threading

import pytest

from inferscale import MCTS, solve
from inferscale.base import Generator
from inferscale.serve import Limits, Service
from inferscale.testing import ToyGenerator, ToyReward
from inferscale.tree import Step
from tests.browser import CHROMIUM, DRIVER, Browser
from tests.serve_tools import serving, until

MISSING = [name for name, place in (("chromium", CHROMIUM), ("chromedriver", DRIVER)) if place is None]
pytestmark = [
    pytest.mark.servers,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} not found: apt-get install chromium-driver"),
]
NODES = "return document.querySelectorAll('#tree .tree .mark').length"


class Halting(Generator):
    """The toy, which answers as many calls as it is told to."""

    def __init__(self):
        self._toy, self._calls = ToyGenerator(), threading.Semaphore(0)

    def go_on(self, calls=1):
        self._calls.release(calls)

    def generate(self, requests):
        assert self._calls.acquire(timeout=120)
        return self._toy.generate(requests)

    def max_sample_tokens(self, request):
        return self._toy.max_sample_tokens(request)


def text(browser, name):
    return browser.run(f"return document.getElementById('{name}').textContent")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_search_is_seen_to_grow(width, dark, monkeypatch):
    monkeypatch.setattr("inferscale.serve.dispatcher._PICTURE_SECONDS", 0.0)
    generator = Halting()
    service = Service(generator, ToyReward(), strategy="sampling:2", limits=Limits(progress_seconds=0.02))
    strategy = MCTS(num_simulations=12)
    result = solve("How many?", strategy, ToyGenerator(), reward_model=ToyReward(), seed=0)
    with serving(service) as server, Browser(width, dark=dark) as browser:
        browser.open(f"http://127.0.0.1:{server.port}/")
        assert text(browser, "state") == ""
        browser.type("#prompt", "How many?")
        browser.type("#strategy", repr(strategy))
        browser.click("#ask button")
        sizes = [0]
        for _ in range(3):
            generator.go_on()
            until(lambda: browser.run(NODES) > sizes[-1], seconds=60)
            sizes.append(browser.run(NODES))
            assert " tokens, " in text(browser, "state")
        assert not text(browser, "bill"), "it was seen to grow once it had ended"
        generator.go_on(1000)
        until(lambda: text(browser, "bill"), seconds=60)
        assert text(browser, "state") == f"answer: {result.answer}"
        assert text(browser, "answer") == result.text
        assert f"{len(result.trajectories)} trajectories" in text(browser, "bill")
        assert f"{result.cost.generated_tokens} sampled, {result.cost.scored_tokens} scored" in text(browser, "bill")
        assert browser.run(NODES) >= sizes[-1]
        # Nothing is wider than the window: what is large scrolls in a frame of its own.
        assert browser.run("return document.documentElement.scrollWidth - innerWidth") <= 0
        light = browser.run("return getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
        assert light is not dark
        assert browser.log("browser") == []  # no error of scripts, nothing that the policy of the page has refused
        assert set(browser.requested()) <= {
            f"http://127.0.0.1:{server.port}/{path}" for path in ("", "v1/completions", "favicon.ico")
        }


def test_what_a_model_writes_is_never_markup_and_a_search_can_be_stopped():
    evil = "<img src=http://192.0.2.1/x onerror=alert(1)><script>document.title = 'taken'</script></textarea>"

    class Evil(Generator):
        def generate(self, requests):
            return [[Step(f"{evil}\nThe answer is {evil}", finish_reason="eos")] * r.n for r in requests]

    with serving(Service(Evil(), strategy="sampling:2")) as server, Browser() as browser:
        browser.open(f"http://127.0.0.1:{server.port}/")
        browser.type("#prompt", evil)
        browser.click("#ask button")
        until(lambda: text(browser, "bill"), seconds=60)
        assert evil in text(browser, "answer")
        assert browser.run("return document.title") == "inferscale"
        assert browser.run("return document.querySelectorAll('img, script').length") == 1  # the page's own
        assert not any("192.0.2.1" in url for url in browser.requested())

    halting = Halting()
    with serving(Service(halting, strategy="sampling:2")) as server, Browser() as browser:
        browser.open(f"http://127.0.0.1:{server.port}/")
        browser.type("#prompt", "How many?")
        browser.click("#ask button")
        browser.click("#stop")
        assert text(browser, "state") == "stopped"
        halting.go_on(1000)
