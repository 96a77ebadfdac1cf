"""Below a run's noise floor nothing is called a change, and the floor is named wherever changes are."""

from __future__ import annotations

import json

import pytest

from quietstar.evals import statistics
from quietstar.events import End, NoiseFloor, Trace
from quietstar.record.store import Store
from quietstar.viewer import export, pages
from recorded import start, thought, token, trace

KLS = (0.0005, 0.02, 0.0009, 0.004)


def measured(kls=KLS, gains=(0.004, 0.5, 0.0, -0.02), floor: float | None = 0.001, **changes) -> Trace:
    """A run with a noise floor; its first thought, within the floor, swaps two words that are nearly alike."""
    made = Trace(start(**changes))
    if floor is not None:
        made.add(NoiseFloor(4, kl=floor, logprob=0.005, weight=0.0002))
    for n, (kl, gain) in enumerate(zip(kls, gains, strict=True)):
        made.add(thought(1 + n, f"think{n}", kl=kl, flipped=n in (0, 1), base_logprob=-1.0, mixed_logprob=-1.0 + gain,
                         only_logprob=-2.0, weight=0.1 + n / 10, entropy=4.0 - n))  # fmt: skip
        made.add(token(2 + n, f" w{n}"))
    made.add(End(0, "stop", made.text, 4, 4, 0.5))
    return made


@pytest.fixture
def store(own_record):
    with Store.open() as opened:
        opened.add(measured(), run="new00000")
        opened.add(measured(floor=None), run="old00000")
        yield opened


def listed(out: str) -> list[str]:
    """The thoughts that are listed, in order."""
    return [line.split("{")[1].split("}")[0] for line in out.splitlines() if "{" in line]


def test_the_terminal_names_the_floor_and_marks_nothing_below_it(store, run):
    out = run("show", "new")[1]
    assert "·w0 ◆w1 ·w2 ·w3" in out
    assert "4 thoughts, 2 above the noise floor (0.001 nats), likeliest word changed 1 time" in out
    assert "noise floor: kl 0.001, log-probability 0.005, w 0.0002" in out and "measured at 4 places" in out
    assert out.count("below the noise floor") == 2 and out.count("◆ likeliest word changed") == 1 + 1  # and the legend
    old = run("show", "old")[1]
    assert "noise floor not measured" in old and "◆w0 ◆w1" in old and "below the noise floor" not in old


def test_lists_of_the_strongest_leave_out_what_is_below_it(store, run):
    assert listed(run("show", "new", "--top", "9")[1]) == ["think1", "think3"]
    assert listed(run("show", "new")[1]) == ["think0", "think1", "think2", "think3"]
    assert listed(run("show", "old", "--top", "9")[1]) == ["think1", "think3", "think2", "think0"]


@pytest.mark.parametrize(("measure", "order"), [
    ("kl", [1, 3, 2, 0]), ("gain", [1, 0, 2, 3]), ("surprise", [3, 2, 0, 1]), ("weight", [3, 2, 1, 0]),
    ("entropy", [0, 1, 2, 3]),
])  # fmt: skip
def test_show_ranks_by_the_measure_that_is_asked_for(store, run, measure, order):
    out = run("show", "old", "--measure", measure, "--top", "4")[1]
    assert listed(out) == [f"think{n}" for n in order]
    assert f"tint by {measure}" in out
    assert listed(run("show", "old", "--measure", measure, "--top", "1")[1]) == [f"think{order[0]}"]


def test_think_names_the_floor_and_lists_nothing_below_it(capsys):
    from quietstar.cli.render import Screen

    for made, says in ((measured(), "2 above the noise floor (0.001 nats), likeliest word changed 1 time"),
                       (measured(floor=None), "noise floor not measured, likeliest word changed 2 times")):  # fmt: skip
        screen = Screen()
        for event in made.events:
            screen.event(event)
        screen.finish()
        out = capsys.readouterr().out
        assert says in out and len(listed(out)) == (2 if made.noise else 4)
        assert (" ·w0 ◆w1" in out) == (made.noise is not None)


def test_statistics_count_and_mark_by_it(store, run):
    found = {one.name: one for one in statistics.of_runs(store, "new")}
    assert found["flipped"].mean == 0.25 and found["above_noise"].mean == 0.5 and found["helped"].mean == 0.25
    assert found["kl"].floor == 0.001 and found["gain"].floor is None and found["weight"].floor == 0.0002
    assert not found["kl"].within and found["surprise"].floor is None
    old = {one.name: one for one in statistics.of_runs(store, "old")}
    assert "above_noise" not in old and old["kl"].floor is None and old["flipped"].mean == 0.5
    both = {one.name: one for one in statistics.of_runs(store, "new", "old")}
    assert both["kl"].floor is None, "unknown in one is unknown in all"
    out = run("stats", "new")[1]
    assert "noise floor: KL 0.001, mixing weight 0.0002; ~ marks a mean within it" in out
    assert "noise floor not measured" in run("stats", "old")[1] and "likeliest word changed" in out
    assert all(len(line) <= 80 for line in out.splitlines() if not line.startswith(("noise", "--measure", "computed")))


def test_a_mean_within_the_floor_is_marked(own_record, run):
    with Store.open() as store:
        store.add(measured(kls=(0.0005,) * 4, gains=(0.001,) * 4), run="weak0000")
    lines = {line[:27].strip(): line[27:] for line in run("stats", "weak")[1].splitlines()}
    assert "~" in lines["KL"] and "~" not in lines["mixing weight"]
    told = json.loads(run("stats", "weak", "--json")[1])
    assert next(one for one in told["statistics"] if one["name"] == "kl")["within"] is True


def test_runs_of_different_precision_are_named_with_what_differs(store, run):
    store.add(measured(dtype="bfloat16", versions={"torch": "3"}), run="half0000")
    out = run("stats", "new", "half")[1]
    assert "these runs differ in dtype, torch:" in out
    assert "float32 on cpu, quietstar 0.1.0, torch 2: new00000" in out and "bfloat16 on cpu" in out
    assert "computed in float32 on cpu" in run("stats", "new", "old")[1]
    assert "bfloat16 on cpu, quietstar 0.1.0, torch 3" in run("show", "half")[1]
    told = json.loads(run("stats", "new", "half", "--json")[1])["computed"]
    assert told["half0000"]["dtype"] == "bfloat16"


def test_the_list_of_runs_says_where_it_was_not_measured(store, run):
    lines = {line.split()[0]: line for line in run("runs")[1].splitlines()}
    assert "(noise floor not measured)" in lines["old00000"] and "not measured" not in lines["new00000"]


def test_lists_over_runs_can_leave_out_what_is_below_it(store):
    above = store.thoughts(above_noise=True)
    assert [(one.run, one.text) for one in above if one.run == "new00000"] == [
        ("new00000", f"think{n}") for n in (1, 3)
    ]
    assert len([one for one in above if one.run == "old00000"]) == 4
    assert {one.above_noise for one in above} == {True, None}
    assert [one.text for one in store.thoughts(run="new", above_noise=False)] == ["think2", "think0"]
    assert pages.filters({}) == {"above_noise": True} and pages.filters({"noise": "any"}) == {}
    assert pages.filters({"noise": "below"}) == {"above_noise": False}


def test_page_and_file_have_it(store):
    assert pages.run(store, "new")["run"]["noise"]["kl"] == 0.001 and pages.run(store, "old")["run"]["noise"] is None
    assert '"noise":{' in export.page(store, ["new"])
    assert trace().noise is None
