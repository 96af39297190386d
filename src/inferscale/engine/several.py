"""Several generators in one search: requests go to the one that they name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from typing import Any

from inferscale.base import Generator, Sampling, Ticket, Traffic, check_steps
from inferscale.flow import GenerateRequest
from inferscale.tree import Node, Step


class GeneratorGroup(Generator):
    """Generators by name, as ``solve(..., generator={"small": a, "large": b})`` is given them.

    A node is continued by the generator that sampled it, and a root by the first, unless the request names another.
    Ids of one vocabulary mean nothing in another, so only a root can be given to any of them: text of one model becomes
    another's by ``expand([root], forced=text, generator=...)``.

    Attributes:
        generators: The generators by name.
    """

    def __init__(self, generators: Mapping[str, Generator]) -> None:
        """Checks names and generators.

        Raises:
            TypeError: If a name is no text, or a generator is none.
            ValueError: If there are none, or one has the name of another line on the bill.
        """
        self.generators = dict(generators)
        for name, generator in self.generators.items():
            if not isinstance(name, str) or not isinstance(generator, Generator):
                raise TypeError(f"generator={{{name!r}: {generator!r:.80}}}: give generators by their names")
        if not self.generators or not {"ask", "thinking"}.isdisjoint(self.generators):
            raise ValueError(
                f"generator={{...}} has the names {list(self.generators)}: give at least one, and none called 'ask' or "
                "'thinking', which are lines on the bill"
            )
        each = self.generators.values()
        self.concurrent = all(generator.concurrent for generator in each)
        self.takes_messages = all(generator.takes_messages for generator in each)
        markers = {generator.thinking for generator in each}
        self.thinking = markers.pop() if len(markers) == 1 else None

    def named(self, request: GenerateRequest) -> GenerateRequest:
        """Return the request with the name of the generator that answers it.

        Raises:
            ValueError: If there is none of its name, or another one sampled the node.
        """
        step = request.node.step
        own = next(iter(self.generators)) if step is None else step.generator
        name = request.generator or own
        if name is None or name not in self.generators:
            raise ValueError(f"a request names the generator {name!r}: choose one of {', '.join(self.generators)}")
        if step is not None and name != own:
            raise ValueError(
                f"{request.node!r} was sampled by {own!r} and is to be continued by {name!r}, whose tokens are others: "
                f"write expand([root], forced=node.text, generator={name!r})"
            )
        return request if request.generator == name else replace(request, generator=name)

    def serving(self, request: GenerateRequest) -> Generator:
        """Return the generator that answers the request."""
        return self.generators[self.named(request).generator or ""]

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
        """Steps for each request, in order; one call of each generator that is asked."""
        named = [self.named(request) for request in requests]
        answers: dict[int, list[Step]] = {}
        for name, generator in self.generators.items():
            places = [place for place, request in enumerate(named) if request.generator == name]
            if places:
                own = [named[place] for place in places]
                groups = generator.generate(own)
                check_steps(own, groups, type(generator).__name__)
                answers |= {place: [_by(name, s) for s in steps] for place, steps in zip(places, groups, strict=True)}
        return [answers[place] for place in range(len(named))]

    def open(self) -> Sampling:
        """A session of each generator, used as one."""
        return _GroupSampling(self)

    def max_sample_tokens(self, request: GenerateRequest) -> int | None:
        """That of the generator which answers the request."""
        return self.serving(request).max_sample_tokens(self.named(request))

    def traffic(self, requests: Sequence[GenerateRequest], answers: Sequence[Sequence[Step]]) -> Traffic | None:
        """What all of them move together; ``None`` if one cannot tell."""
        weights = cache = 0
        if not requests and any(generator.traffic((), ()) is None for generator in self.generators.values()):
            return None
        for name in dict.fromkeys(request.generator for request in requests):
            own = [place for place, request in enumerate(requests) if request.generator == name]
            serving = self.serving(requests[own[0]])
            moved = serving.traffic([requests[place] for place in own], [answers[place] for place in own])
            if moved is None:
                return None
            weights, cache = weights + moved.weights, cache + moved.cache
        return Traffic(weights, cache)

    def release(self, root: Node) -> None:
        """Tells all of them."""
        for generator in self.generators.values():
            generator.release(root)


class _GroupSampling(Sampling):
    """The sessions of several generators as one."""

    def __init__(self, group: GeneratorGroup) -> None:
        self._group = group
        self._sessions = {name: generator.open() for name, generator in group.generators.items()}
        self._names: dict[Ticket, str] = {}
        self._open: Counter[str] = Counter()  # samples that have not been handed over
        self._halted = False

    @property
    def calls(self) -> Collection[Future[Any]]:
        """Those of the sessions that are waited for, unless one of them samples in `collect` itself."""
        asked = [session.calls for name, session in self._sessions.items() if self._open[name]]
        return [call for calls in asked for call in calls] if self._halted or all(asked) else []

    def begin(self) -> None:
        """Begins what was submitted in threads."""
        for session in self._sessions.values():
            session.begin()

    def submit(self, request: GenerateRequest) -> Ticket:
        """Hands the request to the generator that it names."""
        named = self._group.named(request)
        name = named.generator or ""
        ticket = self._sessions[name].submit(named)
        self._names[ticket] = name
        self._open[name] += named.n
        return ticket

    def collect(self) -> list[tuple[Ticket, int, Step]]:
        """The samples that have ended in each session with open ones; those in threads are not waited for by others.

        What has ended is handed over before an error of another session is raised, by the next call.
        """
        self.begin()
        wait(self.calls, return_when=FIRST_COMPLETED)
        ended: list[tuple[Ticket, int, Step]] = []
        for name, session in self._sessions.items():
            samples_itself = not (session.calls or self._halted)
            if self._open[name] and (samples_itself or any(call.done() for call in session.calls)):
                session.on_tokens = self.on_tokens
                try:
                    own = session.collect()
                except Exception:
                    if not ended:
                        raise
                    break
                self._open[name] -= len(own)
                ended += [(ticket, index, _by(name, step)) for ticket, index, step in own]
        return ended

    def cancel(self, ticket: Ticket) -> None:
        """Ends the samples of a request in its session."""
        self._sessions[self._names[ticket]].cancel(ticket)

    def halt(self) -> None:
        """Begins nothing more."""
        self._halted = True
        for session in self._sessions.values():
            session.halt()

    def close(self) -> None:
        """Closes all sessions."""
        for session in self._sessions.values():
            session.close()


def _by(name: str, step: Step) -> Step:
    """The step, marked with who sampled it."""
    return replace(step, generator=name) if isinstance(step, Step) else step


def assigned(generator: Generator, request: GenerateRequest) -> GenerateRequest:
    """Return the request with the name of the generator that answers it, if there are several.

    Raises:
        ValueError: If it names a generator where there is one, or gives a temperature to one that takes none.
    """
    serving = generator
    if isinstance(generator, GeneratorGroup):
        request, serving = generator.named(request), generator.serving(request)
    elif request.generator is not None:
        raise ValueError(
            f"the search asks for the generator {request.generator!r}, and one without a name was given: "
            f"solve(..., generator={{{request.generator!r}: ...}})"
        )
    if request.temperature is not None and not serving.takes_temperature:
        name = type(serving).__name__
        raise ValueError(
            f"the search samples at temperature={request.temperature}, and {name} takes no temperature from requests: "
            f"set takes_temperature = True on a {name} that samples at `request.temperature`, and give a "
            "sampler of your own a method at(temperature)"
        )
    return request
