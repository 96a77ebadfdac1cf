"""Tasks: every problem's steps lead to its answer by an independent check, and train and held-out share no wording."""

import json
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import fuzz
from quietstar import QuietStarError
from quietstar.tasks import conversion, registry

OWN = [name for name in registry.names() if name in registry._OWN]


def some(name, count=60, **options):
    return list(registry.generate(name, count, **options))


@pytest.mark.parametrize("name", OWN)
def test_as_many_of_each_number_of_steps_and_none_twice(name):
    found = some(name, 60, steps=(3, 5))
    assert Counter(one.steps for one in found) == {3: 20, 4: 20, 5: 20}
    assert len({one.prompt for one in found}) == 60


@pytest.mark.parametrize("name", OWN)
def test_a_longer_run_begins_with_the_same_problems_and_another_seed_gives_others(name):
    assert some(name, 60)[:20] == some(name, 20)
    assert some(name, 20, seed=1) != some(name, 20)


@pytest.mark.parametrize("name", OWN)
def test_train_and_heldout_share_no_sentence(name):
    train = {re.sub(r"\d+|\b[a-k]{1,2}\b", "#", s) for one in some(name, 100, steps=(2, 6))
             for s in re.split(r"(?<=[.?:;])\s", one.prompt)}  # fmt: skip
    for one in some(name, 100, steps=(2, 6), split="heldout"):
        for sentence in re.split(r"(?<=[.?:;])\s", one.prompt):
            if re.search(r"[A-Za-z]{3}", sentence):  # bare tables have no wording
                assert re.sub(r"\d+|\b[a-k]{1,2}\b", "#", sentence) not in train


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_word_problems_hold_true_equations_in_a_chain(split):
    for one in some("words", 400, steps=(1, 8), split=split):
        equations = one.thought.split(", ")
        assert len(equations) == one.steps
        value = None
        for equation in equations:
            left, right = equation.split("=")
            first, sign, second = re.fullmatch(r"(\d+)([-+*/])(\d+)", left).groups()
            assert value is None or first == value
            assert eval(left.replace("/", "//")) == int(right) and (sign != "/" or int(first) % int(second) == 0)
            assert 1 <= int(right) <= 200
            value = right
        assert one.answer == value
        assert "{" not in one.prompt and "  " not in one.prompt
        for equation in equations:  # every operand can be read in the story, as a digit or as a word
            operand = re.split(r"[-+*/=]", equation)[1]
            spoken = {"2": "twice", "3": "three times", "4": "four times", "5": "five times"}.get(operand, operand)
            assert re.search(rf"\b{operand}\b", one.prompt) or spoken in one.prompt


def test_running_arithmetic():
    for one in some("arithmetic", 200, steps=(1, 8)):
        first, *operations = re.search(r": (.*) =", one.prompt)[1].split()
        value, seen = int(first), []
        for operation in operations:
            value = eval(f"{value}{operation}") % 10
            seen.append(str(value))
        assert one.thought == " ".join(seen) and one.answer == seen[-1]


def test_odometer_counts_in_base_six():
    place = {"left": 36, "middle": 6, "right": 1}
    for one in some("odometer", 200, steps=(1, 8)):
        value = int(re.search(r"show (\d+)", one.prompt)[1], 6)
        for wheel, by in re.findall(r"(left|middle|right) \+(\d)", one.prompt):
            value = (value + place[wheel] * int(by)) % 216
        assert int(one.answer, 6) == value


def test_table_is_followed():
    for one in some("table", 200, steps=(1, 8)):
        to = dict(re.findall(r"\b([a-k])([a-k])\b", one.prompt.split(".")[0]))
        assert len(to) == len(set(to.values())) == 10
        letter = re.search(r"From ([a-k])", one.prompt)[1]
        for seen in one.thought.split():
            letter = to[letter]
            assert seen == letter
        assert one.answer == letter


def test_permutations_are_composed():
    for one in some("permutation", 100, steps=(1, 6)):
        moves = one.prompt.split(" by ")[1].rstrip(":").split()
        index = list(range(5))
        for move in moves:
            index = [index[int(place) - 1] for place in move]
        assert one.answer == "".join(str(i + 1) for i in index)


def test_cups_are_swapped():
    for one in some("cups", 200, steps=(2, 8)):
        cups = [False] * 3
        cups[int(re.search(r"under cup (\d)", one.prompt)[1]) - 1] = True
        for a, b in re.findall(r"(\d)-(\d)", one.prompt):
            cups[int(a) - 1], cups[int(b) - 1] = cups[int(b) - 1], cups[int(a) - 1]
        assert one.answer == str(cups.index(True) + 1)


@pytest.mark.parametrize(
    ("options", "word"),
    [(dict(steps=(0, 3)), "steps"), (dict(steps=(4, 3)), "steps"), (dict(split="test"), "split"),
     (dict(steps=(1, 65)), "64")],
)  # fmt: skip
def test_impossible_requests_are_one_line(options, word):
    with pytest.raises(QuietStarError, match=word):
        registry.generate("words", 1, **options)


def test_unknown_tasks_and_exhausted_ones():
    with pytest.raises(QuietStarError, match="words, arithmetic"):
        registry.generate("wrods", 1)
    with pytest.raises(QuietStarError, match="no more different questions"):
        some("cups", 1000, steps=(1, 1))


@pytest.mark.parametrize(
    ("expression", "steps", "value"),
    [("((13.0+5.0)-10.0)", ["13+5=18", "18-10=8"], 8.0), ("( 76.0 - 25.0 )", ["76-25=51"], 51.0),
     ("8.0/5.0", ["8/5=1.6"], 1.6), ("2*(3+4)*5", ["3+4=7", "2*7=14", "14*5=70"], 70.0)],
)  # fmt: skip
def test_equations_of_an_expression(expression, steps, value):
    assert conversion.equations(expression) == (steps, value)


@pytest.mark.parametrize(
    ("equation", "expression"),
    [("X=((13.0+5.0)-10.0)", "((13.0+5.0)-10.0)"), ("X = 70 - 27", "70-27"), ("70-x=27", "70-27"), ("28+x=54", "54-28"),
     ("x/3=5", "5*3"), ("x-4=9", "9+4"), ("12/x=4", "12/4"), ("3*x=12", "12/3"), ("x*3=12", "12/3"), ("2+2=x", "2+2")],
)  # fmt: skip
def test_an_equation_is_solved_for_its_unknown(equation, expression):
    assert conversion.solved(equation) == expression


@fuzz(200)
@given(st.text(alphabet="0123456789.+-*/() x=_[]**", max_size=30))
def test_any_expression_gives_steps_or_a_reason(text):
    for function in (conversion.equations, conversion.solved):
        try:
            function(text)
        except conversion.Unusable:
            pass
        except OverflowError as error:
            pytest.fail(str(error))


def test_gsm8k_notes_become_a_thought_and_reasons_are_counted():
    rows = [
        {"question": "A  b ?", "answer": "She sold 48/2 = <<48/2=24>>24.\nIn all <<48+24=72>>72.\n#### 72"},
        {"question": "c", "answer": "none\n#### 3"},
        {"question": "d", "answer": "<<1+1=2>>2\n#### 3"},
    ]
    left_out = Counter()
    found = list(conversion.convert(rows, "gsm8k", left_out))
    assert [(one.prompt, one.thought, one.answer, one.steps) for one in found] == [
        ("A b?", "48/2=24, 48+24=72", "72", 2)
    ]
    assert sum(left_out.values()) == 2
    with pytest.raises(QuietStarError, match="row 1"):
        list(conversion.convert([{"q": 1}], "gsm8k", left_out))


def test_the_command(run, tmp_path):
    out = tmp_path / "words.jsonl"
    assert run("tasks", "make", "words", "-n", "6", "--steps", "2-3", "--out", str(out))[0] == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["steps"] for row in rows] == [2, 3] * 3 and set(rows[0]) >= {"prompt", "thought", "answer"}
    code, shown, _ = run("tasks", "make", "cups", "-n", "2")
    assert code == 0 and len(shown.splitlines()) == 2
    assert "permutation" in run("tasks", "list")[1]
    source = tmp_path / "gsm.jsonl"
    source.write_text(json.dumps({"question": "q", "answer": "<<1+1=2>>\n#### 2"}) + "\n")
    assert json.loads(run("tasks", "convert", str(source), "--format", "gsm8k")[1])["thought"] == "1+1=2"
    for bad in (["make", "nope"], ["make", "words", "--steps", "x"], ["convert", str(tmp_path), "--format", "gsm8k"],
                ["convert", str(source), "--format", "x"], ["make", "words", "-n", "0"]):  # fmt: skip
        code, _, err = run("tasks", *bad)
        assert code == 2 and len(err.strip().splitlines()) == 1
