r"""Thoughts: one setting that readers, strategies and results share, found from the tokenizer where it can be."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferscale import Generator, HFGenerator, Node, Problem, RepeatedSampling, Solver, Step, Thinking, solve
from inferscale.answers import Code, answer_of, reader_of
from inferscale.engine.result import SearchResult
from inferscale.runtime.prompts import TextEncoder
from inferscale.strategies import AdaptiveConsistency, BudgetForcing
from inferscale.testing import ToyGenerator
from inferscale.thinking import FORMS, NO_THINKING, form_of
from tests.tiny_models import byte_tokenizer, grow, root, tiny_model

CHAIN = r"<think>Is it \boxed{12}? No: 3*5.</think>The answer is 15."
PLAIN, INSIDE = Thinking(), Thinking(prefilled=True)


class Writes(Generator):
    """Writes one text, whatever it is asked."""

    def identity(self):
        return {}

    def __init__(self, text, reason="eos", thinking=None):
        self.step, self.thinking = Step(text, (1,), finish_reason=reason), thinking

    def generate(self, requests):
        return [[self.step] * request.n for request in requests]


# -- the markers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("thinking", "text", "thoughts", "final"),
    [
        (PLAIN, "<think>a</think>b", "a", "b"),
        (PLAIN, "<think>\na\n</think>\n\nb\n", "\na\n", "b\n"),
        (PLAIN, "<think>a</think> b", "a", "b"),
        (PLAIN, "b", "", "b"),
        (PLAIN, "\n  b", "", "\n  b"),
        (PLAIN, "", "", ""),
        (PLAIN, "a</think>b", "a", "b"),
        (PLAIN, "<think>a", "a", None),
        (PLAIN, "so <think>a", "a", None),
        (PLAIN, "<think>a</think>", "a", ""),
        (PLAIN, "<think>a</think>b<think>c</think>d", "a\nc", "d"),
        (PLAIN, "<think>a</think>b<think>c</think>\n", "a\nc", "b"),
        (PLAIN, "<think>a<think>b</think>c", "a<think>b", "c"),
        (PLAIN, "<think>a</think>\n\n    return b", "a", "    return b"),
        (INSIDE, "a</think>b", "a", "b"),
        (INSIDE, "<think>a</think>b", "a", "b"),
        (INSIDE, "a", "a", None),
        (INSIDE, "", "", None),
        (NO_THINKING, "<think>a</think>b", "", "<think>a</think>b"),
        (Thinking("", "###"), "a###b", "a", "b"),
    ],
)
def test_a_text_is_thoughts_and_a_final_part(thinking, text, thoughts, final):
    assert thinking.split(text) == (thoughts, final)


@given(st.lists(st.sampled_from(["<think>", "</think>", "a", "\n", " b "])), st.booleans())
def test_pieces_cover_all_but_markers(words, prefilled):
    text = "".join(words)
    thinking = Thinking(prefilled=prefilled)
    pieces = list(thinking.pieces(text))
    ends = [0, *(place for _, start, end in pieces for place in (start, end)), len(text)]
    assert ends == sorted(ends)
    gaps = "".join(text[a:b] for a, b in zip(ends[::2], ends[1::2], strict=True))
    assert not gaps.replace("<think>", "").replace("</think>", "").strip()
    assert all("</think>" not in text[start:end] for _, start, end in pieces)
    assert (thinking.split(text)[1] is None) == (not thinking.final_pieces(text))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"start": None}, TypeError, "text of the marker"),
        ({"end": ""}, ValueError, "what ends"),
        ({"start": "", "end": "", "prefilled": True}, ValueError, "what ends"),
        ({"start": "#", "end": "#"}, ValueError, "differ"),
    ],
)
def test_markers_that_mark_nothing_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        Thinking(**options)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.start)
def test_a_text_shows_its_form(form):
    assert form_of(f"so {form.start}a{form.end}b") == form
    assert form_of(f"a{form.end}b") == form
    assert form.split(f"{form.start}a{form.end}b") == ("a", "b")
    assert form.split(f"a{form.forced_end}b")[1] == "b"
    assert answer_of(Code(), f"{form.start}x = 1{form.end}x = 2") == "x = 2"


# -- readers, results and strategies -----------------------------------------------------------------------------------


def test_three_chains_vote_for_what_they_say_after_thinking():
    result = solve("?", RepeatedSampling(3), Writes(CHAIN))
    assert [t.answer for t in result.trajectories] == ["15"] * 3
    assert result.answer == "15"
    assert result.final_text == "The answer is 15."
    assert result.selected.thoughts == result.selected_leaf.thoughts == r"Is it \boxed{12}? No: 3*5."


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        (CHAIN, None, "15"),
        (CHAIN, Thinking(), "15"),
        (CHAIN, False, "12"),
        (CHAIN, Thinking("[THINK]", "[/THINK]"), "12"),
        (r"Is it \boxed{12}?", None, "12"),
        (r"Is it \boxed{12}?", INSIDE, None),
        ("12? </think>The answer is 15.", INSIDE, "15"),
        (r"<think>Is it \boxed{12}?", None, None),
        ("~12? No.~~The answer is 15.", Thinking("~", "~~"), "15"),
    ],
)
def test_the_setting_decides_what_is_read(text, thinking, answer):
    assert solve("?", RepeatedSampling(2), Writes(text), thinking=thinking).answer == answer


def test_a_function_is_given_the_final_part():
    seen = []
    solve("?", RepeatedSampling(1), Writes(CHAIN), read_answer=seen.append)
    solve("?", RepeatedSampling(1), Writes(CHAIN), read_answer=seen.append, thinking=False)
    solve("?", RepeatedSampling(1), Writes("<think>hm"), read_answer=seen.append)
    assert seen == ["The answer is 15.", CHAIN]


@pytest.mark.parametrize("reason", ["length", "budget"])
def test_a_trace_that_is_cut_within_thoughts_abstains(reason):
    assert solve("?", RepeatedSampling(2), Writes(r"<think>So \boxed{12}. Now", reason)).answer is None
    cut = r"<think>a</think>So \boxed{12}. Now"
    assert solve("?", RepeatedSampling(2), Writes(cut, reason)).answer == "12"


def test_the_setting_comes_from_the_generator_unless_it_is_given():
    inside = Writes(r"Is it \boxed{12}?", thinking=INSIDE)
    assert Solver(RepeatedSampling(1), inside).markers == INSIDE
    assert solve("?", RepeatedSampling(1), inside).answer is None
    assert solve("?", RepeatedSampling(1), inside, thinking=False).answer == "12"
    assert Solver(RepeatedSampling(1), inside, thinking=False).markers == NO_THINKING
    assert Solver(RepeatedSampling(1), inside, thinking=Thinking()).markers == INSIDE  # its template opens thoughts
    assert Solver(RepeatedSampling(1), inside, thinking=Thinking("[", "]")).markers == Thinking("[", "]")
    with pytest.raises(TypeError, match="give Thinking"):
        Solver(RepeatedSampling(1), inside, thinking="<think>")


def test_a_prompt_that_ends_inside_thoughts_begins_them():
    text = r"Is it \boxed{12}?"
    assert solve("How many?\n<think>\n", RepeatedSampling(1), Writes(text)).answer is None
    assert solve("How many? [THINK]", RepeatedSampling(1), Writes(text)).answer is None
    assert solve("How many? [THINK]", RepeatedSampling(1), Writes(text), thinking=Thinking()).answer == "12"
    assert solve("What does <think> mean?", RepeatedSampling(1), Writes(text)).answer == "12"


@pytest.mark.parametrize(
    ("prefill", "text", "thoughts", "answer"),
    [
        ("<think>\nLet me see:", r" \boxed{12}?", r" \boxed{12}?", None),
        ("<think>\nLet me see:", r" \boxed{12}? </think>The answer is 15.", r" \boxed{12}? ", "15"),
        ("<think>\n12?</think>The", " answer is 15.", "", "15"),
        ("The answer is", " 15.", "", "15"),
        ("[THINK]", r"\boxed{12}?", r"\boxed{12}?", None),
    ],
)
@pytest.mark.parametrize("thinking", [None, "generator"])
def test_a_turn_that_is_gone_on_with_may_end_inside_thoughts(prefill, text, thoughts, answer, thinking):
    problem = Problem(messages=[{"role": "user", "content": "?"}, {"role": "assistant", "content": prefill}])
    own = None if thinking is None else Thinking("[THINK]", "[/THINK]") if "[" in prefill else INSIDE
    result = solve(problem, RepeatedSampling(1), Writes(text, thinking=own))
    assert result.answer == answer
    assert result.selected.thoughts == thoughts


def test_a_saved_result_keeps_the_setting(tmp_path):
    result = solve("?", RepeatedSampling(2), Writes("12? </think>15"), thinking=INSIDE)
    again = SearchResult.load(result.save(tmp_path / "result.json"))
    assert again.root.thinking == again.leaves[0].thinking == again.selected.thinking == INSIDE
    assert again.final_text == result.final_text == "15"
    assert again.to_dict() == result.to_dict()
    older = result.to_dict()
    del older["thinking"]
    assert SearchResult.from_dict(older).root.thinking is None


def test_a_journal_knows_the_setting(tmp_path):
    journal = tmp_path / "journal"
    first = solve("?", RepeatedSampling(1), Writes(CHAIN), thinking=False, journal=journal)
    assert solve("?", RepeatedSampling(1), Writes("none"), thinking=False, journal=journal).text == first.text
    with pytest.raises(ValueError, match=r"thinking was 'Thinking' and is None"):
        solve("?", RepeatedSampling(1), Writes(CHAIN), journal=journal)


def test_strategies_that_vote_while_they_search_read_after_thinking():
    class Undecided(Generator):
        """Thoughts that all name 12, and answers that differ."""

        def generate(self, requests):
            return [
                [
                    Step(f"<think>\\boxed{{12}}</think>The answer is {draw}.", (1,), finish_reason="eos")
                    for draw in range(request.first, request.first + request.n)
                ]
                for request in requests
            ]

    assert len(solve("?", AdaptiveConsistency(8), Undecided()).leaves) == 8
    assert len(solve("?", AdaptiveConsistency(8), Undecided(), thinking=False).leaves) == 4


@pytest.mark.parametrize("form", [*FORMS, Thinking("<a>", "</a>", prefilled=True)], ids=lambda form: form.start)
def test_budget_forcing_reads_the_setting(form):
    class Thinks(Generator):
        """Ends its thoughts once "Wait" or the second line has come."""

        def generate(self, requests):
            return [[self.sample(request)] for request in requests]

        def sample(self, request):
            text = request.node.text + request.forced
            if form.end in text:
                return Step(request.forced + "The answer is 5.", (1,), finish_reason="eos")
            new = f"{form.forced_end}The answer is 5." if text.count("\n") >= 2 else "hm\n"
            return Step(request.forced + new, (1,), finish_reason="eos" if form.end in new else "step")

    waited = solve("?", BudgetForcing(num_waits=1, wait="Wait\n"), Thinks(), thinking=form)
    assert waited.text == f"hm\nhm\nWait\n{form.forced_end}The answer is 5."
    assert waited.answer == "5"
    short = solve("?", BudgetForcing(1, num_waits=0, final=" So "), Thinks(), thinking=form)
    assert short.text == f"hm\n{form.forced_end} So The answer is 5."
    assert short.selected.thoughts.strip() == "hm"


def test_budget_forcing_without_thoughts_ends_by_the_answer():
    strategy = BudgetForcing(None, num_waits=1, wait="\nWait, ")
    assert "Wait" in solve("How many?", strategy, ToyGenerator(), thinking=False).text
    capped = solve("How many?", BudgetForcing(3, num_waits=0, final=" So "), ToyGenerator(), thinking=False)
    assert " So " in capped.text
    assert "</think>" not in capped.text


# -- tokenizers --------------------------------------------------------------------------------------------------------

TURN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}"
TEMPLATES = {
    # in the manner of Qwen3: an empty block where thinking is switched off, else the model opens thoughts itself
    "qwen3": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
        Thinking(),
    ),
    # in the manner of DeepSeek-R1: the generation prompt opens thoughts
    "r1": (TURN + "{% if add_generation_prompt %}<assistant><think>\n{% endif %}", INSIDE),
    # in the manner of SmolLM3 without thinking: they are opened and closed
    "closed": (TURN + "{% if add_generation_prompt %}<assistant><think>\n\n</think>\n{% endif %}", Thinking()),
    # in the manner of Phi-4-reasoning: the system turn speaks of the markers
    "told": (
        "<system>Put thoughts into <think> and </think>, beginning with <think></system>" + TURN + "<assistant>",
        Thinking(),
    ),
    # in the manner of gpt-oss
    "harmony": (
        "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}"
        "<|message|>{{ m.content }}<|end|>{% endfor %}{# <|channel|>analysis<|message|> is left out #}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        Thinking("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ),
    "magistral": ("[SYSTEM]First [THINK]your thoughts[/THINK][/SYSTEM]" + TURN, Thinking("[THINK]", "[/THINK]")),
    "seed": (TURN + "{# <seed:think> #}<assistant><seed:think>", Thinking("<seed:think>", "</seed:think>", True)),
    "none": (TURN + "<assistant>", None),
}


@cache
def model():
    return tiny_model(vocab_size=340)


def tokenizer(template=None, special=()):
    from copy import deepcopy

    own = deepcopy(byte_tokenizer())
    own.add_special_tokens({"additional_special_tokens": list(special)})
    own.chat_template = template
    return own


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates_show_the_markers(name):
    template, expected = TEMPLATES[name]
    generator = HFGenerator(model(), tokenizer(template))
    assert generator.thinking == expected


@pytest.mark.parametrize(("switch", "prefilled"), [({}, True), ({"enable_thinking": False}, False)])
def test_options_of_the_template_switch_thoughts(switch, prefilled):
    opens = (
        "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n{% endif %}"
    )
    own = tokenizer(f"{TURN}<assistant>{opens}")
    assert HFGenerator(model(), own, chat_template_kwargs=switch).thinking == Thinking(prefilled=prefilled)


def test_a_template_that_is_not_used_says_nothing_of_the_prompt():
    assert HFGenerator(model(), tokenizer(TEMPLATES["r1"][0]), chat_template=False).thinking == Thinking()


def test_the_vocabulary_shows_the_markers():
    assert HFGenerator(model(), tokenizer(None, ("<think>", "</think>"))).thinking == Thinking()
    assert HFGenerator(model(), tokenizer(None, ("[THINK]", "[/THINK]"))).thinking == Thinking("[THINK]", "[/THINK]")
    assert HFGenerator(model(), tokenizer(None, ("[THINK]",))).thinking is None


HARMONY = ("<|start|>", "<|end|>", "<|channel|>", "<|message|>")


@pytest.mark.parametrize(
    ("template", "special", "forced", "text"),
    [
        (None, ("[THINK]", "[/THINK]", "<|x|>"), "[THINK]a<|x|> b[/THINK] 12", None),
        (None, ("<think>", "</think>"), " a</think> 12\n", " a</think> 12\n"),
        ("harmony", HARMONY, "a<|end|><|start|>assistant<|channel|>final<|message|> 12", None),
    ],
)
def test_markers_that_are_control_tokens_stay_text(template, special, forced, text):
    generator = HFGenerator(model(), tokenizer(template and TEMPLATES[template][0], special), max_new_tokens=40)
    (node,) = grow(generator, root("the"), forced=forced, max_tokens=3)
    assert node.text.startswith(text or forced)
    (child,) = grow(generator, node, max_tokens=3) if not node.is_finished else (node,)
    assert child.text.startswith(node.text)
    assert node.thoughts == generator.thinking.thoughts(text or forced)
    for other in special:
        assert (other in node.text) == (other in (text or forced))


def test_a_given_setting_keeps_its_control_tokens():
    own = Thinking("<|a|>", "<|b|>")
    generator = HFGenerator(model(), tokenizer(None, ("<|a|>", "<|b|>")), max_new_tokens=40)
    for thinking in (own, None):
        start = Node(Problem("the"), key=1, thinking=thinking)
        (node,) = grow(generator, start, forced="<|a|> x<|b|> 12", max_tokens=2)
        assert node.text.startswith("<|a|> x<|b|> 12")  # what is forced is the head of the step, whatever it holds
        assert node.final_text.startswith("<|a|>" if thinking is None else "12")
    decode = generator._runner.branches.text.decode
    ids = TextEncoder(generator.tokenizer).raw("<|a|> x<|b|> 12")  # and what is sampled is shown without
    assert [decode(ids, True, thinking) for thinking in (own, None)] == ["<|a|> x<|b|> 12", " x 12"]


def test_a_model_that_closes_thoughts_votes_for_what_follows():
    template = TEMPLATES["r1"][0]
    result = solve("?", RepeatedSampling(2), HFGenerator(model(), tokenizer(template), max_new_tokens=8))
    assert result.root.thinking == INSIDE
    assert result.answer is None  # random text never leaves its thoughts
    assert result.final_text is None


def test_an_answer_that_further_thoughts_take_back_is_not_read():
    text = "<think>2 + 3</think>The answer is 6.\n<think>No: 2 + 3 = 5.</think>The answer is 5."
    assert answer_of(reader_of("number"), text) == "5"
