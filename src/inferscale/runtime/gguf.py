"""GGUF files: which one is meant, and one whole file of one that lies in parts."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from inferscale._compat import require

_NAMES = (
    re.compile(r"(?P<whole>.+)-(?P<part>\d+)-of-(?P<parts>\d+)\.gguf", re.IGNORECASE),  # llama.cpp's gguf-split
    re.compile(r"(?P<whole>.+\.gguf)\.part-?(?P<part>\w+?)(?:of(?P<parts>\d+))?", re.IGNORECASE),  # cut into pieces
    re.compile(r"(?P<whole>.+\.gguf)(?P<part>)(?P<parts>)", re.IGNORECASE),
)


def gguf_files(folder: Path) -> dict[str, list[Path]]:
    """The GGUF files in a folder by name; several paths are the parts of one file, in order.

    Parts are named as llama.cpp's ``gguf-split`` names them (``NAME-00001-of-00002.gguf``) or as the pieces of a
    file that was cut (``NAME.gguf.part1of2``, ``NAME.gguf.part1``).

    Raises:
        ValueError: If a part is missing, as far as names tell.
    """
    found: dict[str, dict[str, Path]] = {}
    wanted: dict[str, int] = {}
    for path in folder.iterdir():
        match = next((match for name in _NAMES if (match := name.fullmatch(path.name))), None)
        if match is not None and path.is_file():
            whole = match["whole"] if match["whole"].lower().endswith(".gguf") else f"{match['whole']}.gguf"
            found.setdefault(whole, {})[match["part"]] = path
            if match["parts"]:
                wanted[whole] = int(match["parts"])
    for whole, parts in found.items():
        if whole in wanted and "" not in parts and len(parts) != wanted[whole]:
            there = ", ".join(sorted(path.name for path in parts.values()))
            raise ValueError(f"{folder / whole} lies in {wanted[whole]} parts, and {len(parts)} are there ({there})")
    # a whole file comes before its own parts
    return {
        whole: [parts[""]] if "" in parts else [parts[part] for part in sorted(parts, key=_in_order)]
        for whole, parts in sorted(found.items())
    }


def choose_gguf(folder: Path, named: str | None = None) -> list[Path]:
    """The parts of the GGUF file that is `named` (itself, or one of its parts), or of the only one in a folder.

    Raises:
        ValueError: If there is none, or several and none is named; the message lists them.
    """
    files = gguf_files(folder)
    if named is not None:
        for whole, parts in files.items():
            if named == whole or any(named == part.name for part in parts):
                return parts
        there = f"it holds {', '.join(files)}" if files else "it holds none"
        raise ValueError(f"there is no GGUF file {named!r} in {folder}: {there}")
    if len(files) != 1:
        raise ValueError(f"{folder} holds {len(files)} GGUF files: pass gguf_file=, one of {', '.join(files)}")
    return next(iter(files.values()))


@contextmanager
def whole_gguf(parts: Sequence[Path]) -> Iterator[Path]:
    """Yields a whole GGUF file with no other model's files beside it; parts are joined in a temporary folder.

    Raises:
        ValueError: If it is no GGUF file.
        ImportError: If ``gguf`` or ``accelerate``, with which transformers reads it, is not installed, or transformers
            is too old.
    """
    if not _is_gguf(parts[0]):
        raise ValueError(f"{parts[0]} is no GGUF file: it does not begin with the four letters GGUF")
    for package in ("gguf", "accelerate"):
        require(package, "gguf")
    if not hasattr(require("transformers", "gguf"), "GgufConfig"):
        raise ImportError(
            "GGUF files need a newer transformers, since older ones read other tokenizers from them than were written: "
            'pip install -U "inferscale[gguf]"'
        )
    if len(parts) == 1 and not (parts[0].parent / "tokenizer_config.json").exists():
        yield parts[0]
        return
    # Alone in a folder: transformers mixes the file's tokenizer with what else it finds beside it.
    with tempfile.TemporaryDirectory(prefix="inferscale-", ignore_cleanup_errors=True) as folder:
        target = Path(folder) / "model.gguf"
        if len(parts) == 1:
            _link(parts[0], target)
        elif _is_gguf(parts[1]):
            _merge(parts, target)
        else:
            _concatenate(parts, target)
        yield target


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _in_order(part: str) -> tuple[int, str]:
    return (int(part), "") if part.isdecimal() else (-1, part)  # numbers as numbers: 10 comes after 2


def _link(path: Path, target: Path) -> None:
    try:
        target.symlink_to(path.resolve())
    except OSError:  # no right to, on Windows
        shutil.copyfile(path, target)


def _concatenate(parts: Sequence[Path], target: Path) -> None:
    with target.open("wb") as whole:
        for path in parts:
            with path.open("rb") as part:
                shutil.copyfileobj(part, whole, 2**24)


def _merge(parts: Sequence[Path], target: Path) -> None:
    """Writes one file of llama.cpp's shards: each has a header, the first one's metadata are the model's."""
    gguf = require("gguf", "gguf")
    readers = [gguf.GGUFReader(path) for path in parts]
    first = readers[0]
    writer = gguf.GGUFWriter(target, first.fields["general.architecture"].contents(), endianess=first.endianess)
    writer.data_alignment = first.alignment
    for name, field in first.fields.items():
        if not name.startswith(("GGUF.", "split.")) and name != "general.architecture":  # the writer's own
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    for reader in readers:
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
