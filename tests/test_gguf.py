"""GGUF files are loaded like folders: whole, in parts, by name, by every class that loads."""

import shutil
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from inferscale import HFGenerator, HFProcessRewardModel, LikelihoodReward
from inferscale.flow import GenerateRequest
from inferscale.rewards.training import load_for_training
from inferscale.runtime.gguf import gguf_files
from inferscale.runtime.loading import load_model, load_pair, load_tokenizer
from inferscale.tree import Node, Problem


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    from tests.gguf_files import write_gguf

    path = tmp_path_factory.mktemp("whole") / "tiny.gguf"
    write_gguf(path)
    return path


@pytest.fixture(scope="module")
def expected(file):
    """What transformers makes of the file."""
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def assert_same(loaded, expected):
    (model, tokenizer), (other, its_tokenizer) = loaded, expected
    assert {name: value.tolist() for name, value in model.state_dict().items()} == {
        name: value.tolist() for name, value in other.state_dict().items()
    }
    assert tokenizer.get_vocab() == its_tokenizer.get_vocab()
    assert tokenizer.chat_template == its_tokenizer.chat_template


def test_a_file_and_its_folder_are_what_transformers_loads(file, expected, tmp_path):
    assert_same(load_pair(file, AutoModelForCausalLM), expected)
    assert_same(load_pair(str(file.parent), AutoModelForCausalLM), expected)
    assert_same(load_pair(file.parent, AutoModelForCausalLM, gguf_file="tiny.gguf"), expected)
    tokenizer = load_tokenizer(None, file)
    model, chosen = load_pair(file, AutoModelForCausalLM, tokenizer)
    assert chosen is tokenizer
    assert_same((model, load_tokenizer(file.parent, "elsewhere")), expected)


def cut(file, folder, names):
    """The file's bytes in pieces with these names."""
    content = file.read_bytes()
    size = -(-len(content) // len(names))
    for place, name in enumerate(names):
        (folder / name).write_bytes(content[place * size : (place + 1) * size])


@pytest.mark.parametrize(
    "names",
    [
        ["tiny-00001-of-00002.gguf", "tiny-00002-of-00002.gguf"],
        ["tiny.gguf.part1of2", "tiny.gguf.part2of2"],
        [f"tiny.gguf.part{number}" for number in range(1, 12)],  # 10 comes after 2
        ["tiny.gguf.part-aa", "tiny.gguf.part-ab"],
    ],
    ids=lambda names: names[-1],
)
def test_a_file_cut_in_pieces_is_put_together(file, expected, tmp_path, names):
    cut(file, tmp_path, names)
    assert_same(load_pair(tmp_path, AutoModelForCausalLM), expected)
    assert_same(load_pair(tmp_path / names[1], AutoModelForCausalLM), expected)
    assert_same(load_pair(tmp_path / "tiny.gguf", AutoModelForCausalLM), expected)


def test_shards_of_llama_cpp_are_merged(expected, tmp_path):
    from tests.gguf_files import write_gguf

    write_gguf(tmp_path / "tiny.gguf", split_max_tensors=9)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"tiny-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert_same(load_pair(tmp_path, AutoModelForCausalLM), expected)
    assert_same(load_pair(tmp_path, AutoModelForCausalLM, gguf_file="tiny-00002-of-00003.gguf"), expected)
    (tmp_path / "tiny-00002-of-00003.gguf").unlink()
    with pytest.raises(ValueError, match=r"lies in 3 parts, and 2 are there \(tiny-00001-of-00003.gguf, tiny-00003"):
        load_model(tmp_path, AutoModelForCausalLM)


def test_parts_are_gone_after_loading(file, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    cut(file, tmp_path, ["tiny.gguf.part1", "tiny.gguf.part2"])
    model = load_model(tmp_path, AutoModelForCausalLM)
    assert model.name_or_path == str(tmp_path)  # not where the parts were joined: the name loads it again
    assert not list(temporary.iterdir())


def test_one_of_several_files_must_be_named(file, expected, tmp_path):
    from tests.gguf_files import write_gguf

    shutil.copy(file, tmp_path / "Q4.gguf")
    write_gguf(tmp_path / "Q8.gguf", seed=1)
    with pytest.raises(ValueError, match=r"holds 2 GGUF files: pass gguf_file=, one of Q4\.gguf, Q8\.gguf"):
        HFGenerator.from_pretrained(tmp_path)
    assert_same(load_pair(tmp_path, AutoModelForCausalLM, gguf_file="Q4.gguf"), expected)
    with pytest.raises(ValueError, match=r"no GGUF file 'Q5\.gguf' in .*: it holds Q4\.gguf, Q8\.gguf"):
        load_pair(tmp_path, AutoModelForCausalLM, gguf_file="Q5.gguf")


def test_a_folder_with_a_config_is_not_taken_for_gguf(file, expected, tmp_path):
    model, tokenizer = load_pair(file, AutoModelForCausalLM)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    model.save_pretrained(tmp_path)  # what comes out of a GGUF file is an ordinary model
    tokenizer.save_pretrained(tmp_path)
    shutil.copy(file, tmp_path / "other.gguf")
    again, _ = load_pair(tmp_path, AutoModelForCausalLM)
    assert torch.equal(again.lm_head.weight, 2 * expected[0].lm_head.weight)
    assert not hasattr(again.config, "quantization_config")
    assert_same(load_pair(tmp_path, AutoModelForCausalLM, gguf_file="other.gguf"), expected)


def test_generators_and_rewards_load_it(file):
    generator = HFGenerator.from_pretrained(file, max_new_tokens=8, temperature=0)
    problem = Problem("12 + 12 =")
    (step,) = generator.generate([GenerateRequest(Node(problem), until="end")])[0]
    assert step.text
    node = Node(problem, step, Node(problem))
    likelihood = LikelihoodReward.from_pretrained(file)
    assert 0 < likelihood.score([node])[0] < 1
    judge = HFProcessRewardModel.from_pretrained(file, good_token="+", bad_token="-", check=False)
    assert len(judge.score([node])) == 1
    classifier, tokenizer = load_for_training(file)
    assert classifier.num_labels == 2
    assert len(tokenizer) == 261
    named, _ = load_for_training(file.parent, gguf_file="tiny.gguf")
    assert torch.equal(classifier.score.weight, named.score.weight)


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_package_is_named_before_any_work(file, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("began to load"))
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: pytest.fail("began to load"))
    with pytest.raises(ImportError, match=rf'this needs {package}: pip install "inferscale\[gguf\]"'):
        HFGenerator.from_pretrained(file)


def test_what_is_no_gguf_file_is_refused(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04")
    (tmp_path / "b.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.gguf is no GGUF file: it does not begin with the four letters GGUF"):
        HFGenerator.from_pretrained(tmp_path / "a.gguf")
    with pytest.raises(ValueError, match="is a file: give the model's folder, or a GGUF file"):
        HFGenerator.from_pretrained(tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"no GGUF file 'c\.gguf' in .*: it holds a\.gguf"):
        HFGenerator.from_pretrained(str(tmp_path / "c.gguf"))
    with pytest.raises(ValueError, match=r"no GGUF file 'nowhere\.gguf'"):
        HFGenerator.from_pretrained("nowhere.gguf")
    with pytest.raises(ValueError, match="there is no folder"):
        HFGenerator.from_pretrained(tmp_path / "nowhere" / "c.gguf")


def test_names_of_parts(tmp_path):
    names = ["a-00002-of-00002.gguf", "a-00001-of-00002.gguf", "b.gguf", "b.gguf.part1of2", "notes.txt", "C.GGUF"]
    for name in names:
        (tmp_path / name).touch()
    found = {whole: [path.name for path in parts] for whole, parts in gguf_files(tmp_path).items()}
    assert found == {"a.gguf": [names[1], names[0]], "b.gguf": ["b.gguf"], "C.GGUF": ["C.GGUF"]}
