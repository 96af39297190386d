"""The plug-ins for lm-evaluation-harness and inspect_ai, against the real packages, offline."""

import asyncio
import importlib
import json
import os
import subprocess
import sys
import textwrap
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from inferscale import (
    REBASE,
    BeamSearch,
    BestOfN,
    Generator,
    HFGenerator,
    MajorityVote,
    Problem,
    RepeatedSampling,
    Step,
    Thinking,
    solve,
)
from inferscale.answers import Choice, read_answer, text_before
from inferscale.evaluate.parts import Shortened, make_thinking, parts_from_texts
from inferscale.testing import ToyGenerator, ToyReward
from inferscale.thinking import NO_THINKING
from tests.reward_checkpoints import llama_tokenizer
from tests.tiny_models import byte_tokenizer, tiny_model

needs_lm_eval = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed (extra lm-eval)")
needs_inspect = pytest.mark.skipif(find_spec("inspect_ai") is None, reason="inspect_ai is not installed")
foreign_warnings = pytest.mark.filterwarnings("ignore")
ROWS = [{"question": f"How many are {index}?", "answer": str(index % 4)} for index in range(8)]
PROMPT = "Q: {}\nA:"
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def expected_texts(strategy, seed=0):
    prompts = [PROMPT.format(row["question"]) for row in ROWS]
    return [solve(p, strategy, ToyGenerator(), reward_model=ToyReward(), seed=seed).text for p in prompts]


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model("llama").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def texts_of(model, prompt, stops):
    model.cache_hook = SimpleNamespace(add_partial=lambda *given: None)
    return model.generate_until([SimpleNamespace(args=(prompt, {"until": stops}))], disable_tqdm=True)


def test_texts_end_at_the_first_stop():
    assert text_before("a\nb. Q: c", ["Q:", "\n"]) == "a"
    assert text_before("abc", []) == text_before("abc", ["", "x"]) == "abc"


def test_parts_from_texts(tiny_folder):
    options = {"strategy": "rebase", "width": "3", "vote": "weighted", "reward": "likelihood", "seed": "5",
               "temperature": "0.5", "max_new_tokens": "9", "step_delimiter": "\\n\\n"}  # fmt: skip
    generator, strategy, reward, vote, seed = parts_from_texts(str(tiny_folder), options)
    assert strategy == REBASE(3)
    assert vote.weighted
    assert type(reward).__name__ == "LikelihoodReward"
    assert seed == 5
    assert (generator.sampler.temperature, generator.limits.path) == (0.5, 9)
    assert parts_from_texts(str(tiny_folder), {"n": 2})[1] == RepeatedSampling(2)
    with pytest.raises(ValueError, match="no model"):
        parts_from_texts("", {})


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("<think> </think>", Thinking()),
        ("[THINK] [/THINK] prefilled", Thinking("[THINK]", "[/THINK]", prefilled=True)),
        ("off", NO_THINKING),
    ],
)
def test_markers_of_thoughts_from_texts(tiny_folder, told, found):
    assert make_thinking(told) == found
    assert parts_from_texts(str(tiny_folder), {"thinking": told})[0].thinking == found
    with pytest.raises(ValueError, match="write the two markers"):
        make_thinking("<think>")


@needs_lm_eval
def test_lm_eval_is_given_what_follows_the_thoughts():
    from inferscale.evaluate.lm_eval import model_class

    model = model_class().of(Thinks(), RepeatedSampling(3))
    assert texts_of(model, "?", ["\nQ"]) == ["It is 15."]


class Thinks(Generator):
    """Thinks of 12, and says 15; its thoughts hold a stop text."""

    def generate(self, requests):
        text = "<think>12?\nQ</think>It is 15.\nQ: and 16?"
        return [[Step(text, (1,), finish_reason="eos")] * request.n for request in requests]


def test_the_length_that_a_task_allows_ends_every_path():
    from inferscale.evaluate.inspect_ai import SearchProvider
    from inferscale.evaluate.lm_eval import SearchModel

    generator = HFGenerator(tiny_model("llama"), byte_tokenizer(), max_step_tokens=3, max_new_tokens=20)
    for strategy in (RepeatedSampling(3), BeamSearch(2, 2)):
        result = solve("Step 1", Shortened(strategy, 7), generator, reward_model=ToyReward())
        lengths = [len(leaf.token_ids) for leaf in result.leaves]
        assert max(lengths) == 7
        long = solve("Step 1", strategy, generator, reward_model=ToyReward())
        assert max(len(leaf.token_ids) for leaf in long.leaves) > 7
    model = SearchModel.of(generator, RepeatedSampling(3))
    model.cache_hook = SimpleNamespace(add_partial=lambda *given: None)
    asked = [SimpleNamespace(args=("Step 1", {"until": [], "max_gen_toks": most})) for most in (2, 5)]
    assert model.generate_until([*asked, SimpleNamespace(args=("Step 1", {"until": []}))], disable_tqdm=True) == [
        solve("Step 1", strategy, generator).text
        for strategy in (Shortened(RepeatedSampling(3), 2), Shortened(RepeatedSampling(3), 5), RepeatedSampling(3))
    ]
    provider = SearchProvider.__new__(SearchProvider)
    provider._parts, provider._read_answer = (generator, RepeatedSampling(3), None, MajorityVote(), 0), None
    assert max(len(leaf.token_ids) for leaf in provider._search(Problem("Step 1"), (), 4).leaves) == 4
    with pytest.raises(ValueError, match="answers of 0 tokens"):
        Shortened(RepeatedSampling(3), 0)


def test_lm_evals_default_device_falls_back(tiny_folder, monkeypatch, caplog):
    from inferscale.evaluate.lm_eval import SearchModel

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    made = SearchModel(str(tiny_folder), device="cuda:0", n=2)
    assert made.generator.model.device.type == "cpu"
    assert "there is no cuda:0 here: the models run on the CPU" in caplog.text


@pytest.mark.parametrize(("module", "function"), [("lm_eval", "model_class"), ("inspect_ai", "provider")])
def test_without_the_package_the_error_names_the_extra(module, function, monkeypatch):
    monkeypatch.setitem(sys.modules, {"lm_eval": "lm_eval", "inspect_ai": "inspect_ai.model"}[module], None)
    monkeypatch.setitem(sys.modules, {"lm_eval": "lm_eval", "inspect_ai": "inspect_ai"}[module], None)
    plug = importlib.import_module(f"inferscale.evaluate.{module}")
    with pytest.raises(ImportError, match=r"pip install \"inferscale\[(lm-eval|inspect)\]\""):
        getattr(plug, function).__wrapped__()  # without the cache: a class is registered with lm-eval once


class Letters(Generator):
    """Gives letters with numbers: most letters are B, but the number 7 is the most frequent one."""

    def generate(self, requests):
        texts = ["B) 3 cm", "C) 7 cm", "B) 4 cm", "C) 7 cm", "B) 5 cm"]
        return [[Step(text, (1,), finish_reason="eos") for text in texts[: request.n]] for request in requests]


def test_harnesses_vote_over_answers_of_a_kind():
    from inferscale.evaluate.inspect_ai import SearchProvider
    from inferscale.evaluate.lm_eval import SearchModel

    for reader, voted in ((None, "C) 7 cm"), (Choice("ABCD"), "B) 3 cm")):
        model = SearchModel.of(Letters(), RepeatedSampling(5), read_answer=reader)
        assert texts_of(model, "?", ["\nQ"]) == [voted]
        provider = SearchProvider.__new__(SearchProvider)
        provider._parts, provider._read_answer = (Letters(), RepeatedSampling(5), None, MajorityVote(), 0), reader
        assert provider._search(Problem("?")).text == voted
    identities = [
        SearchModel.of(Letters(), RepeatedSampling(5), read_answer=r).search_identity for r in (None, Choice())
    ]
    assert identities[0] != identities[1]


class Chatty(ToyGenerator):
    takes_messages = True


TURNS = [{"role": "system", "content": "Count."}, {"role": "user", "content": "One?"}]


def test_chats_of_lm_eval_keep_their_turns():
    from inferscale.evaluate.lm_eval import SearchModel

    seen = []

    class Judge(ToyReward):
        def score(self, nodes):
            seen.extend(node.problem for node in nodes)
            return super().score(nodes)

    for kind, expected in ((Chatty, Problem(messages=TURNS)), (ToyGenerator, None)):
        model = SearchModel.of(kind(), RepeatedSampling(2), Judge(), BestOfN())
        model.generator.tokenizer = llama_tokenizer()
        model.cache_hook = SimpleNamespace(add_partial=lambda *given: None)
        prompt = model.apply_chat_template(TURNS)
        assert prompt == llama_tokenizer().apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
        begun = model.apply_chat_template([*TURNS, {"role": "assistant", "content": "It"}], add_generation_prompt=False)
        assert begun == prompt + "It"
        model.generate_until([SimpleNamespace(args=(prompt, {"until": []}))], disable_tqdm=True)
        assert set(seen) == {expected or Problem(prompt)}
        seen.clear()


def test_chats_of_inspect_keep_their_turns():
    from inferscale.evaluate.inspect_ai import problem_of

    said = [SimpleNamespace(role=turn["role"], text=turn["content"]) for turn in TURNS]
    assert problem_of(said, Chatty()) == Problem(messages=TURNS)
    assert problem_of(said, ToyGenerator()) == Problem("Count.\n\nOne?")
    assert problem_of(said[1:], Chatty()) == Problem("One?")


def lm_eval_model(strategy, **options):
    from inferscale.evaluate.lm_eval import model_class

    return model_class().of(ToyGenerator(), strategy, ToyReward(), **options)


def lm_eval_task(folder):
    import datasets
    from lm_eval.tasks import TaskManager

    task = {
        "task": "toy", "dataset_path": "unused", "test_split": "test", "output_type": "generate_until",
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(ROWS)},
        "doc_to_text": "Q: {{question}}\nA:", "doc_to_target": "{{answer}}", "generation_kwargs": {"until": ["Q:"]},
        "filter_list": [{"name": "last", "filter": [
            {"function": "regex", "regex_pattern": "answer is (\\d+)"}, {"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    return TaskManager(include_defaults=False, include_path=str(folder)).load([task])["tasks"]


@needs_lm_eval
@foreign_warnings
@pytest.mark.slow
def test_lm_eval_grades_what_the_search_answers(tmp_path):
    from lm_eval.evaluator import evaluate

    results = evaluate(lm_eval_model(RepeatedSampling(4)), lm_eval_task(tmp_path), bootstrap_iters=0, log_samples=True)
    texts = expected_texts(RepeatedSampling(4))
    answered = [sample["resps"][0][0] for sample in results["samples"]["toy"]]
    assert answered == texts
    right = [read_answer(text) == row["answer"] for text, row in zip(texts, ROWS, strict=True)]
    assert results["results"]["toy"]["exact_match,last"] == pytest.approx(sum(right) / len(right))


@needs_lm_eval
@foreign_warnings
@pytest.mark.slow
def test_lm_eval_caches_belong_to_one_search(tmp_path):
    from lm_eval.api.model import CachingLM
    from lm_eval.evaluator import evaluate

    def run(strategy, **options):
        model = lm_eval_model(strategy, **options)
        cached = CachingLM(model, str(tmp_path / "cache.db"))
        evaluate(cached, lm_eval_task(tmp_path), bootstrap_iters=0)
        cached.dbdict.close()
        return model.generator.calls

    assert run(RepeatedSampling(2)) > 0
    assert run(RepeatedSampling(2)) == 0, "all answers came from the cache"
    for changed in ((RepeatedSampling(4), {}), (RepeatedSampling(2), {"seed": 1})):
        with pytest.raises(ValueError, match="filled by another search"):
            run(changed[0], **changed[1])


@needs_lm_eval
@foreign_warnings
@pytest.mark.slow
def test_lm_eval_asks_its_own_model_for_likelihoods(tiny_folder):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from inferscale.evaluate.lm_eval import model_class

    ours = model_class()(pretrained=str(tiny_folder), strategy="sampling", n=2, max_new_tokens=4)
    requests = [Instance("loglikelihood", {}, ("a b", " a"), 0), Instance("loglikelihood", {}, ("b", " the"), 1)]
    assert ours.loglikelihood(requests) == HFLM(pretrained=str(tiny_folder), device="cpu").loglikelihood(requests)
    assert ours.tokenizer_name
    with pytest.raises(ValueError, match="need a transformers model"):
        lm_eval_model(RepeatedSampling(2)).loglikelihood(requests)


@needs_lm_eval
@pytest.mark.slow
def test_lm_eval_by_command(tiny_folder, tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:3]))
    (tmp_path / "tasks" / "toy.yaml").write_text(
        textwrap.dedent(f"""
        task: toy_math
        dataset_path: json
        dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.jsonl"}}}}}
        test_split: test
        output_type: generate_until
        doc_to_text: "Q: {{{{question}}}}\\nA:"
        doc_to_target: "{{{{answer}}}}"
        generation_kwargs: {{until: ["Q:"]}}
        metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
        """)
    )
    arguments = f"pretrained={tiny_folder},strategy=sampling,n=2,max_new_tokens=6"
    command = [
        sys.executable, "-m", "inferscale", "lm-eval", "run", "--model", "inferscale", "--model_args", arguments,
        "--tasks", "toy_math", "--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "out"),
        "--log_samples",
    ]  # fmt: skip
    done = subprocess.run(command, env={**OFFLINE, "HF_HOME": str(tmp_path / "hf")}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = (tmp_path / "out").rglob("results*.json")
    assert "exact_match,none" in json.loads(found.read_text())["results"]["toy_math"]


@needs_inspect
@foreign_warnings
@pytest.mark.slow
def test_inspect_grades_what_the_search_answers(tmp_path):
    from inspect_ai import Task, eval  # noqa: A004
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import includes

    from inferscale.evaluate.inspect_ai import model_of

    prompts = [PROMPT.format(row["question"]) for row in ROWS]
    samples = [Sample(input=p, target=f"answer is {row['answer']}") for p, row in zip(prompts, ROWS, strict=True)]
    model = model_of(ToyGenerator(), REBASE(4), ToyReward())
    (log,) = eval(Task(dataset=samples, scorer=includes()), model=model, display="none", log_dir=str(tmp_path))
    assert log.status == "success", log.error
    texts = expected_texts(REBASE(4))
    assert [sample.output.completion for sample in log.samples] == texts
    right = [read_answer(text) == row["answer"] for text, row in zip(texts, ROWS, strict=True)]
    assert log.results.scores[0].metrics["accuracy"].value == pytest.approx(sum(right) / len(right))
    about = log.samples[0].output.metadata
    assert about["strategy"] == repr(REBASE(4))
    assert about["cost"]["generator_flops"] > 0
    result = solve(prompts[0], REBASE(4), ToyGenerator(), reward_model=ToyReward())
    assert log.samples[0].output.usage.output_tokens == result.cost.tokens


@needs_inspect
@pytest.mark.slow
def test_inspect_by_name(tiny_folder, tmp_path):
    code = textwrap.dedent(f"""
        import inferscale.evaluate.inspect_entry
        from inspect_ai import Task, eval
        from inspect_ai.dataset import Sample
        from inspect_ai.scorer import includes
        task = Task(dataset=[Sample(input="a b", target="x")], scorer=includes())
        options = dict(strategy="sampling", n=2, max_new_tokens=5)
        where = dict(display="none", log_dir={str(tmp_path)!r})
        (log,) = eval(task, model="inferscale/{tiny_folder}", model_args=options, **where)
        assert log.status == "success", log.error
        assert log.samples[0].output.metadata["trajectories"] == 2
    """)
    done = subprocess.run([sys.executable, "-c", code], env=OFFLINE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_plug_ins_are_found_where_they_are_declared():
    root = Path(__file__).parent.parent
    assert (root / "src/inferscale/evaluate/inspect_entry.py").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.import_module("inferscale.evaluate.lm_eval")
        importlib.import_module("inferscale.evaluate.inspect_ai")


def test_answers_for_inspect_end_at_the_stops_of_the_task(monkeypatch):
    from inferscale.evaluate.inspect_ai import SearchProvider

    made = object.__new__(SearchProvider)
    made.model_name, made._read_answer = "toy", None
    made._parts = (ToyGenerator(), RepeatedSampling(3), None, MajorityVote(), 0)
    api = SimpleNamespace(
        ModelOutput=SimpleNamespace(from_content=lambda name, told: SimpleNamespace(completion=told)),
        ModelUsage=lambda **counts: counts,
    )
    monkeypatch.setitem(sys.modules, "inspect_ai", SimpleNamespace(model=api))
    monkeypatch.setitem(sys.modules, "inspect_ai.model", api)
    asked = [SimpleNamespace(role="user", text="How many?")]

    def answer(**config):
        return asyncio.run(made.generate(asked, [], "none", SimpleNamespace(**config)))

    whole, cut = answer(), answer(stop_seqs=["answer is"], logprobs=None, num_choices=1)
    assert cut.completion == whole.completion.partition("answer is")[0] != whole.completion
    assert (whole.metadata["answer"] is None, cut.metadata["answer"]) == (False, None)
    for config in ({"num_choices": 2}, {"presence_penalty": 0.5}, {"logprobs": True}):
        with pytest.raises(ValueError, match=f"{next(iter(config))}=.*leave it out of the task"):
            answer(**config)
