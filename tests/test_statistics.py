"""Statistics over thoughts: each on a case where the right value is known, against plain recomputation, and the same in
library, command and page."""

import json
import math
from contextlib import closing

import pytest
import torch

from quietstar import QuietStarError
from quietstar.evals import statistics
from quietstar.evals import thoughts as measuring
from quietstar.evals.measures import area_over, common, log_odds, measures, overlap, repetition, similarity
from quietstar.evals.statistics import STRETCH
from quietstar.events import End, Sample, Trace
from quietstar.record.store import Store
from recorded import start, thought, token, trace
from served import serving


def said(*rows: dict, ids=None) -> Trace:
    """A run whose thoughts have the given fields; its tokens have ids 100, 101, ... or `ids`."""
    made = Trace(start("Why?"))
    for n, row in enumerate(rows):
        row = dict(row)
        tokens = row.pop("tokens", [7, 8])
        made.add(thought(1 + n, **row))
        made.thoughts[-1].samples = [Sample(tokens, "x", [-1.0] * len(tokens), 0.3)]
        made.add(token(2 + n))
        made.tokens[-1].id = ids[n] if ids else 100 + n
    made.add(End(0, "stop", "", len(rows), len(rows), 0.5))
    return made


def column(name: str, made: Trace, measured=None):
    return statistics.of_trace(made, measured)[name]


# -- constructed cases ------------------------------------------------------------------------------------------------


def test_common_subsequence_overlap_similarity_and_repetition():
    assert common([1, 2, 3, 4], [2, 9, 4, 1]) == 2 and common([], [1]) == 0 and common([5, 5], [5]) == 1
    assert overlap([1, 2, 3, 4], [1, 9, 3]) == 0.5 and overlap([], [1]) is None and overlap([1], []) is None
    assert similarity([1, 2, 3, 4], [2, 3, 4, 5]) == 0.75 and similarity([1], [1]) == 1 and similarity([], []) is None
    assert repetition([4, 4, 4, 4]) == 0.75 and repetition([1, 2]) == 0 and repetition([]) is None


def test_area_over_the_curve():
    assert area_over([1, 1, 1]) == 0 and area_over([0, 0, 1]) == 0.75 and area_over([0, 1]) == 0.5
    assert area_over([1.0]) == 0


def test_gain_and_its_share_above_zero():
    made = said(
        dict(base_logprob=-2.0, mixed_logprob=-1.5, only_logprob=-3.0),
        dict(base_logprob=-1.0, mixed_logprob=-1.25, only_logprob=-0.5),
        dict(),
    )
    assert column("gain", made) == [0.5, -0.25, None]
    assert column("helped", made) == [1.0, 0.0, None]
    assert column("only_gain", made) == [-1.0, 0.5, None]
    assert column("surprise", made) == [1.5, 1.25, None]


def test_agreement_is_the_difference_of_log_odds():
    assert log_odds(math.log(0.75)) == pytest.approx(math.log(3)) and math.isfinite(log_odds(0.0))
    half, fifth = math.log(0.5), math.log(0.2)
    made = said(dict(only_logprob=fifth, mixed_logprob=half), dict(only_logprob=half, mixed_logprob=half), dict())
    assert column("agreement", made) == [pytest.approx(math.log(0.25)), 0.0, None]


def test_a_thought_that_only_says_what_follows_continues_it_wholly():
    made = said(dict(tokens=[100, 101]), dict(tokens=[102, 9]), dict(tokens=[1, 2]))
    assert column("continuation", made) == [1.0, 0.5, 0.0]


def test_near_duplicates_are_counted_among_neighbours_only():
    made = said(
        dict(tokens=[1, 2, 3, 4]), dict(tokens=[2, 3, 4, 5]), dict(tokens=[9, 8, 7, 6]), dict(tokens=[9, 8, 7, 6])
    )
    made.thoughts[3].position += 5
    assert column("duplicate", made) == [None, 1.0, 0.0, None]


def test_samples_of_a_place_are_averaged():
    made = said(dict(tokens=[1, 1]), ids=[1])
    made.thoughts[0].samples.append(Sample([1, 2], "y", [0.0, 0.0], 0.1))
    assert column("repetition", made) == [0.25] and column("continuation", made) == [0.5]


def test_intervals_resample_runs_or_stretches_and_say_which():
    one = said(*(dict(kl=float(n % 2)) for n in range(STRETCH * 6)))
    found = {s.name: s for s in statistics.over([(one, {})])}
    assert found["kl"].mean == 0.5 and found["kl"].over == "stretches" and found["kl"].count == STRETCH * 6
    assert found["kl"].low == found["kl"].high == 0.5  # every stretch has the same mean
    few = {s.name: s for s in statistics.over([(said(dict(kl=1.0)), {})])}
    assert few["kl"].low is None
    many = [(said(dict(kl=float(n)), dict(kl=float(n))), {}) for n in range(6)]
    runs = {s.name: s for s in statistics.over(many)}
    assert runs["kl"].over == "runs" and runs["kl"].mean == 2.5 and runs["kl"].low < 2.5 < runs["kl"].high
    assert "gain" not in runs and "compute" not in runs  # nothing known, nothing claimed


def test_the_curve_of_early_answering():
    measured = [
        {"early:0": 0.0, "early:1": 1.0, "early_only:0": 0.0, "early_only:1": 0.0},
        {"early:0": 1.0, "early:1": 1.0},
    ]
    assert statistics.early_answering(measured) == {"early": [0.5, 1.0, 1.0], "early_only": [0.0, 0.0, 1.0]}
    assert statistics.early_answering([]) == {}


def test_every_measure_says_what_it_is():
    for name, one in measures().items():
        assert one.name == name and one.label and one.formula and one.source


# -- against plain recomputation --------------------------------------------------------------------------------------

OPTIONS = dict(max_new_tokens=6, thought_length=3, stop_ids=[], temperature=0.7, seed=2)


def test_a_thought_knows_what_it_gave_the_token_that_was_said(tiny):
    made = tiny.generate("the quick fox", **OPTIONS, samples=2).trace
    forced = torch.full((1, len(made.ids), 2, 3), 5)
    for one in made.thoughts:
        forced[0, one.position] = torch.tensor([sample.ids for sample in one.samples])
    score = tiny.score(made.ids, thoughts=forced[:, :-1])
    for one in made.thoughts:
        at = one.position
        assert one.base_logprob == pytest.approx(float(score.base_logprobs[0, at]), abs=1e-5)
        assert one.mixed_logprob == pytest.approx(float(score.mixed_logprobs[0, at]), abs=1e-5)
        assert one.only_logprob == pytest.approx(float(score.thought_logprobs[0, at]), abs=1e-5)
        (said_next,) = [token for token in made.tokens if token.position == at + 1]
        assert said_next.logprob == one.mixed_logprob


def test_the_thought_before_the_end_knows_it_too(tiny):
    first = tiny.generate("the quick fox", **OPTIONS).trace
    stop = first.tokens[2].id
    made = tiny.generate("the quick fox", **(OPTIONS | {"stop_ids": [stop]})).trace
    assert made.end.reason == "stop" and len(made.thoughts) == len(made.tokens) + 1
    assert made.thoughts[-1].mixed_logprob == pytest.approx(first.tokens[len(made.tokens)].logprob, abs=1e-6)


@torch.no_grad()
def test_measures_are_those_of_plain_recomputation(tiny):
    made = tiny.generate("the quick fox", **OPTIONS, trigger="every(2)").trace
    found = measuring.measure(tiny, made)
    base = tiny.decoder_lm
    assert list(found) == [one.position for one in made.thoughts]
    own = [one.samples[0].ids for one in made.thoughts]
    for n, one in enumerate(made.thoughts):
        ids, at, values = made.ids, one.position, found[one.position]
        context = ids[: at + 1]

        def mixed(thought, context=context):
            row = tiny.resample(
                len(context) - 1, 1, of=context, thoughts=torch.tensor([thought], dtype=torch.long), show=300
            )
            return {c.id: math.log(c.prob) for c in row.mixed[0]}, {c.id: math.log(c.prob) for c in row.only[0]}, row

        full, only, row = mixed(own[n])
        plain = {c.id: math.log(c.prob) for c in row.base}
        target = ids[at + 1]
        filler = tiny.tokenizer(".")["input_ids"][-1]
        assert values["compute"] == pytest.approx(mixed([filler] * 3)[0][target] - plain[target], abs=1e-4)
        donors = [full[target] - mixed(other)[0][target] for other in (own[:n] or [[filler] * 3])]
        assert any(values["content"] == pytest.approx(one, abs=1e-4) for one in donors)
        for j in range(3):
            cut, cut_only, _ = mixed(own[n][:j])
            assert values[f"early:{j}"] == float(max(cut, key=cut.get) == max(full, key=full.get))
            assert values[f"early_only:{j}"] == float(max(cut_only, key=cut_only.get) == max(only, key=only.get))
        logits = base(torch.tensor([context + own[n]])).logits.log_softmax(-1)[0]
        likely = [float(logits[at + j, t]) for j, t in enumerate(own[n])]
        assert values["garble"] == pytest.approx(-sum(likely) / 3, abs=1e-4)
        greedy = list(context)
        for _ in range(3):
            greedy.append(int(base(torch.tensor([greedy])).logits[0, -1].argmax()))
        assert values["greedy"] == overlap(own[n], greedy[at + 1 :])


def test_where_thoughts_cannot_matter_no_measure_says_that_they_do(tiny):
    made = tiny.generate("the quick fox", **OPTIONS, mixing_weight=0.0).trace
    for values in measuring.measure(tiny, made).values():
        assert values["compute"] == pytest.approx(0, abs=1e-6) and values["content"] == pytest.approx(0, abs=1e-6)
        assert values["early_area"] == 0


def test_where_only_the_thought_speaks_it_is_needed(tiny):
    """With w = 1 and thoughts whose last token alone decides, nothing but the whole thought settles the next token."""
    made = tiny.generate("the quick fox", **(OPTIONS | {"max_new_tokens": 24}), control="only").trace
    measured = measuring.measure(tiny, made)
    by_name = {s.name: s for s in statistics.over([(made, measured)])}
    assert by_name["early_area"].mean == by_name["early_area_only"].mean > 0.3


def test_several_samples_are_measured_each_for_itself(tiny):
    made = tiny.generate("the quick fox", **OPTIONS, samples=3).trace
    both = measuring.measure(tiny, made)
    one = made.thoughts[2]
    alone = []
    for sample in one.samples:
        only = Trace(made.start, 0, [type(one)(**(vars(one) | {"samples": [sample]}))], made.tokens, made.end)
        alone.append(measuring.measure(tiny, only)[one.position]["garble"])
    assert both[one.position]["garble"] == pytest.approx(sum(alone) / 3, abs=1e-4)


def test_runs_that_cannot_be_measured_are_refused(tiny):
    made = tiny.generate("the quick fox", **OPTIONS, control="filler").trace
    with pytest.raises(QuietStarError, match="replaced by the control filler"):
        measuring.measure(tiny, made)
    with pytest.raises(QuietStarError, match="another model or has other weights"):
        measuring.measure(tiny, trace())
    quiet = tiny.generate("the quick fox", **OPTIONS, trigger="never").trace
    assert measuring.measure(tiny, quiet) == {}


# -- the same everywhere ----------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(tiny, folder, own_record):
    """Two runs of the saved tiny model in the usual record."""
    from quietstar import QuietStar

    model = QuietStar.from_pretrained(folder, dtype="float32")
    with Store.open() as store:
        recorder = store.recorder()
        for prompt in ("the quick fox", "it thinks"):
            with closing(recorder.record(model.stream(prompt, **(OPTIONS | {"max_new_tokens": 10})))) as events:
                for _ in events:
                    pass
        yield store, recorder.runs, model


def test_library_command_and_page_show_the_same_numbers(recorded, run):
    store, (first, second), model = recorded
    assert not store.measured(first)
    code, out, err = run("stats", first, "--measure", "--json")
    assert code == 0 and f"measuring {first}" in err
    told = json.loads(out)
    library = [one.to_dict() for one in statistics.of_runs(store, first)]
    assert told["statistics"] == json.loads(json.dumps(library))
    assert {one["name"] for one in library} == set(measures())
    assert store.measured(first) == measuring.measure(model, store.trace(first))
    with serving(store, model) as served:
        page = served.get(f"/api/runs/{first}/statistics")
        assert page["statistics"] == told["statistics"] and page["early"] == told["early"] and not page["missing"]
        before = served.get(f"/api/runs/{second}/statistics")
        assert {one["label"] for one in before["missing"]} == {m.label for m in measures().values() if m.model}
        frames = served.frames(f"/api/runs/{second}/measure", {})
        assert frames[-1][0] == "statistics" and not frames[-1][1]["missing"]
        at = store.trace(second).thoughts[1].position
        assert served.get(f"/api/runs/{second}/thoughts/{at}")["measures"] == store.measured(second)[at]


def test_the_command_reads_well_and_lists_single_thoughts(recorded, run):
    store, (first, second), _ = recorded
    code, out, err = run("stats", first, second)
    assert code == 0 and err == "" and out.startswith(f"2 runs: {first}, {second}\n")
    assert "information gain" in out and "--measure adds" in out and "compute effect" not in out
    lines = [json.loads(line) for line in run("stats", "--each")[1].splitlines()]
    assert [one["run"] for one in lines] == [second] * 10 and lines[3]["gain"] == store.trace(second).thoughts[3].gain


def test_slips_of_the_command_are_one_line(recorded, run):
    for options, word in ((("nothere1",), "there is no run"), (("--tag", "x"), "no run has the tag"),
                          (("a", "--tag", "x"), "not both")):  # fmt: skip
        code, out, err = run("stats", *options)
        assert code == 2 and word in err and err.count("\n") == 1 and out == ""


def test_measures_go_with_their_run_and_leave_with_it(recorded, tmp_path):
    from quietstar.record import exchange

    store, (first, _), model = recorded
    store.measure(first, measuring.measure(model, store.trace(first)))
    exchange.export(store, tmp_path / "runs.jsonl", [first], "jsonl")
    with Store.open(tmp_path / "other.db") as other:
        exchange.load(other, tmp_path / "runs.jsonl")
        assert other.measured(first) == store.measured(first)
        other.delete(first)
        assert not other.select("SELECT * FROM measures")


def test_thoughts_are_sorted_and_bounded_by_gain_and_surprise(recorded):
    store, _, _ = recorded
    found = store.thoughts(order="gain", limit=None)
    gains = [one.gain for one in found]
    assert gains == sorted(gains, reverse=True) and len(found) == 20
    assert all(one.gain >= 0 for one in store.thoughts(least={"gain": 0.0}))
    assert [one.surprise for one in store.thoughts(order="surprise", descending=False, limit=3)] == sorted(
        -one.mixed_logprob for run in store.runs() for one in store.trace(run.id).thoughts
    )[:3]
    store.add(trace())  # of an older schema: unknown, and last both ways
    for descending in (True, False):
        assert [one.gain for one in store.thoughts(order="gain", descending=descending, limit=None)][-3:] == [None] * 3
