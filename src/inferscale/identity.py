"""The identity of a part, which says what its texts and scores depend on: a run goes on only where it is equal."""

from __future__ import annotations

import hashlib
import inspect
import json
import numbers
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache, partial
from itertools import takewhile
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any, ClassVar, NamedTuple, Self

from ._compat import unknown_option

UNKNOWN = "unknown"
"""Key in the identity of a part about which nothing but its class can be told."""

_ABSENT = "absent"
_GIVEN = "_constructed_with"  # attribute with the arguments of the constructor
_SAMPLE = 64  # numbers of each weight that a fingerprint reads
_SHOWN = 6  # differences that a message names
_LIBRARIES = {"inferscale", "transformers", "torch", "numpy", *sys.stdlib_module_names}  # whose code a version names


class _Signature:
    """The signature of a class is that of its ``__init__``: `inspect` would show the ``__new__`` that it inherits."""

    def __get__(self, part: object, owner: type[Any]) -> inspect.Signature:
        if owner.__init__ is object.__init__:
            return inspect.Signature()
        signature = inspect.signature(owner.__init__)
        return signature.replace(parameters=list(signature.parameters.values())[1:])


class Identified:
    """Remembers the options that it was made with, so that none can be missing from its identity.

    Attributes:
        no_effect: Options that cannot change a text or a score: sizes of batches and caches, timeouts, keys, and where
            a model is served, for its name tells which it is.
        held_in: For options of which the identity shows what became of them, the attribute that holds it.
        set_later: Attributes that may be assigned after the construction, and belong to the identity.
    """

    no_effect: ClassVar[frozenset[str]] = frozenset()
    held_in: ClassVar[Mapping[str, str]] = {}
    set_later: ClassVar[tuple[str, ...]] = ()
    __signature__ = _Signature()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Makes the part and remembers what it is made with."""
        if cls.__init__ is object.__init__ and (args or kwargs):
            raise TypeError(f"{cls.__name__}() takes no arguments")
        if (known := _known_options(cls.__init__)) is not None:
            for name in kwargs:
                if name not in known:
                    raise unknown_option(f"{cls.__name__}() ", name, known)
        if args and isinstance(args[0], str | os.PathLike) and hasattr(cls, "from_pretrained"):
            try:
                inspect.signature(cls).bind(*args, **kwargs)
            except TypeError as error:  # a path alone, where a model and its tokenizer belong
                loader = f"{cls.__name__}.from_pretrained({os.fspath(args[0])!r})"
                raise TypeError(f"{cls.__name__}() takes objects: {loader} loads them ({error})") from None
        made = super().__new__(cls)
        # Set in the dictionary, for the dataclass may be frozen; and without keys, which nobody is to be shown.
        made.__dict__[_GIVEN] = args, {name: value for name, value in kwargs.items() if name not in cls.no_effect}
        return made

    def identity(self) -> dict[str, Any]:
        """Return what the texts or scores of this part depend on: its class, and every option that has an effect.

        Write one for a class of your own: a dictionary of plain values, parts, models, tokenizers or functions;
        ``super().identity()`` returns the options of its constructor. Dataclasses need none. Without it, nothing but
        the class is known, and a run or journal cannot be resumed safely.
        """
        kind = type(self)
        about = _class_identity(kind)
        if kind.identity is Identified.identity and not (_is_ours(kind) or _made_by_dataclass(kind)):
            return {"class": about["class"], UNKNOWN: "it has no identity()"}
        return about | {name: identity_of(value) for name, value in sorted(_options(self).items())}


@cache
def _known_options(constructor: Callable[..., None]) -> tuple[str, ...] | None:
    """Return the names of the constructor's options; ``None`` if it takes any."""
    parameters = inspect.signature(constructor).parameters
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) else tuple(parameters)


def identity_of(value: object) -> Any:
    """Return plain data that is equal, in another process too, where what `value` does is.

    A part is what its `identity` returns; a dataclass its class and fields; a function its code, defaults and closure
    (global variables are not seen); a model a fingerprint of its weights and configuration; a tokenizer its vocabulary
    and templates. Of an object of which nothing is known the class is told, with the key ``"unknown"``.
    """
    return _identity(value, ())


def _identity(value: Any, inside: tuple[int, ...]) -> Any:
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if id(value) in inside:  # a function that calls itself
        return "..."
    inside = (*inside, id(value))

    def within(items: Any) -> Any:
        return _identity(items, inside)

    if isinstance(value, Mapping):
        return {str(name): within(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [within(item) for item in value]
    if isinstance(value, AbstractSet):
        return sorted((within(item) for item in value), key=digest)
    if isinstance(value, bytes):
        return {"bytes": hashlib.sha256(value).hexdigest()[:32]}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, re.Pattern):
        return {"pattern": within(value.pattern), "flags": value.flags}
    if isinstance(value, numbers.Number | range):
        return value.item() if hasattr(value, "item") else repr(value)
    if isinstance(value, partial):
        return {"function": within(value.func), "given": within(value.args), "named": within(value.keywords)}
    if isinstance(value, MethodType):
        return {"method": _name(value.__func__), "of": within(value.__self__)}
    if isinstance(value, FunctionType):
        return _function_identity(value, within)
    if isinstance(value, type):
        return _class_identity(value)
    if inspect.isbuiltin(value) or inspect.isroutine(value):
        return _name(value)
    return _object_identity(value, within)


def _options(part: Identified) -> dict[str, Any]:
    """Return the options with an effect, by the name of the option or of the attribute that holds it."""
    kind = type(part)
    args, kwargs = part.__dict__[_GIVEN]
    bound = inspect.signature(kind).bind_partial(*args, **kwargs)
    bound.apply_defaults()
    given: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        several = bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        given |= value if several else {name: value}
    options: dict[str, Any] = {}
    for name, value in given.items():
        if name not in kind.no_effect:
            held = kind.held_in.get(name, name)
            # Attributes of ours hold an option in its normal form; those of others may be anything, counters too.
            is_held = held != name or _is_ours(kind)
            options[held.lstrip("_")] = getattr(part, held, value) if is_held else value
    return options | {name: getattr(part, name) for name in kind.set_later}


def _object_identity(value: Any, within: Callable[[Any], Any]) -> Any:
    kind = type(value)
    about = _class_identity(kind)
    if callable(getattr(kind, "identity", None)):
        found = value.identity()
        if not isinstance(found, Mapping):
            raise TypeError(f"{kind.__name__}.identity() returned {found!r:.80}: return a dictionary")
        return {"class": about["class"], **within(dict(found))}
    if is_dataclass(value):
        return about | {f.name: within(getattr(value, f.name)) for f in fields(value) if f.compare}
    if callable(getattr(value, "state_dict", None)):
        return model_identity(value)
    if callable(getattr(value, "get_vocab", None)):
        return tokenizer_identity(value)
    if about["class"] in ("torch.dtype", "torch.device"):
        return str(value)
    if hasattr(value, "tolist") and hasattr(value, "shape"):  # an array
        return {"shape": list(value.shape), "dtype": str(value.dtype), "values": digest(value.tolist())}
    if _is_ours(kind) or kind.__module__.startswith("transformers.") or not getattr(value, "__dict__", True):
        return about | {name: within(item) for name, item in sorted(getattr(value, "__dict__", {}).items())}
    return {"class": about["class"], UNKNOWN: "it has no identity()"}


def _function_identity(function: FunctionType, within: Callable[[Any], Any]) -> dict[str, Any]:
    about: dict[str, Any] = {"function": _name(function)}
    if not _is_ours(function):
        about["code"] = _code(function.__code__)
    names = function.__code__.co_freevars
    cells = {name: _content(cell) for name, cell in zip(names, function.__closure__ or (), strict=True)}
    parts = {"defaults": function.__defaults__, "named": function.__kwdefaults__, "closure": cells}
    return about | {name: within(part) for name, part in parts.items() if part}


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return _ABSENT


def _class_identity(kind: type[Any]) -> dict[str, Any]:
    """Return the name of a class, and a digest of its methods, of those of its bases too, where no version names it."""
    codes = []
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] not in _LIBRARIES:
            for name, value in sorted(vars(base).items()):
                function = getattr(value, "fget", None) or getattr(value, "__func__", value)
                if isinstance(function, FunctionType):
                    codes.append([name, _code(function.__code__)])
    return {"class": _name(kind), **({"code": digest(codes)} if codes else {})}


def _code(code: CodeType) -> str:
    """Return a digest of what a function does: where it stands, and on which line, does not matter."""

    def constant(value: Any) -> Any:
        if isinstance(value, CodeType):
            return _code(value)
        if isinstance(value, tuple):
            return [constant(item) for item in value]
        return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)

    return digest([code.co_code.hex(), code.co_names, [constant(value) for value in code.co_consts]])


def _name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', None) or 'builtins'}.{getattr(thing, '__qualname__', type(thing).__name__)}"


def _is_ours(thing: Any) -> bool:
    return str(thing.__module__).startswith("inferscale.")


def _made_by_dataclass(kind: type[Any]) -> bool:
    """True if a class has the constructor of a dataclass, so that its fields are all that instances differ in."""
    maker = next(base for base in kind.__mro__ if "__init__" in vars(base))
    return "__dataclass_fields__" in vars(maker)


def model_identity(model: Any) -> dict[str, Any]:
    """Return class, dtype, end-of-sequence ids and digests of the configuration and the weights of a torch model.

    Of every weight up to 64 numbers are read, spread over it. Names and folders do not matter.
    """
    to_dict = getattr(getattr(model, "config", None), "to_dict", dict)
    generation = getattr(model, "generation_config", None)
    about = {
        "class": type(model).__qualname__,
        "config": digest(_without_names(to_dict())),
        "dtype": str(getattr(model, "dtype", None)),
        "eos_token_id": getattr(generation, "eos_token_id", None),
        "weights": digest(_sampled_weights(model)),
    }
    # Those of peft, which tell whether their adapters are off; transformers' models have a method of that name.
    layers = [layer for layer in model.modules() if isinstance(getattr(layer, "disable_adapters", None), bool)]
    if layers:
        configs = {name: _without_names(c.to_dict()) for name, c in getattr(model, "peft_config", {}).items()}
        active = sorted({str([layer.disable_adapters, layer.active_adapters]) for layer in layers})
        about["adapters"] = {"config": digest(configs), "active": active}
    return about


_NAMES = {"_name_or_path", "base_model_name_or_path", "transformers_version", "use_cache", "inference_mode"}


def _without_names(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {str(name): _without_names(value) for name, value in config.items() if name not in _NAMES}
    if isinstance(config, AbstractSet):
        return sorted(map(str, config))
    return config


def _sampled_weights(model: Any) -> list[Any]:
    # The 4-bit weights of bitsandbytes: their first forward on a CPU turns them about, and state_dict() turns them back
    # without their scales. So they are only counted, by value, and nobody asks for their state.
    packed = {
        name: weight for name, weight in model.named_parameters() if getattr(weight, "quant_state", None) is not None
    }
    sampled: list[Any] = [
        [n, list(weight.quant_state.shape), _counts_of_4_bits(weight)] for n, weight in packed.items()
    ]
    whole = {**dict(model.named_parameters()), **dict(model.named_buffers())} if packed else model.state_dict()
    tensors = _plain_tensors({name: whole[name] for name in whole if name not in packed})
    return sampled + [[name, *_sampled(tensor)] for name, tensor in tensors]


def _counts_of_4_bits(weight: Any) -> list[int]:
    """Return how many of 16 values there are of each, two in a byte; the same in any order."""
    values = weight.detach().flatten().view(sys.modules["torch"].uint8)  # loaded with the model
    counts: list[int] = sum(part.bincount(minlength=16) for part in (values & 15, values >> 4)).tolist()
    return counts


def _plain_tensors(named: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield tensors by name; for quantised ones those that they are made of (torch's protocol of wrapping tensors)."""
    for name, tensor in named.items():
        if hasattr(tensor, "__tensor_flatten__"):
            inner, _ = tensor.__tensor_flatten__()
            yield from _plain_tensors({f"{name}.{part}": getattr(tensor, part) for part in inner})
        elif hasattr(tensor, "detach"):  # and no extra state
            yield name, tensor


def _sampled(tensor: Any) -> list[Any]:
    """Return shape, dtype and a few values of a tensor."""
    about = [list(tensor.shape), str(tensor.dtype)]
    if tensor.is_meta:
        return about  # its values are not at hand
    flat = tensor.detach().flatten()
    step = max(len(flat) // _SAMPLE, 1)
    return [*about, [repr(number) for number in [*flat[::step].tolist(), *flat[-1:].tolist()]]]


def tokenizer_identity(tokenizer: Any) -> dict[str, Any]:
    """Return class, chat template, special tokens and a digest of all that makes ids of a text; names do not matter."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        machine = json.dumps(sorted(tokenizer.get_vocab().items()))
    else:
        text = backend.to_str()  # megabytes; before its tokens stand truncation and padding as the last call set them
        machine = text[max(text.find('"added_tokens"'), 0) :]
    plain = ("model_max_length", "add_bos_token", "add_eos_token", "clean_up_tokenization_spaces")
    special = getattr(tokenizer, "special_tokens_map", {})
    return {
        "class": type(tokenizer).__qualname__,
        "chat_template": identity_of(getattr(tokenizer, "chat_template", None)),
        "special_tokens": {name: str(token) for name, token in special.items()},
        "vocabulary": hashlib.sha256(machine.encode()).hexdigest()[:32],
        **{name: getattr(tokenizer, name) for name in plain if getattr(tokenizer, name, None) is not None},
    }


def digest(data: object) -> str:
    """Return the first 32 hex digits of the SHA-256 of plain data."""
    text = json.dumps(data, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def unknown_in(identity: Any) -> list[str]:
    """Return the classes in an identity about which nothing else is known."""
    if isinstance(identity, Mapping):
        own = [str(identity.get("class"))] if UNKNOWN in identity else []
        return list(dict.fromkeys([*own, *(name for item in identity.values() for name in unknown_in(item))]))
    return [name for item in identity for name in unknown_in(item)] if isinstance(identity, list) else []


def warn_of_unknown(identity: Any, kept: str) -> None:
    """Warn if an identity holds classes about which nothing is known; `kept` is what a later call would go on with."""
    if names := unknown_in(identity):
        warnings.warn(
            f"what {' and '.join(names)} does cannot be compared, for the class has no identity(): {kept} cannot be "
            "resumed safely. Write `def identity(self)`, which returns what its texts or scores depend on",
            stacklevel=3,
        )


class Differences(NamedTuple):
    """Differences that tell two identities apart.

    Attributes:
        changed: Where they differ, by dotted name, with both values.
        unknown: Classes that both have in one place, and of which one of them tells no more.
    """

    changed: dict[str, tuple[Any, Any]]
    unknown: list[str]

    def __str__(self) -> str:
        """Names the differences with both values, shortened to where these differ."""
        told = [
            "{} was {} and is {}".format(name, *_shortened(*values))
            for name, values in list(self.changed.items())[:_SHOWN]
        ]
        more = len(self.changed) - len(told)
        return "; ".join(told) + (f"; and {more} more" if more else "")


def compare(old: Any, new: Any) -> Differences:
    """Compare two identities, key by key."""
    found = Differences({}, [])
    for name, was, now in _apart(old, new, ""):
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            found.unknown.append(str(now.get("class")))
        else:
            found.changed[name] = (was, now)
    return found


def _apart(old: Any, new: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        if (UNKNOWN in old or UNKNOWN in new) and old.get("class") == new.get("class"):
            yield name, old, new
            return
        if old.get("class") != new.get("class"):  # their options do not belong together
            yield name, _headline(old), _headline(new)
            return
        for key in dict.fromkeys([*old, *new]):
            path = f"{name}.{key}" if name else str(key)
            yield from _apart(old.get(key, _ABSENT), new.get(key, _ABSENT), path)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, (was, now) in enumerate(zip(old, new, strict=True)):
            yield from _apart(was, now, f"{name}[{place}]")
    elif digest(old) != digest(new):  # by digest, for NaN is not equal to itself
        yield name, _headline(old), _headline(new)


def _headline(value: Any) -> Any:
    """Return a value that is short: of a part its class."""
    if not isinstance(value, Mapping):
        return value
    return str(value["class"]).rpartition(".")[2] if "class" in value else str(dict(value))


def _shortened(was: Any, now: Any, room: int = 60) -> Sequence[str]:
    """Return both values as texts of at most `room` characters, from shortly before the first one that differs."""
    texts = [repr(was), repr(now)]
    equal = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False)))
    start = max(equal - room // 3, 0)
    ends = ["..." * (len(text) > start + room) for text in texts]
    return ["..." * (start > 0) + text[start : start + room] + end for text, end in zip(texts, ends, strict=True)]
