"""What is lost, changed in silence, or told so that nobody can act on it, when things break.

``python -m benchmarks.faults`` breaks them: processes killed at random moments, full and read-only disks, two writers,
flipped bits and cut files, hostile texts, requests that make no sense, a clock that is set back. ``--small`` tries each
a few times, as a test does. A fault may be borne, or refused by an error that names the file and says what to do; what
counts is printed:

* lost: a result differs after the call was made again (and after ``inferscale repair`` where an error asks for it);
* silent: something else came out, without an error;
* unclear: an error that names no file, no field and no advice, or of a kind that callers do not expect.
"""

from __future__ import annotations

import asyncio
import html.parser
import http.client
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import typer

from inferscale.answers import same_answer
from inferscale.cli.options import printable
from inferscale.cost import Cost
from inferscale.engine import SearchResult, solve, solve_batch
from inferscale.engine.files import RunLockedError
from inferscale.engine.journal import repair_journal
from inferscale.evaluate import load_run, run_evaluation
from inferscale.evaluate.records import repair_run
from inferscale.strategies import REBASE, BeamSearch, RepeatedSampling
from inferscale.testing import ToyGenerator, ToyReward
from inferscale.tree import Problem, Step
from inferscale.viz import render_tree

ROOT = Path(__file__).resolve().parent.parent
PROBLEMS = [Problem(f"How many in box {number}?", str(number % 3), f"box/{number}") for number in range(6)]
BORNE = "borne"


class Slow(ToyGenerator):
    """The toy, which takes long enough to be killed."""

    def __init__(self, pause: float = 0.0) -> None:
        super().__init__()
        self.pause = pause

    def identity(self) -> dict[str, Any]:
        """The same with any pause."""
        return {}

    def generate(self, requests: Any) -> list[list[Step]]:
        """The toy's steps."""
        time.sleep(self.pause)
        return super().generate(requests)


# -- what is done, and what must come out -----------------------------------------------------------------------------


def search(journal: Path, pause: float = 0.0) -> list[Any]:
    """Results of searches with a journal, without their seconds."""
    results = solve_batch(PROBLEMS[:3], REBASE(4), Slow(pause), reward_model=ToyReward(), journal=journal)
    return [without_seconds(result.to_dict()) for result in results]


def evaluate(folder: Path, pause: float = 0.0) -> list[Any]:
    """Records of a run, without their seconds."""
    run_evaluation(PROBLEMS, BeamSearch(2, 2), Slow(pause), folder, reward_model=ToyReward(), batch_size=2)
    return records_of(folder)


def records_of(folder: Path) -> list[Any]:
    """Records of a folder, without their seconds."""
    return [
        {**record, "measured": 0, "result": without_seconds(record["result"])} for record in load_run(folder).records
    ]


def without_seconds(result: dict[str, Any]) -> dict[str, Any]:
    """A result's table without what a clock gives."""
    return {**json.loads(json.dumps(result)), "cost": Cost.from_dict(result["cost"]).without_seconds()}


def outcome(attempt: Callable[[], Any], expected: Any, named: str) -> str:
    """What came of it: as expected, ``"told"`` by an error that names what it is about, or worse."""
    try:
        found = attempt()
    except (ValueError, RuntimeError, OSError) as error:
        return "told" if named in str(error) else "unclear"
    except Exception:
        return "unclear"
    return BORNE if found == expected else "silent"


# -- kills ------------------------------------------------------------------------------------------------------------


def killed(call: str, place: Path, most: int, rng: random.Random) -> None:
    """Runs a call of this module in a process that is killed once it has written so many bytes."""
    wanted = rng.randrange(most)
    process = subprocess.Popen([sys.executable, "-c", f"from benchmarks.faults import *; {call}"], cwd=ROOT)
    while process.poll() is None and (size_of(place) if place.exists() else 0) <= wanted:
        time.sleep(0.001)
    process.kill()
    process.wait()


def size_of(path: Path) -> int:
    """Bytes in a file, or in those of a folder."""
    size = 0
    for file in path.rglob("*") if path.is_dir() else [path]:
        with suppress(FileNotFoundError):  # it may be deleted meanwhile
            size += file.stat().st_size if file.is_file() else 0
    return size


def kills(folder: Path, tries: int, rng: random.Random, work: Callable[..., list[Any]]) -> Iterator[str]:
    """SIGKILL while `work` writes; the same call again ends as if nothing had been."""
    expected = work(folder / "whole")
    most = size_of(folder / "whole")
    for number in range(tries):
        place = folder / f"killed-{number}"
        killed(f"{work.__name__}(Path({str(place)!r}), pause=0.02)", place, most, rng)
        yield outcome(partial(work, place), expected, "\0").replace("silent", "lost")


def serve(where: Path) -> None:
    """Serves the toy, and writes down its port."""
    from inferscale.serve import Service
    from inferscale.serve.app import make_server

    server = make_server(Service(Slow(0.05), ToyReward(), strategy="rebase:4"), "127.0.0.1", 0, 5)

    def tell() -> None:
        while not server.started:
            time.sleep(0.01)
        where.write_text(str(server.servers[0].sockets[0].getsockname()[1]))

    threading.Thread(target=tell, daemon=True).start()
    server.run()


def kill_server(folder: Path, tries: int, rng: random.Random) -> Iterator[str]:
    """SIGKILL of a server with requests; one that is started again gives the answers that the first one would."""
    if not tries:
        return
    answers: list[Any] = []

    def ask(port: int) -> Any:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
            body = json.dumps({"prompt": "How many?", "seed": 3})
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            return json.loads(connection.getresponse().read())["choices"][0]["text"]

    for number in range(tries + 1):
        where = folder / f"port-{number}"
        call = f"from benchmarks.faults import *; serve(Path({str(where)!r}))"
        process = subprocess.Popen([sys.executable, "-c", call], cwd=ROOT, stderr=subprocess.DEVNULL)
        while not (where.exists() and where.read_text()) and process.poll() is None:
            time.sleep(0.01)
        port = int(where.read_text())
        answers.append(ask(port))
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
            connection.request("POST", "/v1/completions", b'{"prompt": "x"}', {"Content-Type": "application/json"})
            time.sleep(0.2 * rng.random())
            process.kill()
            process.wait()
        if number:
            yield BORNE if answers[-1] == answers[0] else "lost"


def noted(place: Path) -> Slow:
    """The toy in an actor, which leaves the number of its process there."""
    (place / str(os.getpid())).touch()
    return Slow(0.02)


def kill_actors(folder: Path, tries: int, rng: random.Random) -> Iterator[str]:
    """SIGKILL of an actor of Ray at a random moment; the call ends as if nothing had been. Nothing without Ray."""
    if not tries or find_spec("ray") is None:
        return
    import ray

    from inferscale.ray import solve_dataset

    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    problems = [Problem(f"How many in crate {number}?", str(number % 3)) for number in range(40)]
    straight = solve_batch(problems, REBASE(4), Slow(), reward_model=ToyReward())
    expected = [without_seconds(result.to_dict()) for result in straight]

    def solve_all(place: Path) -> list[Any]:
        results = solve_dataset(
            problems,
            REBASE(4),
            partial(noted, place),
            ToyReward,
            num_actors=2,
            batch_size=4,
            storage=place / "journals",
        )
        return [without_seconds(result.to_dict()) for result in results]

    for number in range(tries):
        place = folder / f"actors-{number}"
        (place / "journals").mkdir(parents=True)
        found: list[str] = []
        wanted, attempt = rng.randrange(100_000), partial(solve_all, place)
        thread = threading.Thread(target=lambda: found.append(outcome(attempt, expected, "\0")))  # noqa: B023
        thread.start()
        while thread.is_alive() and size_of(place / "journals") <= wanted:
            time.sleep(0.005)
        actors = [int(path.name) for path in place.iterdir() if path.name.isdigit()]
        if thread.is_alive() and actors:
            with suppress(ProcessLookupError):
                os.kill(rng.choice(actors), signal.SIGKILL)
        thread.join()
        yield found[0].replace("silent", "lost")
    ray.shutdown()


# -- disks ------------------------------------------------------------------------------------------------------------


@contextmanager
def no_larger_files(most: int) -> Iterator[None]:
    """No file of this process gets larger, as on a full disk."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder that this process may not write to, also where it is root."""
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


WORK: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "journal": ("journal", search),
    "run": ("run", evaluate),
    "result": ("result.json", lambda path: without_seconds(SearchResult.load(saved(path)).to_dict())),
}
"""For each kind of file its name, and the work that writes it."""


def saved(path: Path) -> Path:
    """A result that is saved there."""
    return solve(PROBLEMS[0], REBASE(4), ToyGenerator(), reward_model=ToyReward()).save(path)


def full_disks(folder: Path, tries: int, rng: random.Random) -> Iterator[str]:
    """A disk that is full at some size, for each kind of file; with room again, the same call ends well."""
    for kind, (name, work) in WORK.items():
        whole = folder / f"whole-{kind}"
        whole.mkdir()
        expected = work(whole / name)
        for number in range(tries):
            place = folder / f"full-{kind}-{number}"
            place.mkdir()
            with no_larger_files(1 + size_of(whole) * number // tries // (3 if kind == "run" else 1)):
                found = outcome(lambda: work(place / name), expected, name)  # noqa: B023
            again = outcome(lambda: work(place / name), expected, name)  # noqa: B023
            yield found if found not in ("told", BORNE) else BORNE if again == BORNE else "lost"


def no_access(folder: Path, tries: int, rng: random.Random) -> Iterator[str]:
    """A folder that cannot be written to."""
    for kind, (name, work) in WORK.items():
        for number in range(tries):
            place = folder / f"shut-{kind}-{number}"
            place.mkdir()
            with read_only(place):
                yield outcome(lambda: work(place / name), None, name).replace("told", BORNE)  # noqa: B023


def two_writers(folder: Path, tries: int, rng: random.Random) -> Iterator[str]:
    """A second writer is refused, and the first one ends well."""
    for number in range(tries):
        for name, work in (("journal", search), ("run", evaluate)):
            place = folder / f"{name}-{number}"
            expected = work(folder / f"alone-{name}-{number}")
            first: list[Any] = []
            thread = threading.Thread(target=lambda: first.append(work(place, pause=0.01)))  # noqa: B023
            thread.start()
            while thread.is_alive() and not size_of(place) if place.exists() else thread.is_alive():
                time.sleep(0.001)
            try:
                second = work(place)
            except RunLockedError as error:
                told = str(place.name) in str(error)
            else:
                told = not thread.is_alive() or second == expected
            thread.join()
            yield "unclear" if not told else BORNE if first == [expected] else "lost"


# -- bits -------------------------------------------------------------------------------------------------------------


def flipped(data: bytes, rng: random.Random) -> bytes:
    """One bit is another one."""
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    """The end is gone."""
    return data[: rng.randrange(len(data))]


def damaged_journals(folder: Path, tries: int, rng: random.Random, harm: Callable[..., bytes]) -> Iterator[str]:
    """A damaged journal is told, kept as it is, and repaired; or its search ends as it should."""
    path = folder / "journal"
    expected = search(path)
    whole = path.read_bytes()
    for _ in range(tries):
        bad = harm(whole, rng)
        path.write_bytes(bad)
        found = outcome(lambda: search(path), expected, str(path))
        if found == "told":
            if path.read_bytes() != bad:
                found = "lost"
            else:
                mended = outcome(lambda: repair_journal(path) and search(path), expected, str(path))
                header_is_gone = mended == "told"  # whose answers these are cannot be told: the file stays
                found = BORNE if mended == BORNE or header_is_gone else mended
        yield found


def damaged_runs(folder: Path, tries: int, rng: random.Random, harm: Callable[..., bytes]) -> Iterator[str]:
    """A damaged folder is told and repaired; a torn end is a run that is not complete."""
    place = folder / "run"
    evaluate(place)
    expected = records_of(place)
    files = {path: path.read_bytes() for path in (place / "run.json", place / "records.jsonl")}
    for _ in range(tries):
        for path, data in files.items():
            path.write_bytes(data)
        victim = rng.choices(list(files), [len(data) for data in files.values()])[0]
        victim.write_bytes(harm(files[victim], rng))
        torn = harm is cut and victim.name == "records.jsonl"

        def read(torn: bool = torn) -> list[Any]:
            found = records_of(place)
            complete = load_run(place).is_complete
            return expected if torn and found == expected[: len(found)] and not complete else found

        found = outcome(read, expected, victim.name)
        if found == "told" and victim.name == "records.jsonl":
            mended = outcome(lambda: (repair_run(place), evaluate(place))[1], expected, victim.name)
            found = BORNE if mended == BORNE else "lost"
        yield BORNE if found == "told" else found  # without its description a run says so, and its records stay


def damaged_results(folder: Path, tries: int, rng: random.Random, harm: Callable[..., bytes]) -> Iterator[str]:
    """A damaged result is told."""
    path = saved(folder / "result.json")
    expected, whole = SearchResult.load(path).to_dict(), path.read_bytes()
    for _ in range(tries):
        path.write_bytes(harm(whole, rng))
        yield outcome(lambda: SearchResult.load(path).to_dict(), expected, "result.json").replace("told", BORNE)


# -- texts ------------------------------------------------------------------------------------------------------------

PIECES = (
    "\x1b[2J", "\x1b]0;x\x07", "\x9b31m", "\u202e", "\u2066", "\ud800", "\udfff", "\x00", "\r", "\b", "\x7f", "\u2028",
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</svg><iframe src=//x>", "</title>", "<!--", "]]>",
    "&lt;b&gt;", "javascript:alert(1)", "=cmd|' /C calc'!A0", "@SUM(1)", '{"format": "x"}', '", "crc32": "', "\\boxed{",
    "}" * 40, "{" * 40, "$" * 9, "The answer is ", "####", "\n\n\n", "e\u0301" * 30, "\U0001f468\u200d\U0001f469",
    "a" * 3000, "9" * 400, "1e999", "nan", "-0", "1/0", "<think>", "</think>", "<|im_end|>", "%s%n", "${jndi:x}",
    "../../etc/passwd", "'; --", "\ufeff",
)  # fmt: skip
"""Of what hostile texts are made."""

COMMANDING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Markup(html.parser.HTMLParser):
    """Notes what a page could do beside being read."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.acts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Scripts, frames, handlers and addresses act."""
        if tag in ("script", "iframe", "object", "embed", "img", "link", "form", "base", "meta"):
            self.acts.append(tag)
        self.acts += [name for name, _ in attrs if name.startswith("on") or name in ("href", "src", "action")]


def hostile_texts(folder: Path, tries: int, rng: random.Random) -> Iterator[str]:
    """Texts of models that try to command terminals, pages and files, through everything that shows or keeps them."""
    for number in range(tries):
        text = "".join(rng.choices(PIECES, k=rng.randint(1, 6)))

        class Hostile(ToyGenerator):
            def generate(self, requests: Any, text: str = text) -> list[list[Step]]:
                return [[Step(f"{text}\nThe answer is {text}", finish_reason="eos")] * r.n for r in requests]

            def identity(self) -> dict[str, Any]:
                return {}

        def check(text: str = text, number: int = number, kind: type[ToyGenerator] = Hostile) -> bool:
            generator = kind()
            problem = Problem(re.sub("[\ud800-\udfff]", "?", text) or "x", answer=text)
            path = folder / f"hostile-{number}"
            result = solve(problem, RepeatedSampling(2), generator, reward_model=ToyReward(), journal=path)
            again = solve(problem, RepeatedSampling(2), generator, reward_model=ToyReward(), journal=path)
            kept = SearchResult.load(result.save(folder / "result.json"))
            same_answer(text, str(result.answer))
            page, tree = result.to_html(), render_tree(result.root)
            return (
                not COMMANDING.search(tree)
                and not COMMANDING.search(printable(result.text))
                and page.isascii()
                and not Markup(page).acts
                and kept.to_dict() == result.to_dict()
                and again.trajectories == result.trajectories
            )

        yield outcome(check, True, "\0")


# -- requests ---------------------------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**70, 1e308, "", "x", "rebase:4", "REBASE(width=2)", "\ud800", [], [[]], ["a", "b"], {},
    {"a": 1}, [{"role": "user", "content": "How many?"}], [{"role": "system"}], {"strategy": "beam:4"}, "9" * 400,
    [None], "all",
)  # fmt: skip
NAMES = (
    "prompt", "messages", "model", "n", "stream", "seed", "stop", "max_tokens", "temperature", "inferscale", "logprobs",
    "tools", "stream_options", "user", "best_of", "echo", "suffix", "response_format", "logit_bias", "x",
)  # fmt: skip


def fuzzed_requests(folder: Path, tries: int, rng: random.Random) -> Iterator[str]:
    """Requests of all kinds to a server: each gets an answer in JSON, none an error of the server's own."""
    from inferscale.cost import Budget
    from inferscale.serve import Limits, Service
    from inferscale.serve.app import App

    limits = Limits(max_size=4, max_prompts=4, budget=Budget(tokens=200, seconds=5))
    served = App(Service(ToyGenerator(), ToyReward(), strategy="sampling:2", limits=limits))
    app = served.asgi()

    async def ask() -> str:
        path = rng.choice(
            ["/v1/completions"] * 4 + ["/v1/chat/completions"] * 4 + ["/", "/v1/models", "/v1/models/x", "/no"]
        )
        valid = {"messages": [{"role": "user", "content": "?"}]} if "chat" in path else {"prompt": "?", "seed": 1}
        odd = {name: rng.choice(VALUES) for name in rng.sample(NAMES, rng.randint(0, 5))}
        body = json.dumps(odd if rng.random() < 0.4 else {**valid, **odd} if rng.random() < 0.5 else valid).encode()
        if rng.random() < 0.3:
            body = flipped(body, rng) if rng.random() < 0.5 else rng.randbytes(rng.randint(0, 60))
        headers = [(b"host", rng.choice([b"127.0.0.1", b"localhost:80"] * 4 + [b"evil", b"\xff"])),
                   (b"content-type", rng.choice([b"application/json"] * 9 + [b"text/plain", b"\xff"])),
                   (b"content-length", rng.choice([str(len(body)).encode()] * 9 + [b"-1", b"9" * 30]))]  # fmt: skip
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http",
                 "method": rng.choice(["POST"] * 6 + ["GET", "PUT", "DELETE", "X"]), "path": path, "root_path": "",
                 "query_string": b"", "raw_path": path.encode(), "headers": headers,
                 "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1)}  # fmt: skip
        pieces, status = bytearray(), 0
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Any:
            message = next(messages, None)
            if message is None:
                await asyncio.Event().wait()
            return message

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            pieces.extend(message.get("body", b""))

        await asyncio.wait_for(app(scope, receive, send), 30)
        if status >= 500:
            return "unclear"
        if status >= 400 and status not in (404, 405):
            return BORNE if json.loads(pieces)["error"]["message"] else "unclear"
        return BORNE

    async def all_of_them() -> list[str]:
        found = []
        for _ in range(tries):
            try:
                found.append(await ask())
            except Exception:
                found.append("unclear")
        return found

    yield from asyncio.run(all_of_them())
    served.dispatcher.close()


def clock_set_back(folder: Path, tries: int, rng: random.Random) -> Iterator[str]:
    """The clock of the wall jumps to and fro while searches and runs go on."""
    expected = search(folder / "straight"), evaluate(folder / "run")
    real = time.time
    for number in range(tries):

        def again(number: int = number) -> Any:
            return search(folder / f"back-{number}"), evaluate(folder / f"run-{number}")

        with mock.patch("time.time", side_effect=lambda: real() - rng.randrange(10**7)):
            yield outcome(again, expected, "\0")


# -- the matrix -------------------------------------------------------------------------------------------------------

Trial = Callable[[Path, int, random.Random], Iterator[str]]

MATRIX: dict[str, tuple[Trial, int, int]] = {
    "search killed (SIGKILL), journal": (partial(kills, work=search), 10, 1),
    "evaluation killed (SIGKILL), folder": (partial(kills, work=evaluate), 10, 0),
    "server killed (SIGKILL)": (kill_server, 3, 0),
    "actor of Ray killed (SIGKILL), journals": (kill_actors, 5, 0),
    "disk full at a size: journal, folder, result": (full_disks, 8, 2),
    "folder that cannot be written to": (no_access, 2, 1),
    "two writers: journal, folder": (two_writers, 5, 1),
    "bit flipped in a journal": (partial(damaged_journals, harm=flipped), 1000, 30),
    "journal cut": (partial(damaged_journals, harm=cut), 1000, 10),
    "bit flipped in a folder": (partial(damaged_runs, harm=flipped), 1000, 15),
    "folder's file cut": (partial(damaged_runs, harm=cut), 1000, 10),
    "bit flipped in a result": (partial(damaged_results, harm=flipped), 1000, 30),
    "result cut": (partial(damaged_results, harm=cut), 1000, 10),
    "hostile texts through every output": (hostile_texts, 500, 30),
    "fuzzed requests to serve": (fuzzed_requests, 10_000, 150),
    "clock set back": (clock_set_back, 20, 1),
}
"""For each fault how it is made, and how often: in all, and by a test."""


def counted(fault: str, small: bool, seed: int = 0) -> Counter[str]:
    """How often each outcome came of a fault."""
    trial, many, few = MATRIX[fault]
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        return Counter(trial(Path(folder), few if small else many, random.Random(seed)))


def main(small: Annotated[bool, typer.Option(help="Try each fault a few times.")] = False) -> None:
    """Prints the matrix as a table."""
    print(f"| {'fault':<46} | tried | lost | silent | unclear | seconds |\n|{'-' * 48}|---:|---:|---:|---:|---:|")
    for fault in MATRIX:
        started = time.perf_counter()
        found = counted(fault, small)
        told = [found[name] for name in ("lost", "silent", "unclear")]
        unknown = found.keys() - {BORNE, "told", "lost", "silent", "unclear"}
        assert not unknown, unknown
        if tried := found.total():
            seconds = time.perf_counter() - started
            print(f"| {fault:<46} | {tried:,} | " + " | ".join(map(str, told)) + f" | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    from benchmarks.faults import main as run  # classes have the names that killed processes know them by

    typer.run(run)
