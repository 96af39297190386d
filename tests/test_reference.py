"""Every public object has a page in the reference, under one name, with a text that says what it is."""

import ast
import inspect
import pkgutil
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


AWAITED = {
    # evaluate
    "evaluate.ChangedRunError",
    "evaluate.GradingStats",
    "evaluate.PromptStyle",
    "evaluate.Run",
    "evaluate.RunLockedError",
    "evaluate.Verdict",
    "evaluate.load_examples",
    "evaluate.prompt_style",
    "evaluate.inspect_ai.model_of",
    "evaluate.lm_eval.model_class",
    # scaling
    "scaling.Choice",
    "scaling.Configuration",
    "scaling.CostName",
    "scaling.CoverageFit",
    "scaling.CurvePoint",
    "scaling.Measured",
    "scaling.PairedDifference",
    "Plan",
    "scaling.Prediction",
    "scaling.Race",
    "scaling.Runner",
    "scaling.SizeFit",
    "scaling.Standing",
    "scaling.Tried",
    "scaling.VOTES",
    "scaling.Vote",
    "scaling.Winner",
    "scaling.candidates",
    "scaling.curve_of_results",
    "scaling.fit_optimal_size",
    # functional
    "functional.Array",
    "functional.ArrayLike",
    "functional.Reduction",
    "functional.Resampling",
    "functional.Rounding",
    "functional.ets_selection",
    # flops
    "flops.CONVENTIONS",
    "flops.CalibrationError",
    "flops.Energy",
    "flops.FlopCallback",
    "flops.Flops",
    "flops.FlopsWarning",
    "flops.ModelSpec",
    "flops.PEAK_BANDWIDTH",
    "flops.PEAK_FLOPS",
    "flops.PackedRows",
    "flops.UnknownArchitectureError",
    "flops.VerificationError",
    "flops.measured_bandwidth",
    "flops.measured_peak",
    "flops.register_flop_formula",
    "flops.report_tokens",
    # quiet_star
    "quiet_star.PUBLISHED_OBJECTIVE",
    "quiet_star.Batch",
    "quiet_star.EveryToken",
    "quiet_star.HighEntropy",
    "quiet_star.Never",
    "quiet_star.StepStarts",
    "quiet_star.ThinkingRule",
    "quiet_star.ThoughtUtility",
    "quiet_star.TokenContext",
    "quiet_star.UnsupportedModelError",
    "quiet_star.WithThoughts",
    "quiet_star.advantages",
    "quiet_star.mix",
    "quiet_star.quiet_star_loss",
    "quiet_star.train.drive",
    "quiet_star.train.aligned_batch",
    "quiet_star.train.span_batches",
    # viz
    "viz.MOST_ANSWERED",
    "viz.MOST_VOTES",
    "viz.Mark",
    "viz.RAMP",
    "viz.Scale",
    "viz.UNSCORED",
    "viz.Votes",
    "viz.growing",
    "viz.marks_of",
    "viz.one_line",
    "viz.page",
    "viz.plot_coverage",
    "viz.plot_optimal_size",
    "viz.plot_plan",
    "viz.plot_votes",
    "viz.readable_marks",
    "viz.svg",
    "viz.tidy_rows",
    "viz.votes_of",
    # zoo
    "zoo.ModelCard",
    "zoo.card",
    "zoo.name_of",
    "zoo.simulated_score",
    "zoo.task.LEVELS",
    "zoo.task.Split",
    "zoo.task.check_steps",
    "zoo.task.level_of",
    "zoo.task.problem_stream",
    "zoo.task.reference",
    "zoo.task.split_of",
    "zoo.task.stated_answer",
}
"""Objects without an example: a list that only shrinks."""


def test_every_object_has_an_example():
    """In its docstring, or in a block of a page that uses it; both are run."""
    used = PAGES["uses"](INDEX)
    missing = {
        name.removeprefix("inferscale.")
        for subject in INDEX.values()
        for name, item in subject.items()
        if name not in used and not PAGES["EXAMPLE"].search(PAGES["text_of"](name, item))
    }
    assert missing <= AWAITED


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


def test_a_page_shows_one_example():
    use = PAGES["Use"]("howto/serve", "isc.solve()")
    assert "code-block" in PAGES["below"]([use], True)
    assert "code-block" not in PAGES["below"]([use], False)
