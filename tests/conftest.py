import functools
import gc
import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the suite runs one process per core
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"

# A client of a server reads all certificates when it is made, 20 ms each, though no test uses TLS.
ssl.create_default_context = functools.cache(ssl.create_default_context)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Thousands of tests and what they import stay to the end: the garbage collector need not look at them again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of recorded samples beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("the recorded samples (../shared/data) are not beside this checkout")
    return SHARED
