"""Every public object has a page in the reference, under one name, with a text that says what it is and an example."""

import ast
import inspect
import pkgutil
import re
import runpy
from importlib import import_module
from pathlib import Path

import inferscale

PAGES = runpy.run_path(str(Path(__file__).parent.parent / "docs" / "reference_pages.py"))
INDEX = PAGES["index"]()


def public_objects():
    """The objects that modules without an underscore in their names export, two levels down."""
    names = [found.name for found in pkgutil.iter_modules(inferscale.__path__) if not found.name.startswith("_")]
    homes = [import_module(f"inferscale.{name}") for name in names if name not in ("cli", "runtime")]
    for home in (inferscale, *homes):
        for name in getattr(home, "__all__", ()):
            if not inspect.ismodule(getattr(home, name)):
                yield f"{home.__name__}.{name}", getattr(home, name)


def test_every_public_object_has_a_page():
    listed = {id(item) for names in INDEX.values() for item in names.values()}
    missing = [name for name, item in public_objects() if id(item) not in listed]
    assert missing == []


def test_every_name_is_that_of_its_object_and_comes_once():
    names = [name for subject in INDEX.values() for name in subject]
    assert len(names) == len(set(names)) > 300
    for subject in INDEX.values():
        for name, item in subject.items():
            module, _, short = name.rpartition(".")
            assert getattr(import_module(module), short) is item


def test_every_object_says_what_it_is():
    empty = [name for subject in INDEX.values() for name, item in subject.items() if not PAGES["text_of"](name, item)]
    assert empty == []
    alias = "inferscale.functional.Array"
    assert PAGES["text_of"](alias, INDEX["functional"][alias]).startswith("A NumPy array")  # not what `Any` is


def test_every_object_has_an_example():
    """The last section of its text; tests/test_docs_examples.py runs it."""
    missing = [
        name
        for subject in INDEX.values()
        for name, item in subject.items()
        if not re.search(r"^Example:\n    (?:>>> |Needs )", PAGES["text_of"](name, item), re.MULTILINE)
    ]
    assert missing == []


def test_every_public_module_begins_with_an_example():
    texts = {name: getattr(inferscale, name).__doc__ for name in inferscale.__all__}
    modules = {name: texts[name] for name in texts if inspect.ismodule(getattr(inferscale, name))}
    assert len(modules) > 10
    assert [
        name for name, text in (modules | {"": inferscale.__doc__}).items() if "\nExample:\n    >>> " not in text
    ] == []


def test_the_page_of_a_class_tells_what_it_takes():
    """Options stand in the text of `__init__`; what it says in a dataclass is nothing that a reader needs."""
    for subject in INDEX.values():
        for name, item in subject.items():
            if PAGES["is_class"](item):
                written = "Args:" in (inspect.getdoc(item.__init__) or "")
                assert (":class-doc-from: both" in PAGES["directive_of"](name, item)) == written
    assert ":class-doc-from: both" in PAGES["directive_of"]("inferscale.HFGenerator", inferscale.HFGenerator)


def test_the_page_of_a_class_shows_what_a_base_without_a_page_gives_it():
    assert ":inherited-members: ABC" in PAGES["directive_of"]("inferscale.FlopCounter", inferscale.FlopCounter)
    assert ":inherited-members:" not in PAGES["directive_of"]("inferscale.REBASE", inferscale.REBASE)


def test_every_page_that_is_named_uses_the_object():
    found = PAGES["uses"](INDEX)
    assert found["inferscale.REBASE"][0].startswith("howto/")
    assert "howto/evaluation" in found["inferscale.answers.Choice"]
    assert "howto/evaluation" not in found.get("inferscale.scaling.Choice", ())  # of the same name


def test_a_name_of_another_module_is_no_use_of_an_object():
    """`answers.Choice` is no example of `scaling.Choice`; a dotted name is one of all that it passes."""
    imported = PAGES["imports"](ast.parse("import inferscale as isc\nfrom inferscale.answers import Choice as Letter"))
    chains = [
        PAGES["chain_of"](ast.parse(code, mode="eval").body, imported)
        for code in ("Letter", "isc.zoo.task.problems", "other.Choice", "choice")
    ]
    assert chains == ["inferscale.answers.Choice", "inferscale.zoo.task.problems", "", ""]
    assert [part for part, _ in PAGES["along"]("inferscale.HFGenerator.from_pretrained.x")] == [
        "HFGenerator",
        "from_pretrained",
    ]
