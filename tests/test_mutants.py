"""The list of `benchmarks.mutants`: each bug can be put in, in one place, and its own tests are there."""

import pytest

from benchmarks.mutants import MUTANTS, PACKAGE, QUICK, ROOT, killer_of


def test_each_mutant_changes_one_place_that_is_still_there():
    for file, old, new, breaks, tests in MUTANTS:
        text = (PACKAGE / file).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{file}: {breaks}: rewrite this mutant after its line, {old!r}"
        assert old != new, breaks
        assert all((ROOT / "tests" / f"test_{name}.py").is_file() for name in tests.split()), breaks


def test_there_are_sixty_of_the_rooms_of_the_core():
    assert len(MUTANTS) == len({mutant[:3] for mutant in MUTANTS}) == 60
    rooms = {mutant.file.partition("/")[0].removesuffix(".py") for mutant in MUTANTS}
    assert rooms == {"functional", "strategies", "engine", "runtime", "answers", "flops"}
    assert f"QUICK  := {QUICK}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_mutant_is_killed_where_its_test_fails_alone(tmp_path, monkeypatch):
    """With a package of one file and a suite of two, in place of ours."""
    package, root = tmp_path / "package", tmp_path / "root"
    for folder in (package, root / "tests", tmp_path / "copy" / "inferscale"):
        folder.mkdir(parents=True)
    for folder in (package, tmp_path / "copy" / "inferscale"):
        (folder / "__init__.py").write_text("def f(x):\n    return x + 1\n\n\ndef g(x):\n    return x + 2\n")
    (root / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow\n    real\n    servers\ntestpaths = tests\n")
    (root / "tests" / "test_f.py").write_text("from inferscale import f\n\ndef test_f():\n    assert f(1) == 2\n")
    (root / "tests" / "test_g.py").write_text("from inferscale import g\n\ndef test_g():\n    assert g(-1) >= 0\n")
    monkeypatch.setattr("benchmarks.mutants.PACKAGE", package)
    monkeypatch.setattr("benchmarks.mutants.ROOT", root)
    bug = MUTANTS[0]._replace(file="__init__.py", tests="f")
    first, second = bug._replace(old="x + 1", new="x - 1"), bug._replace(old="x + 2", new="x")
    third = bug._replace(old="x + 2\n", new="x + 1\n")
    copy = tmp_path / "copy"
    assert killer_of(first, copy) == "test_f.py::test_f"
    assert killer_of(second, copy) is killer_of(third, copy, others=True) is None
    assert killer_of(second, copy, others=True) == "test_g.py::test_g"
