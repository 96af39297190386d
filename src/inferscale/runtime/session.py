"""Running a model: prefixes once, and batches in pieces that fit into memory.

A `Session` runs one model. `Session.prefill` reads prompts into `Piece`s; a `RowBatch` holds rows that continue
them; `Session.extend` reads further tokens, any number for each row; `RowBatch.select` is the one operation for
branching, pruning, reordering and compacting. `checked_session` gives one only for a model whose own forward it
matches. `run_halving` halves a batch until it fits.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inferscale._compat import cache_argument
from inferscale.flops.calibration import unwatched

from . import kv as attention
from .kv import (
    KV,
    Buffers,
    FirstPlan,
    JointPlan,
    Piece,
    Plan,
    PromptPlan,
    RowBatch,
    RowPlan,
    Spread,
    UnsupportedModelError,
    attending,
    by_device,
    over,
)
from .loading import evaluating
from .own_attention import WANTS_MASK, own_attention
from .plain import (
    FAILURES,
    changing_rope,
    difference,
    kind_of,
    perturbed,
    text_config,
    used_ranges,
    whole_logits,
)
from .states import States
from .step import Stepper

T = TypeVar("T")

_PREFILL_TOKENS = 8192  # packed prompt tokens in one forward
_LEAST_COMMON = 32  # tokens of a common beginning that are read apart

_covered: dict[tuple[Any, int], bool] = {}  # by the kind of the model and the range that is passed
_locks: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_passed: WeakKeyDictionary[Any, tuple[Any, ...]] = WeakKeyDictionary()  # how a model was when its probe passed


class Session:
    """Runs one unmodified model on prompts and rows.

    Attributes:
        model: The model.
        tokens: Tokens forwarded so far.
        buffers: Memory for rows.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.tokens = 0
        self.buffers = Buffers()
        self.stepper = Stepper(model)
        self._is_spread = len({weight.device for weight in model.parameters()}) > 1
        self._has_fixed_steps = attention.fixed_shapes(model.device) and not self._is_spread
        self._parameters = inspect.signature(model.forward).parameters
        self._cache_argument = cache_argument(model)
        layers = getattr(text_config(model.config), "num_hidden_layers", None)
        if layers is None:
            raise UnsupportedModelError(f"the configuration of {type(model).__name__} names no num_hidden_layers")
        self._layers = int(layers)
        # The configurations that the model's parts look their attention up in.
        configs = {id(c): c for module in model.modules() if (c := getattr(module, "config", None)) is not None}
        self._configs = [config for config in configs.values() if hasattr(config, "_attn_implementation")]
        self._own_attention = own_attention(model)
        self._wants_mask = any(type(layer).__name__ in WANTS_MASK for layer, _ in self._own_attention)
        self._ranges = used_ranges(model.config)
        self._lock = _locks.setdefault(model, threading.RLock())
        # What a first token has shown: which layers attend, those of each device together, and the kind of keys, values
        # and states of one row.
        self._homes: list[list[int]] = [[]]
        self._like: tuple[KV, States] | None = None
        self._goes_on = True  # several tokens can be read in one forward after others

    @property
    def has_states(self) -> bool:
        """True if layers have recurrent or convolution states: what was read cannot be taken back."""
        return bool(self._known[1])

    @property
    def spare_bytes(self) -> int:
        """Size of the memory that waits for rows, and of what the steps keep."""
        return self.buffers.bytes + self.stepper.bytes

    def clear(self) -> None:
        """Lets go of that memory."""
        self.buffers.clear()
        self.stepper.clear()

    def covers(self, length: int) -> bool:
        """True if sequences of this length are computed as the model computes them.

        Windows, chunks, selections of keys and changing rotary embeddings show only in sequences that pass them: then a
        check is made with such, once for each kind of model.
        """
        passed = max((r for r in self._ranges if r < length), default=0)
        if not passed:
            return True
        kind = (kind_of(self.model) or (id(self),), passed)
        if kind not in _covered:
            tokens, rope = self.tokens, changing_rope(self.model.config)
            try:
                if rope is not None and rope[1] <= passed:
                    raise UnsupportedModelError("the angles of a row depend on its length")
                with self._lock, evaluating(self.model), torch.inference_mode(), perturbed(self.model):
                    unwatched(lambda: check_session(self, passed))
                _covered[kind] = True
            except UnsupportedModelError:
                _covered[kind] = False
            self.tokens = tokens
        return _covered[kind]

    def follow_lengths(self, reason: Exception) -> bool:
        """Has steps follow the rows' lengths as on a CPU, where those of fixed shapes fail.

        Returns:
            False if that changes nothing.
        """
        if not self._has_fixed_steps:
            return False
        self._has_fixed_steps = False
        name = type(self.model).__name__
        warnings.warn(f"the decode steps of {name} follow the rows' lengths, slower: {reason}", stacklevel=6)
        return True

    def read_one_by_one(self) -> bool:
        """Has rows that hold tokens read further ones in forwards of one token each.

        Returns:
            False if that changes nothing: the model has no states, or could not be run.
        """
        self._goes_on = self._like is None or not self.has_states
        return not self._goes_on

    @property
    def _known(self) -> tuple[KV, States]:
        if self._like is None:
            read = self.tokens

            def read_token() -> tuple[KV, States]:
                plan = FirstPlan(range(self._layers))
                ids = torch.zeros(1, 1, dtype=torch.long, device=self.model.device)
                self._forward(plan, ids, np.zeros(1, dtype=int), None)
                states = plan.states_after()
                homes: dict[torch.device, list[int]] = {}
                for layer in sorted(plan.keys):
                    homes.setdefault(plan.keys[layer].device, []).append(layer)
                self._homes = list(homes.values()) or [[]]
                if not states and len(plan.attended) != self._layers:
                    said = f"{len(plan.attended)} of {self._layers} layers attend through AttentionInterface"
                    raise UnsupportedModelError(said)
                if plan.keys and not self._own_attention and "position_ids" not in self._parameters:
                    raise UnsupportedModelError(f"{type(self.model).__name__} takes no position_ids")
                if not plan.keys:
                    return torch.zeros(0, 2, 1, 1, 1, device=self.model.device), states
                # room for the most heads of a layer, and the widest
                heads, width = (max(key.shape[axis] for key in plan.keys.values()) for axis in (0, 2))
                like = [plan.keys[own[0]].new_zeros(len(own), 2, heads, 1, width) for own in self._homes]
                return Spread(tuple(like)) if len(like) > 1 else like[0], states

            self._like = unwatched(read_token)
            self.tokens = read
        return self._like

    def _together(self, lengths: Sequence[int]) -> list[list[int]]:
        """Places of what is read in one forward: of any lengths, or of one if padding would change states."""
        groups: dict[int, list[int]] = {}
        for place, length in enumerate(lengths):
            groups.setdefault(length if self.has_states else 0, []).append(place)
        return list(groups.values())

    def _readings(self, lengths: Sequence[int]) -> list[tuple[list[int], int, int]]:
        """The forwards that read so many tokens of each row: the rows, and from which of their tokens to which."""
        if self.has_states and not self._goes_on:
            steps = range(max(lengths))
            return [([row for row, length in enumerate(lengths) if length > i], i, i + 1) for i in steps]
        return [(rows, 0, max(lengths[row] for row in rows)) for rows in self._together(lengths)]

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Piece]:
        """The prompts with their keys and values; they are packed, and what they all begin with is read once."""
        common, prefix = 0, Piece()
        if len(prompts) > 1 and self._goes_on:
            first, last = min(map(tuple, prompts)), max(map(tuple, prompts))  # all begin with what these two begin with
            common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        if common >= _LEAST_COMMON:  # else it is not worth a forward of its own
            [prefix] = self._prefill([prompts[0][:common]], prefix)
        endings = [ids[len(prefix) :] for ids in prompts]
        pieces: dict[int, Piece] = {}
        for places in self._together([len(ids) for ids in endings]):
            chunks: list[list[int]] = [[]]
            for place in places:
                if chunks[-1] and sum(len(endings[i]) for i in (*chunks[-1], place)) > _PREFILL_TOKENS:
                    chunks.append([])
                chunks[-1].append(place)
            for chunk in chunks:
                pieces.update(zip(chunk, self._prefill([endings[i] for i in chunk], prefix), strict=True))
        return [pieces[place] for place in range(len(prompts))]

    def _prefill(self, endings: Sequence[Sequence[int]], prefix: Piece) -> list[Piece]:
        """The pieces of `prefix` followed by each of `endings`, in one forward."""
        filled = [ids for ids in endings if ids]
        if not filled:
            return [prefix for _ in endings]
        one, like = self._known
        most, lengths = (by_device(one)[0].shape[2], by_device(one)[0].shape[4]), [len(ids) for ids in filled]
        plans = [PromptPlan(lengths, own, prefix.on(device), most) for device, own in enumerate(self._homes)]
        plan = plans[0] if len(plans) == 1 else JointPlan(plans)
        if prefix.states:
            plan.states = like.of_rows([prefix.states] * len(filled))
        packed = torch.tensor([i for ids in filled for i in ids], device=self.model.device)
        positions = np.concatenate([np.arange(len(ids)) for ids in filled]) + len(prefix)
        rows = len(filled) if self.has_states else 1
        self._forward(plan, packed.view(rows, -1), positions, np.arange(1, rows + 1) * (len(packed) // rows) - 1)
        kvs, states = [own.keys_and_values(self.model.device) for own in plans], plan.states_after()
        new = iter(
            Piece((*prefix.ids, *ids), kv[0] if len(kv) == 1 else Spread(kv), states=states.of_row(row))
            for row, (ids, kv) in enumerate(zip(filled, zip(*kvs, strict=True), strict=True))
        )
        return [next(new) if ids else prefix for ids in endings]

    def open(self, prompts: Sequence[Piece], capacity: int) -> RowBatch:
        """Rows without private tokens, one for each of `prompts`, with room for `capacity` tokens."""
        like, states = self._known
        kv = self.buffers.take(over(lambda kv: kv[:, :, None], like), len(prompts), capacity)
        held = states.of_rows([prompt.states or () for prompt in prompts])
        return RowBatch(prompts, kv, [0] * len(prompts), self.buffers, held)

    def extend(
        self, batch: RowBatch, tokens: Sequence[Sequence[int]], marks: Sequence[Sequence[int]] | None = None
    ) -> Tensor:
        """Reads `tokens` of each row; logits `[marks, outputs]` at the marked ones.

        Args:
            batch: Rows.
            tokens: At least one id for each row.
            marks: For each row the places in its `tokens` to give logits for; by default the last one.
        """
        marks = [[len(ids) - 1] for ids in tokens] if marks is None else marks
        logits, order = list[Tensor](), list[tuple[int, int]]()  # the row of each, and its place among the row's marks
        for rows, start, stop in self._readings([len(ids) for ids in tokens]):
            read = [tokens[row][start:stop] for row in rows]
            counts, kept, first = np.array([len(ids) for ids in read]), list[int](), 0
            for row, count in zip(rows, counts.tolist(), strict=True):
                inside = [(place, mark) for place, mark in enumerate(marks[row]) if start <= mark < stop]
                kept += [first + mark - start for _, mark in inside]
                order += [(row, place) for place, _ in inside]
                first += count
            ids = torch.tensor([i for own in read for i in own], device=self.model.device)
            logits.append(self._extend(batch, np.array(rows), ids, counts, np.array(kept, dtype=int)))
        if len(logits) == 1:
            return logits[0]
        index = torch.tensor(sorted(range(len(order)), key=order.__getitem__), device=logits[0].device)
        return torch.cat(logits)[index]

    def step(self, batch: RowBatch, rows: Sequence[int] | NDArray[np.int64], tokens: Tensor) -> Tensor:
        """One more token `[rows]` in each of `rows`, ascending; logits `[rows, vocabulary]`."""
        tokens = tokens.to(self.model.device)
        if self._has_fixed_steps and not self.has_states:
            return self._fixed_step(batch, rows, tokens)
        one_each = np.ones(len(rows), dtype=np.int64)
        return self._extend(batch, np.asarray(rows), tokens, one_each, None)

    def _fixed_step(self, batch: RowBatch, rows: Sequence[int] | NDArray[np.int64], tokens: Tensor) -> Tensor:
        batch.reserve(int(batch.lengths.max()) + 1)
        plan = self.stepper.plan(batch, self._homes[0])

        def forward() -> Tensor:
            plan.begin()
            options: dict[str, Any] = {self._cache_argument: plan}
            if "position_ids" in self._parameters:
                options["position_ids"] = plan.positions[None]
            if self._wants_mask:
                options["attention_mask"] = torch.zeros(1, 1, 1, 1, device=plan.positions.device)
            logits: Tensor = self.model(input_ids=plan.tokens[None], use_cache=True, **options).logits[0]
            return logits

        plan.ready(rows, tokens)
        with self._lock, attending(plan, self._configs, self._own_attention):
            logits = plan.end(self.stepper.run(plan, forward))
        self.tokens += len(rows)
        batch.lengths[np.asarray(rows)] += 1
        return logits

    def _extend(
        self,
        batch: RowBatch,
        rows: NDArray[np.int64],
        ids: Tensor,
        counts: NDArray[np.int64],
        kept: NDArray[np.int64] | None,
    ) -> Tensor:
        batch.reserve(int((batch.lengths[rows] + counts).max()))
        plans = [RowPlan(part, rows, counts, layers) for part, layers in zip(batch.parts, self._homes, strict=True)]
        plan = plans[0] if len(plans) == 1 else JointPlan(plans)
        # States are written over: they are no longer those of the rows, unless the forward comes to its end.
        states, batch.states = batch.states, None
        assert states is not None
        in_place = len(rows) == len(batch)
        plan.states = states if in_place else states.select(rows)
        logits = self._forward(plan, ids.view(len(rows) if states else 1, -1), plans[0].absolute, kept)
        batch.lengths[rows] += counts
        if not in_place:
            states.put(rows, plan.states)
        batch.states = states
        return logits

    def _forward(self, plan: Plan, ids: Tensor, positions: NDArray[np.int64], kept: NDArray[np.int64] | None) -> Tensor:
        """Logits `[kept, outputs]` of one forward; of every token where `kept` is ``None``.

        Args:
            plan: Where keys, values and states are, and go.
            ids: `[1, tokens]`, packed; or `[rows, tokens]` of a model with states.
            positions: `[all tokens]`.
            kept: Places among all tokens.
        """
        device = self.model.device
        rows, tokens = ids.shape
        self.tokens += ids.numel()
        options: dict[str, Any] = {self._cache_argument: plan}
        plan.positions = torch.from_numpy(positions).to(device).view(rows, tokens)
        if "position_ids" in self._parameters:
            options["position_ids"] = plan.positions
        if self._wants_mask:
            options["attention_mask"] = torch.zeros(1, 1, 1, 1, device=device)
        if kept is not None and len(kept) == rows * tokens:
            kept = None
        if kept is not None and "logits_to_keep" in self._parameters:
            if rows == 1 and not self._is_spread:
                options["logits_to_keep"], kept = torch.from_numpy(kept).to(device), None
            elif rows == 1:  # an index would have to be where the last layer is: all from the first one on
                options["logits_to_keep"], kept = tokens - int(kept.min()), kept - kept.min()
            elif np.array_equal(kept, np.arange(1, rows + 1) * tokens - 1):  # the last of each row
                options["logits_to_keep"], kept = 1, None
        with self._lock, attending(plan, self._configs, self._own_attention):
            output = self.model(input_ids=ids, use_cache=True, **options)
        attending_first = sorted(layer for own in self._homes for layer in own)
        if self._like is not None and sorted(set(plan.attended)) != attending_first:
            raise UnsupportedModelError(f"layers {plan.attended} attend, and {attending_first} did at first")
        logits: Tensor = output.logits.flatten(0, 1)
        return logits if kept is None else logits[torch.from_numpy(kept).to(logits.device)]


def checked_session(model: Any) -> Session | None:
    """A session that computes what the model computes; ``None``, with a warning, if this model cannot be run so."""
    try:
        with evaluating(model), torch.inference_mode():
            session = Session(model)
            # A model that passed is not probed again for another generator or reward, unless its parts have changed.
            known = (kind_of(model), session._has_fixed_steps, _parts(model))
            with perturbed(model):
                try:
                    if _passed.get(model) != known:
                        check_session(session)
                        _passed[model] = known
                except UnsupportedModelError as error:
                    # The scans of Mamba's first version begin with no state.
                    if not session.read_one_by_one() and not session.follow_lengths(error):
                        raise
                    check_session(session)
                check_recorded(session)
    except UnsupportedModelError as error:
        warnings.warn(
            f"{type(model).__name__} is run without shared prefixes, slower and with equal results: {error}",
            stacklevel=5,
        )
        return None
    return session


def _parts(model: Any) -> list[tuple[Any, ...]]:
    """The class of each module, what is run around it, and what runs in place of its own forward."""
    return [
        (type(part), *part._forward_hooks, *part._forward_pre_hooks, id(vars(part).get("forward")))
        for part in model.modules()
    ]


def check_session(session: Session, beyond: int = 0) -> None:
    """Compares the logits of a short forked, ragged run with plain forwards.

    Logits are compared, not tokens: with a corrupted key the likeliest token can be the same every time.

    Args:
        session: Runs the model.
        beyond: A length that prompts, and rows of their own, pass: a window, or another of the model's `ranges`.

    Raises:
        UnsupportedModelError: If they differ, or the model cannot be run in this way.
    """
    model = session.model
    size = model.get_input_embeddings().weight.shape[0]
    ids = [(7919 * (i + 1)) % size for i in range(beyond + 12)]
    try:
        # Two prompts and an empty one, a ragged extension, a fork with a prune, a step of all rows and one of some.
        batch = session.open([*session.prefill([ids[: beyond + 5], ids[3:5]]), Piece()], 2)
        session.extend(batch, [ids[-7:-4], ids[5 : beyond + 6], ids[2:5]])
        batch = batch.select([0, 0, 1, 2])
        rows = [ids[:-4], ids[:-4], ids[3 : beyond + 6], ids[2:5]]
        for live in ([0, 1, 2, 3], [1, 2, 3]):
            for row in live:
                rows[row] = [*rows[row], ids[row - 4]]
            logits = session.step(batch, live, torch.tensor([rows[row][-1] for row in live], device=model.device))
        plain = [whole_logits(model, rows[row]) for row in live]
    except FAILURES as error:
        raise UnsupportedModelError(f"a probe failed: {type(error).__name__}: {error}") from error
    worst = max(difference(found, expected, model) for found, expected in zip(logits, plain, strict=True))
    if worst > 1:
        raise UnsupportedModelError(f"a probe's logits differ by {worst:.2g} times what rounding may do")


def check_recorded(session: Session) -> None:
    """Compares recorded steps with those that are run; if they differ, a warning says so, and none is recorded.

    Args:
        session: Runs the model; where nothing records its steps, nothing is done.
    """
    record = session.stepper.record
    if record is None or session.has_states:
        return
    logits: dict[bool, list[Tensor]] = {}
    try:
        for recording in (False, True):
            session.stepper.clear()
            session.stepper.record = record if recording else None
            batch = session.open([piece for piece in session.prefill([[1, 2, 3], [4]]) for _ in range(2)], 16)
            session.extend(batch, [[5], [6, 7], [8], [9]])
            tokens = torch.arange(1, 5, device=session.model.device)
            logits[recording] = [session.step(batch, range(4), tokens + i).clone() for i in range(6)]
        worst = max(difference(a, b, session.model) for a, b in zip(logits[True], logits[False], strict=True))
        said = "" if worst <= 1 else f"their logits differ by {worst:.2g} times what rounding may do"
    except FAILURES as error:
        said = f"{type(error).__name__}: {error}"
    session.stepper.clear()
    if said:
        session.stepper.record = None
        name = type(session.model).__name__
        warnings.warn(f"the decode steps of {name} are run without a recorded graph, slower: {said}", stacklevel=6)


class SearchMemoryError(RuntimeError):
    """Not even one row fits into memory.

    Example:
        >>> import torch
        >>> import inferscale as isc
        >>> from inferscale.generators import SearchMemoryError
        >>> generator = isc.HFGenerator(*isc.zoo.load("policy-xs"), max_new_tokens=16)
        >>> def full(*args):
        ...     raise torch.OutOfMemoryError("CUDA out of memory")
        >>> handle = generator.model.register_forward_pre_hook(full)
        >>> try:
        ...     isc.solve("2 + 3", isc.Greedy(), generator)
        ... except SearchMemoryError as error:
        ...     print(error)
        out of memory with a single row: 4 tokens read and up to 16 to sample, torch.float32; lower max_new_tokens
            or max_step_tokens, or load the model in a smaller dtype; 1 to go (CUDA out of memory)
    """


def run_halving(
    run: Callable[[int], None],
    size: int,
    left: Callable[[], Sequence[T]],
    describe: Callable[[T], str],
    make_room: Callable[[], None],
) -> int:
    """Calls `run` with a number of rows, half of it again whenever memory runs out; returns the number that did fit.

    Args:
        run: Does all that is left, so many rows at a time.
        size: Rows to begin with.
        left: Gives the items that are not done.
        describe: Gives the words for an item that does not fit.
        make_room: Called when memory has run out.

    Raises:
        SearchMemoryError: If one row does not fit, though room was made.
    """
    failed = 0
    while True:
        try:
            run(size)
        except (RuntimeError, MemoryError) as error:
            text = str(error).lower()  # the CPU allocator raises a plain RuntimeError
            said = any(words in text for words in ("allocate", "alloc_cpu", "out of memory"))
            if not (said or isinstance(error, torch.OutOfMemoryError | MemoryError)):
                raise
            items = left()
            size = min(size, len(items))
            if size == 1 and failed == len(items):
                told = f"out of memory with a single row: {describe(items[0])}; {len(items)} to go ({error})"
                raise SearchMemoryError(told) from error
            size, failed = max(size // 2, 1), len(items)
        else:
            return size
        # Outside of the handler, where the traceback no longer holds on to the failed rows' tensors.
        make_room()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def run_in_pieces(
    items: Sequence[T],
    size: int,
    run: Callable[[Sequence[T]], None],
    describe: Callable[[T], str],
    make_room: Callable[[], None] = lambda: None,
) -> int:
    """Calls `run` on consecutive pieces of at most `size` items; returns the size that did fit.

    When memory runs out, `make_room` is called, and the piece is halved and tried again: `run` must be able to start a
    piece afresh.

    Raises:
        SearchMemoryError: If a single item does not fit.
    """
    done = 0

    def run_rest(size: int) -> None:
        nonlocal done
        while done < len(items):
            run(items[done : done + size])
            done += size

    return run_halving(run_rest, size, lambda: items[done:], describe, make_room)
