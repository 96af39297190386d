"""The journals of batches, each of which may be begun several times."""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path


@dataclass(frozen=True)
class Journals:
    """The journals of one call, in a folder that all machines can write to.

    Attributes:
        folder: The folder; earlier calls may have left journals there.
        call: A name for this call.
        max_attempts: How often a batch is begun in it.
    """

    folder: Path
    call: str
    max_attempts: int

    @classmethod
    def at(cls, folder: str | os.PathLike[str], max_attempts: int) -> Journals:
        """The journals of a new call."""
        path = Path(folder).resolve()
        path.mkdir(parents=True, exist_ok=True)
        return cls(path, uuid.uuid4().hex[:8], max_attempts)

    def own(self, problems: str) -> Path:
        """A journal for another attempt at a batch, which begins with what the longest earlier one holds.

        Raises:
            RuntimeError: If there were too many attempts.
        """
        earlier = self._of(problems)
        attempt = sum(f"-{self.call}-" in path.name for path in earlier) + 1
        if attempt > self.max_attempts:
            raise RuntimeError(f"a batch was begun {self.max_attempts} times, and its actor died each time; it begins "
                               f"with {problems[:200]}")  # fmt: skip
        own = self.folder / f"{_name(problems)}-{self.call}-{uuid.uuid4().hex[:8]}.jsonl"
        if earlier:
            shutil.copyfile(max(earlier, key=lambda path: path.stat().st_size), own)
        else:
            own.touch()
        return own

    def keep(self, own: Path, problems: str) -> None:
        """Deletes the journals of other attempts, unless one of them has deleted this one: the first to end wins."""
        if not own.exists():
            return
        for path in self._of(problems):
            if path != own:
                path.unlink(missing_ok=True)

    def _of(self, problems: str) -> list[Path]:
        return sorted(self.folder.glob(f"{_name(problems)}-*.jsonl"))


def _name(problems: str) -> str:
    return blake2b(problems.encode(), digest_size=8).hexdigest()
