"""Whoever writes a cost writes the one documented form."""

import json
import sys
from importlib.resources import files
from types import SimpleNamespace

import pytest

import inferscale as isc
from inferscale.cost import Cost
from inferscale.evaluate import run_evaluation
from inferscale.evaluate.inspect_ai import SearchProvider
from inferscale.evaluate.lm_eval import SearchModel
from inferscale.generators import HFGenerator
from inferscale.serve import Service
from inferscale.testing import ToyGenerator, ToyReward
from tests.serve_tools import ask, serving
from tests.tiny_models import byte_tokenizer, tiny_model

jsonschema = pytest.importorskip("jsonschema", reason="the extra test brings it with nbclient")
SCHEMA = json.loads(files("inferscale").joinpath("cost.schema.json").read_text())
PROMPT = "How many?"


def check(row):
    jsonschema.Draft202012Validator(SCHEMA).validate(row)
    return Cost.from_dict(row)


def expected(**options):
    return isc.solve(PROMPT, isc.REBASE(4), ToyGenerator(), reward_model=ToyReward(), **options).cost.without_seconds()


def of_a_result(folder):
    result = isc.solve(PROMPT, isc.REBASE(4), ToyGenerator(), reward_model=ToyReward())
    return json.loads(result.save(folder / "result.json").read_text())["cost"]


def of_a_run(folder):
    run_evaluation([PROMPT], isc.REBASE(4), ToyGenerator(), folder / "run", reward_model=ToyReward())
    return json.loads((folder / "run" / "records.jsonl").read_text())["result"]["cost"]


def of_a_server(folder):
    with serving(Service(ToyGenerator(), ToyReward(), strategy="rebase:4")) as server:
        answer = ask(server, PROMPT)
    assert answer["choices"][0]["inferscale"]["cost"] == answer["inferscale"]["cost"]
    return answer["inferscale"]["cost"]


def of_lm_eval(folder):
    model = SearchModel.of(ToyGenerator(), isc.REBASE(4), ToyReward())
    model.cache_hook, model.costs = SimpleNamespace(add_partial=lambda *given: None), folder / "costs.jsonl"
    request = SimpleNamespace(args=(PROMPT, {"until": []}), task_name="gsm8k", doc_id=3)
    model.generate_until([request], disable_tqdm=True)
    row = json.loads(model.costs.read_text())
    assert (row["task"], row["doc_id"]) == ("gsm8k", 3)
    return row["cost"]


def of_inspect(folder):
    api = SimpleNamespace(
        ModelOutput=SimpleNamespace(from_content=lambda name, told: SimpleNamespace()),
        ModelUsage=lambda **counts: counts,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "inspect_ai", SimpleNamespace(model=api))
        patch.setitem(sys.modules, "inspect_ai.model", api)
        made = object.__new__(SearchProvider)
        made.model_name, made._read_answer = "toy", None
        made._parts = (ToyGenerator(), isc.REBASE(4), ToyReward(), isc.MajorityVote(), 0)
        return made._output(made._search(isc.Problem(PROMPT))).metadata["cost"]


@pytest.mark.parametrize("written", [of_a_result, of_a_run, of_a_server, of_lm_eval, of_inspect])
def test_every_writer_writes_the_one_form(written, tmp_path):
    budget = isc.Budget(tokens=100_000, seconds=600) if written is of_a_server else None
    assert check(written(tmp_path)).without_seconds() == expected(budget=budget)


def test_a_cost_with_everything_fits_the_schema():
    meter = SimpleNamespace(source="steady", read=iter(range(99)).__next__)
    generator = HFGenerator(tiny_model(), byte_tokenizer(), max_new_tokens=6)
    pair = {"small": generator, "large": generator}
    cost = isc.solve(PROMPT, isc.RepeatedSampling(2), pair, reward_model=ToyReward(), energy=meter).cost
    assert cost.bytes > 0
    assert cost.joules > 0
    assert check(json.loads(json.dumps(cost.to_dict()))) == cost


def test_the_schema_names_every_field():
    row = Cost().to_dict()
    assert set(SCHEMA["required"]) == set(SCHEMA["properties"]) == set(row)
    assert all(
        text.get("description") for name, text in SCHEMA["properties"].items() if name not in ("format", "version")
    )
    for damaged in ({**row, "tokens": -1}, {**row, "convention": "2N"}, {**row, "more": 1}, {**row, "version": 2}):
        with pytest.raises(jsonschema.ValidationError):
            check(damaged)
