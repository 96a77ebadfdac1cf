"""The store gives back what was put in, finds it again, and takes any text for text."""

import random
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietstar import QuietStarError
from quietstar.events import Choice, Sample, Trace
from quietstar.record.entries import Intervention
from quietstar.record.store import Store
from recorded import garbled, start, thought, token, trace, traces

HOSTILE = [
    "<script>alert(1)</script>", "'; DROP TABLE runs; --", "\x00\x1b[31m\x07", "\u202egnp.exe", "]]>", "%s {0}",
    "a\ud800b", "\u2028line", '{"quietstar": 1}', "=cmd|' /C calc'!A0", "x" * 2_000_000,
]  # fmt: skip


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "record.db") as opened:
        yield opened


def consistent(store: Store) -> None:
    """The file and its full-text indexes agree."""
    db = store._db()
    assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert not db.execute("PRAGMA foreign_key_check").fetchall()
    for table in ("runs_search", "samples_search"):
        db.execute(f"INSERT INTO {table}({table}, rank) VALUES ('integrity-check', 1)")


@given(made=traces())
@settings(max_examples=150, deadline=None)
def test_any_trace_comes_back_equal(made, shared_store):
    assert shared_store.trace(shared_store.add(made)) == made


@given(made=st.lists(traces(), max_size=4), removed=st.sets(st.integers(0, 3)))
@settings(max_examples=25, deadline=None)
def test_deleting_leaves_no_trace_and_no_harm(made, removed, tmp_path_factory):
    with Store.open(tmp_path_factory.mktemp("d") / "record.db") as store:
        ids = [store.add(one) for one in made]
        gone = [run for n, run in enumerate(ids) if n in removed]
        assert store.delete(*gone) == gone
        kept = [n for n in range(len(ids)) if n not in removed]
        assert [store.trace(ids[n]) for n in kept] == [made[n] for n in kept]
        assert [run.id for run in store.runs()] == [ids[n] for n in reversed(kept)]
        for table in ("tokens", "thoughts", "samples"):
            assert {r[0] for r in store._rows(f"SELECT run FROM {table}", [])} <= {ids[n] for n in kept}
        consistent(store)


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory):
    with Store.open(tmp_path_factory.mktemp("shared") / "record.db") as opened:
        yield opened


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_text(store, text):
    made = trace(prompt=text, words=(text, " end"), thoughts=[text, "calm"])
    run = store.add(made)
    back = store.trace(run)
    expected = text.replace("\ud800", "\ufffd")
    assert back.start.prompts == [expected] and back.text == expected + " end"
    assert back.thoughts[0].samples[0].text == expected and back.thoughts[0].samples[0].pieces[0] == expected[:1]
    store.note(run, text)
    assert store.run(run).note == expected
    assert [r.id for r in store.runs(text)] == [run], "searching for it finds it"
    store.delete(run)
    assert not list(store.runs()) and not store.thoughts()
    consistent(store)


@pytest.mark.parametrize(
    "query", ['"', '""', "*", "NEAR(a b)", "a AND", "-x", "col:y", "^", "(", "\0", "\ud800", "'", "%", '"a']
)
def test_no_search_is_a_syntax_error(store, query):
    store.add(trace())
    list(store.runs(query))
    store.thoughts(query)


def test_search_finds_prompts_answers_and_thoughts(store):
    sky = store.add(trace("Why is the sky blue?", (" Rayleigh", " scattering."), ["the ocean", "a zebra crossing"]))
    sea = store.add(trace("海はなぜ青い", (" Naïve", " C++"), ["光の散乱", "blue paint"]))

    def found(query):
        return {run.id for run in store.runs(query)}

    assert found("sky") == found("RAYLEIGH") == found("zebra") == found("ray zeb") == {sky}
    assert found('"zebra crossing"') == {sky} and found('"crossing zebra"') == set()
    assert found("blue") == {sky, sea}, "in a prompt here, in a thought there"
    assert found("sky paint") == set()
    assert found("naive") == found("青") == found("散乱") == found("c++") == {sea}
    assert found("") == {sky, sea} and found("?") == {sky}
    assert [t.text for t in store.thoughts("zebra")] == ["a zebra crossing"]
    assert [t.text for t in store.thoughts("散乱")] == ["光の散乱"]
    assert not store.thoughts("Rayleigh"), "that is in the answer"


def test_a_second_sample_is_found_too(store):
    made = Trace(start())
    made.add(thought(1, "first", "second hidden"))
    store.add(made)
    assert [t.position for t in store.thoughts("hidden")] == [1] and store.thoughts("hidden")[0].samples == 2


def test_runs_come_newest_first_by_pages(store, monkeypatch):
    from quietstar.record import store as module

    monkeypatch.setattr(module, "PAGE", 3)
    ids = [store.add(trace(seed=n)) for n in range(10)]
    assert [run.id for run in store.runs()] == ids[::-1]
    assert [run.id for run in store.runs(limit=4)] == ids[:5:-1]
    assert [run.id for run in store.runs(after=ids[5], limit=2)] == [ids[4], ids[3]]
    assert not list(store.runs(limit=0))
    statements = []
    store._db().set_trace_callback(statements.append)
    next(store.runs())
    assert sum("FROM runs" in s for s in statements) == 1, "one page is read for one run"
    old = store.add(trace(), started="2020-01-01T00:00:00.000000Z")
    assert [run.id for run in store.runs()][-1] == old


def test_a_run_is_found_by_the_beginning_of_its_id(store):
    for run in ("abcd1111", "abcd2222", "x7777777"):
        store.add(trace(), run=run)
    assert store.find("x") == "x7777777" and store.find(" ABCD1 ") == "abcd1111"
    with pytest.raises(QuietStarError, match="several runs: abcd1111, abcd2222"):
        store.find("abcd")
    for wrong in ("zz", "", "%", "_", "abcd11112"):
        with pytest.raises(QuietStarError, match="there is no run"):
            store.find(wrong)


def test_thoughts_over_runs_sort_and_filter(store):
    first = store.add(trace(words=(" a", " b", " c")))
    second = store.add(trace(words=(" d",), thoughts=["another"], model="n"))
    store.tag(second, "odd")
    strengths = [t.kl for t in store.thoughts()]
    assert strengths == sorted(strengths, reverse=True) and len(strengths) == 4
    assert [t.kl for t in store.thoughts(descending=False)] == sorted(strengths)
    assert [t.run for t in store.thoughts(tag="odd")] == [t.run for t in store.thoughts(model="n")] == [second]
    assert [t.position for t in store.thoughts(run=first, order="position", descending=False)] == [1, 2, 3]
    assert [t.position for t in store.thoughts(flipped=True)] == [2]
    assert [round(t.kl, 3) for t in store.thoughts(least={"kl": 0.15}, most={"kl": 0.25})] == [0.2]
    assert len(store.thoughts(control="filler")) == 0 and len(store.thoughts(trigger="always", limit=None)) == 4
    assert [t.kl for t in store.thoughts(limit=2, offset=1)] == strengths[1:3]
    one = store.thoughts(run=first, flipped=True)[0]
    assert (one.context, one.base_token, one.mixed_token, one.only_token) == ("Why? a", " base", " other", " only")
    for wrong in ({"order": "text"}, {"least": {"text": 1}}):
        with pytest.raises(QuietStarError, match="kl, weight, gain, entropy, surprise"):
            store.thoughts(**wrong)


def test_one_thought_with_everything(store):
    made = trace()
    run = store.add(made)
    assert store.thought(run, 2) == made.thoughts[1]
    with pytest.raises(QuietStarError, match="no thought at position 9"):
        store.thought(run, 9)


def test_the_prompts_of_a_deleted_neighbour_are_gone_from_the_batch(store):
    recorder = store.recorder()
    events = [start("one", "two"), token(2, " x", 0), token(2, " y", 1)]
    both = Trace.collect(recorder.record(events))
    first, second = recorder.runs
    assert store.trace(first).start == both[0].start
    store.delete(first)
    assert store.trace(second).start.prompts == ["", "two"] and store.trace(second).start.prompt_ids[0] == []


def test_tags_and_notes(store):
    run = store.add(trace())
    store.tag(run, "b", "a", "b")
    assert store.run(run).tags == ("a", "b")
    assert [r.id for r in store.runs(tag="a")] == [run] and not list(store.runs(tag="c"))
    store.untag(run, "b")
    assert store.run(run).tags == ("a",)
    with pytest.raises(QuietStarError, match="has no tag 'b'; it has: a"):
        store.untag(run, "b")
    for wrong in ("", "  ", "a\nb", "x" * 101):
        with pytest.raises(QuietStarError, match="printable"):
            store.tag(run, wrong)
    store.note(run, "look here")
    store.note(run, "or there")
    assert store.run(run).note == "or there"
    store.delete(run)
    consistent(store)


def intervention(position: int = 2) -> Intervention:
    top = [Choice(5, " base", 0.5)]
    return Intervention(
        position, "edited", Sample([1, 2], "no sky", [-1.0, float("-inf")], 0.4, ["no", " sky"]), top, top, top, 0.7, True,
        continuation=" so it goes", settings={"seed": 4},
    )  # fmt: skip


def test_interventions_are_kept_with_their_run(store):
    run = store.add(trace())
    number = store.intervene(run, intervention())
    store.intervene(run, intervention(3))
    back = store.interventions(run, 2)
    assert len(store.interventions(run)) == 2 and [one.number for one in back] == [number]
    back[0].number, back[0].made = None, ""
    assert back == [intervention()]
    store.delete(run)
    assert store._rows("SELECT * FROM interventions", []) == []


def test_deleted_text_is_not_in_the_file(store, tmp_path):
    secret = "swordfish"
    run = store.add(trace(f"the {secret} prompt", (f" {secret}",), [f"about {secret}"]))
    store.note(run, secret)
    store.intervene(run, intervention())
    for n in range(20):
        store.add(trace(f"other {n}"))
    assert secret.encode() in b"".join(file.read_bytes() for file in tmp_path.iterdir())
    store.delete(run)
    left = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert secret.encode() not in left and b"about s" not in left and b"no sky" not in left


def test_several_threads_may_use_one_store(store):
    ids, problems = [], []

    def work(n):
        try:
            for _ in range(5):
                ids.append(store.add(trace(seed=n)))
                list(store.runs())
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not problems and len(set(ids)) == 20 == len(list(store.runs()))


def test_a_reader_sees_one_state_while_another_writes(store):
    run = store.add(trace())
    with Store.open(store.path) as other, other.transaction() as db:
        db.execute("DELETE FROM runs WHERE id = ?", [run])
        assert store.trace(run) == trace(), "not yet committed"
    assert not list(store.runs())


@pytest.mark.slow
def test_a_hundred_thousand_thoughts_can_be_listed_and_searched(tmp_path, capsys):
    """Prints the times and the size of the file; they are for reading, the test asserts what is found."""
    rng = random.Random(0)
    with Store.open(tmp_path / "record.db") as store:
        began = time.perf_counter()
        for n in range(1000):
            made = trace(f"question {n} about the sky", [])
            made.end = None
            top = [
                [Choice(rng.randrange(49152), " " + garbled(rng, 1), rng.random()) for _ in range(5)] for _ in range(3)
            ]
            for p in range(100):
                text = garbled(rng, 8) + (" needle" if (n, p) in ((17, 5), (800, 90)) else "")
                one = thought(2 + p, text, kl=rng.expovariate(20), flipped=rng.random() < 0.05)
                one.samples[0].ids = [rng.randrange(49152) for _ in range(8)]
                one.samples[0].logprobs = [round(-rng.random(), 5) for _ in range(8)]
                one.samples[0].pieces = [" " + word for word in text.split()]
                one.weight, one.entropy = rng.random(), rng.random() * 5
                one.base_logprob, one.mixed_logprob, one.only_logprob = (-rng.expovariate(1) for _ in range(3))
                one.base, one.mixed, one.only = top
                made.add(one)
                made.add(token(3 + p, " " + garbled(rng, 1)))
            run = store.add(made)
            if n % 10 == 0:
                store.tag(run, "tenth")
        lines = [f"written in {time.perf_counter() - began:.1f} s"]

        def timed(what, action):
            times = []
            for _ in range(3):
                began = time.perf_counter()
                found = action()
                times.append(time.perf_counter() - began)
            lines.append(f"{what}: {min(times) * 1e3:.1f} to {max(times) * 1e3:.1f} ms")
            return found

        assert store._row("SELECT count(*) FROM thoughts", [])[0] == 100_000
        assert len(timed("first page of runs", lambda: list(store.runs(limit=50)))) == 50
        assert len(timed("all 1,000 runs", lambda: list(store.runs()))) == 1000
        assert len(timed("runs, rare word", lambda: list(store.runs("needle")))) == 2
        assert len(timed("runs, common word", lambda: list(store.runs("zebra", limit=50)))) == 50
        assert len(timed("runs, two common words", lambda: list(store.runs("zebra light", limit=50)))) == 50
        assert len(timed("runs, not indexed", lambda: list(store.runs("<b>", limit=50)))) == 0
        top = timed("thoughts by KL", lambda: store.thoughts())
        assert [t.kl for t in top] == sorted((t.kl for t in top), reverse=True) and len(top) == 50
        assert len(timed("thoughts by KL, deep", lambda: store.thoughts(offset=50_000))) == 50
        assert len(timed("thoughts by weight, flipped", lambda: store.thoughts(order="weight", flipped=True))) == 50
        assert len(timed("thoughts by gain", lambda: store.thoughts(order="gain"))) == 50
        assert len(timed("thoughts by gain, bounded", lambda: store.thoughts(order="kl", least={"gain": 1.0}))) == 50
        assert len(timed("thoughts by KL, tag", lambda: store.thoughts(tag="tenth"))) == 50
        assert len(timed("thoughts, rare word", lambda: store.thoughts("needle"))) == 2
        assert len(timed("thoughts, common word", lambda: store.thoughts("zebra"))) == 50
        assert len(timed("thoughts of a run", lambda: store.thoughts(run=run, order="position", limit=None))) == 100
        assert len(timed("one trace", lambda: store.trace(run)).thoughts) == 100
        long = trace("long", [])
        for p in range(5000):
            long.add(thought(1 + p, garbled(rng, 8)))
            long.add(token(2 + p))
        long.end = None
        name = store.add(long)
        assert (
            len(timed("5,000-token run, light", lambda: store.thoughts(run=name, order="position", limit=None))) == 5000
        )
        assert timed("5,000-token run, whole trace", lambda: store.trace(name)) == long
        size = store.totals()["bytes"]
        lines.append(f"file: {size / 1e6:.1f} MB, {size / 105_000:.0f} bytes a thought with its token")
    with capsys.disabled():
        print("\n" + "\n".join(lines))
