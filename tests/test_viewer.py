"""The server behind the page: what it reads and records, whom it lets in, and what happens when things go wrong."""

import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from quietstar import QuietStarError
from quietstar.record.entries import Intervention
from quietstar.record.store import Store
from quietstar.viewer import export, files
from quietstar.viewer import serving as listening
from quietstar.viewer.guard import POLICY, is_loopback
from recorded import thought, trace
from served import read_frames, serving, until

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u202e\x1b[31m\"'&"


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "record.db") as opened:
        yield opened


# -- reading ----------------------------------------------------------------------------------------------------------


def test_a_run_page_has_columns_for_every_token_and_thought(store):
    made = trace()
    run = store.add(made)
    store.tag(run, "seen")
    with serving(store) as served:
        page = served.get(f"/api/runs/{run}")
        detail = served.get(f"/api/runs/{run}/thoughts/2")
    assert page["run"]["text"] == made.text and page["run"]["tags"] == ["seen"]
    assert page["tokens"]["text"] == [token.text for token in made.tokens]
    for name in ("position", "weight", "kl", "entropy"):
        assert page["thoughts"][name] == [getattr(one, name) for one in made.thoughts]
    assert detail == made.thoughts[1].to_dict() | {"tries": [], "measures": {}}


def test_gain_is_the_said_words_log_probability_with_the_thought_minus_without(store):
    made = trace(words=(" base", " unlisted"))
    made.thoughts[0].mixed_logprob, made.thoughts[0].base_logprob = -0.25, -1.0
    page_of = store.add(made)
    with serving(store) as served:
        assert served.get(f"/api/runs/{page_of}")["thoughts"]["gain"] == [0.75, None]  # unknown in older records


def test_runs_come_in_pages_without_gaps(store):
    ids = [store.add(trace(seed=n)) for n in range(120)]
    with serving(store) as served:
        found, after = [], ""
        for _ in range(3):
            page = served.get(f"/api/runs?after={after}")
            found += [run["id"] for run in page["runs"]]
            after = found[-1]
        assert not page["more"]
        assert found == ids[::-1]
        assert [run["id"] for run in served.get("/api/runs?query=nowhere")["runs"]] == []


def test_thoughts_are_filtered_sorted_and_counted_as_the_store_does(store):
    for n in range(3):
        store.add(trace(seed=n, model=f"m{n}"))
    with serving(store) as served:
        first = served.get("/api/thoughts")["thoughts"]
        assert [one["kl"] for one in first] == sorted((one["kl"] for one in first), reverse=True)
        few = served.get("/api/thoughts?model=m1&flipped=1")["thoughts"]
        assert len(few) == 1 and few[0]["model"] == "m1" and few[0]["flipped"]
        assert len(served.get("/api/thoughts?min_kl=0.15&max_kl=0.25")["thoughts"]) == 3
        up = served.get("/api/thoughts?order=position&way=up")["thoughts"]
        assert [one["position"] for one in up] == sorted(one["position"] for one in up)
        spread = served.get("/api/histograms?min_kl=0.15")
        assert sum(spread["kl"]["counts"]) == spread["kl"]["count"] == 6
        assert spread["kl"]["low"] == pytest.approx(0.2) and spread["kl"]["high"] == pytest.approx(0.3)
        assert spread["kl"]["counts"][0] == 3 and spread["kl"]["counts"][-1] == 3
        for wrong in ("order=nonsense", "min_kl=x", "offset=-1"):
            status, told, _ = served.request(f"/api/thoughts?{wrong}")
            assert status == 400 and "\n" not in told["error"]


def test_a_histogram_leaves_out_what_has_no_number(store):
    from quietstar.record import overview

    made = trace()
    made.thoughts[0].kl, made.thoughts[1].kl = float("nan"), float("inf")
    store.add(made)
    found = overview.histogram(store, "kl")
    assert (found.count, found.undefined, sum(found.counts)) == (3, 2, 1)
    with pytest.raises(QuietStarError, match="measure must be one of"):
        overview.histogram(store, "kl; DROP TABLE runs")


def test_what_is_missing_is_one_line(store):
    run = store.add(trace())
    with serving(store) as served:
        for path in ("/api/runs/nothing", f"/api/runs/{run}/thoughts/99", "/api/runs?after=nothing"):
            status, told, _ = served.request(path)
            assert status == 400 and told["error"] and "\n" not in told["error"]


# -- who may come in --------------------------------------------------------------------------------------------------


def test_every_answer_carries_the_policy_and_no_script_stands_in_the_page(store):
    with serving(store) as served:
        for path in ("/", "/static/main.js", "/api/about", "/nowhere"):
            _, _, headers = served.request(path)
            assert headers["content-security-policy"] == POLICY, path
            assert headers["x-content-type-options"] == "nosniff"
        _, page, _ = served.request("/")
    assert "unsafe" not in POLICY and "default-src 'none'" in POLICY
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|style=", page)


def test_nothing_on_the_page_names_another_machine():
    for file in files.STATIC.iterdir():
        found = set(re.findall(r"\bhttps?://[^\s\"'`]+", file.read_text(encoding="utf-8")))
        assert found <= {"http://www.w3.org/2000/svg"}, file.name  # a name of the SVG vocabulary, never fetched


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::2]", "10.0.0.1"])
def test_other_names_in_host_are_refused(store, host):
    with serving(store) as served:
        status, told, _ = served.request("/api/runs", Host=host)
        assert status == 403 and "name" in told["error"]
        assert served.request("/api/runs", Host="localhost:9999")[0] == 200  # a forwarded port


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1.evil.example"])
def test_pages_of_other_sites_are_refused(store, tiny, origin):
    with serving(store, tiny) as served:
        assert served.request("/api/ask", {"prompt": "x"}, Origin=origin)[0] == 403
        assert served.request("/api/runs", Origin=origin)[0] == 403
        assert served.request("/api/ask", {"prompt": "x"}, **{"Sec-Fetch-Site": "cross-site"})[0] == 403
        assert served.request("/", **{"Sec-Fetch-Site": "cross-site"})[0] == 200  # a link to the page may be followed
        plain = served.request("/api/ask", b'{"prompt": "x"}', **{"Content-Type": "text/plain"})
        assert plain[0] == 400 and "application/json" in plain[1]["error"]
    assert store.totals()["runs"] == 0


def test_with_a_token_nothing_is_told_without_it(store):
    store.add(trace())
    with serving(store, token="secret-token", host="0.0.0.0") as served:
        for path in ("/", "/api/runs", "/static/main.js", "/?token=wrong", "/api/runs?token=secret-toke"):
            assert served.request(path)[0] == 401, path
        status, _, headers = served.request("/?token=secret-token")
        assert status == 303 and headers["location"] == "/"
        cookie = headers["set-cookie"]
        assert "HttpOnly" in cookie and "samesite=lax" in cookie.lower()
        assert served.request("/api/runs", Cookie=cookie.split(";")[0])[0] == 200
        assert served.request("/api/runs", Authorization="Bearer secret-token")[0] == 200
        assert served.request("/api/runs", Authorization="Bearer secret-token", Host="evil.example")[0] == 403


def test_what_counts_as_this_machine():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost", "LOCALHOST")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.evil", "")))


def test_every_page_gets_a_token_of_its_own_unless_told_otherwise(store, monkeypatch):
    import uvicorn

    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    told = []
    listening.serve(store, None, host="0.0.0.0", port=0, ready=told.append)
    listening.serve(store, None, port=0, ready=told.append)
    listening.serve(store, None, port=0, token="", ready=told.append)
    tokens = [re.search(r"\?token=([\w-]{20,})$", address) for address in told[:2]]
    assert all(tokens) and tokens[0][1] != tokens[1][1] and "token" not in told[2]


# -- asking -----------------------------------------------------------------------------------------------------------

ASK = {"prompt": "the quick", "settings": {"max_new_tokens": 5, "thought_length": 2}}


def test_an_answer_streams_as_the_events_of_generation_and_is_recorded(store, tiny):
    with serving(store, tiny) as served:
        frames = served.frames("/api/ask", ASK)
    kinds = [kind for kind, _ in frames]
    assert kinds[:3] == ["loading", "run", "event"]
    events = [data for kind, data in frames if kind == "event"]
    assert events == [json.loads(json.dumps(e.to_dict())) for e in store.trace(frames[1][1]["id"]).events]
    text = tiny.generate("the quick", max_new_tokens=5, thought_length=2).text
    assert events[-1]["text"] == text


def test_system_prompt_and_raw_reach_the_model(store, tiny):
    with serving(store, tiny) as served:
        served.frames("/api/ask", ASK | {"system": "be brief"})
        served.frames("/api/ask", ASK | {"raw": True})
    raw, chat = list(store.runs())
    assert "be brief" in chat.prompt and raw.prompt == "the quick"


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"prompt": ""}, "empty"), ({}, "prompt"), ({"prompt": 3}, "prompt"), ([], "object"),
        ({"prompt": "x", "settings": {"trigger": "sometimes"}}, "trigger"),
        ({"prompt": "x", "settings": {"samples": 0}}, "samples"),
        ({"prompt": "x", "settings": {"nonsense": 1}}, "nonsense"),
        ({"prompt": "x", "settings": {"control": "evil"}}, "control"),
    ],
)  # fmt: skip
def test_a_slip_is_one_line_and_the_next_question_is_answered(store, tiny, body, word):
    with serving(store, tiny) as served:
        status, told, _ = served.request("/api/ask", body)
        line = told["error"] if status == 400 else dict(read_text(told))["problem"]["error"]
        assert word in line and "\n" not in line
        assert served.frames("/api/ask", ASK)[-1][1]["event"] == "end"


def read_text(text: str):
    for part in text.split("\n\n"):
        if found := re.match(r"event: (\w+)\ndata: (.*)", part):
            yield found[1], json.loads(found[2])


def test_the_generation_of_a_client_that_goes_away_stops(store, tiny):
    long = {"prompt": "the", "settings": {"max_new_tokens": 400, "thought_length": 4, "stop_ids": []}}
    with serving(store, tiny) as served:
        answer, connection = served.open_stream("/api/ask", long)
        frames = read_frames(answer)
        seen = [next(frames) for _ in range(8)]
        answer.close()
        connection.close()
        assert until(lambda: not served.worker._jobs), "it goes on although nobody listens"
        run = store.run(next(data["id"] for kind, data in seen if kind == "run"))
        assert run.reason == "interrupted" and 2 <= run.tokens < 400
        assert served.frames("/api/ask", ASK)[-1][1]["event"] == "end"


def test_ten_clients_at_once_wait_in_line_and_nothing_is_lost(store, tiny):
    results = []
    with serving(store, tiny) as served:
        threads = [
            threading.Thread(target=lambda n=n: results.append(served.frames("/api/ask", ASK | {"prompt": f"the {n}"})))
            for n in range(10)
        ]
        for one in threads:
            one.start()
        for one in threads:
            one.join(60)
    assert len(results) == 10 and all(frames[-1][1]["event"] == "end" for frames in results)
    assert {run.asked for run in store.runs()} == {f"the {n}" for n in range(10)}
    assert any(kind == "waiting" for frames in results for kind, _ in frames)
    for run in store.runs():
        assert run.text == tiny.generate(run.asked, max_new_tokens=5, thought_length=2).text


def test_one_who_waits_and_goes_away_is_never_computed(store, tiny):
    long = {"prompt": "the", "settings": {"max_new_tokens": 60, "thought_length": 4, "stop_ids": []}}
    with serving(store, tiny) as served:
        first, connection = served.open_stream("/api/ask", long)
        frames = read_frames(first)
        next(frames)
        second, waiting = served.open_stream("/api/ask", ASK | {"prompt": "never asked"})
        assert next(read_frames(second))[0] == "waiting"
        second.close()
        waiting.close()
        assert until(lambda: served.worker._jobs[-1].stopped.is_set())
        for _ in frames:
            pass
        connection.close()
        assert until(lambda: not served.worker._jobs)
    assert [run.asked for run in store.runs()] == ["the"]


# -- changing a thought -----------------------------------------------------------------------------------------------


@pytest.fixture
def asked(store, tiny):
    """A recorded run of the tiny model with sampling, and its trace."""
    from contextlib import closing

    recorder = store.recorder()
    options = dict(max_new_tokens=8, thought_length=3, temperature=0.8, seed=5, stop_ids=[])
    with closing(recorder.record(tiny.stream("the quick fox", **options))) as events:
        for _ in events:
            pass
    return recorder.runs[0], store.trace(recorder.runs[0])


def tried(served, run, position, **wanted):
    frames = served.frames(f"/api/runs/{run}/thoughts/{position}/change", wanted)
    assert frames[-1][0] == "tries", frames
    return frames[-1][1]["tries"]


def test_the_own_thought_put_back_gives_what_was_recorded(store, tiny, asked):
    run, made = asked
    own = made.thoughts[3]
    with serving(store, tiny) as served:
        (one,) = tried(served, run, own.position, kind="edited", text=own.samples[0].text)
    assert one["sample"]["ids"] == own.samples[0].ids
    assert one["kl"] == pytest.approx(own.kl, abs=1e-5) and one["flipped"] == own.flipped
    for mine, old in zip(one["mixed"], own.mixed, strict=True):
        assert mine["id"] == old.id and mine["prob"] == pytest.approx(old.prob, abs=1e-5)


def test_each_kind_of_change_puts_there_what_it_says_and_is_recorded(store, tiny, asked):
    run, made = asked
    place, ids = made.thoughts[4].position, made.thoughts[4].samples[0].ids
    with serving(store, tiny) as served:
        (edited,) = tried(served, run, place, kind="edited", text="the fox")
        assert edited["sample"]["ids"] == tiny.tokenizer("the fox")["input_ids"]
        (empty,) = tried(served, run, place, kind="truncated:0")
        assert empty["sample"]["ids"] == [] and empty["kl"] > 0
        (filler,) = tried(served, run, place, kind="filler")
        assert len(set(filler["sample"]["ids"])) == 1 and len(filler["sample"]["ids"]) == len(ids)
        (mixed,) = tried(served, run, place, kind="shuffled", seed=1)
        assert sorted(mixed["sample"]["ids"]) == sorted(ids)
        (donor,) = tried(served, run, place, kind="donor", donor=made.thoughts[1].position)
        assert donor["sample"]["ids"] == made.thoughts[1].samples[0].ids
        (some,) = tried(served, run, place, kind="donor", seed=2)
        assert some["settings"]["donor"] < place
        eight = tried(served, run, place, kind="resampled", n=8, seed=3)
        assert len(eight) == 8 and len({tuple(one["sample"]["ids"]) for one in eight}) > 1
        expected = tiny.resample(place, 8, of=made.ids, seed=3, thought_length=3)
        assert [one["sample"]["ids"] for one in eight] == expected.thoughts.tolist()
        (none,) = tried(served, run, place, kind="none")
        assert none["mixed"] == none["base"] and none["kl"] == 0
        shown = served.get(f"/api/runs/{run}/thoughts/{place}")["tries"]
        assert served.get(f"/api/runs/{run}")["changed"] == [place]
    kinds = ["edited", "truncated:0", "filler", "shuffled", "donor", "donor", *["resampled"] * 8, "none"]
    assert [one.kind for one in store.interventions(run, place)] == kinds == [one["kind"] for one in shown]


def test_the_text_that_follows_its_own_thought_is_the_text_that_was_said(store, tiny, asked):
    """Same seed, same thought: going on from a thought that was put back says the same words."""
    run, made = asked
    own = made.thoughts[2]
    with serving(store, tiny) as served:
        (one,) = tried(served, run, own.position, kind="edited", text=own.samples[0].text)
        frames = served.frames(f"/api/runs/{run}/interventions/{one['number']}/follow", {})
    rest = [token for token in made.tokens if token.position > own.position]
    said = [data for kind, data in frames if kind == "event"]
    assert [token["id"] for token in said] == [token.id for token in rest]
    assert frames[-1][0] == "followed"
    assert store.interventions(run)[0].continuation == frames[-1][1]["text"] == "".join(t["text"] for t in said)


def test_where_the_word_stays_the_same_no_more_is_computed_and_the_record_goes_on(store, tiny, asked, monkeypatch):
    run, made = asked
    own = made.thoughts[2]
    lengths = []
    stream = tiny.stream
    monkeypatch.setattr(tiny, "stream", lambda *a, settings, **o: lengths.append(settings.max_new_tokens)
                        or stream(*a, settings=settings, **o))  # fmt: skip
    with serving(store, tiny) as served:
        (one,) = tried(served, run, own.position, kind="edited", text=own.samples[0].text)
        frames = served.frames(f"/api/runs/{run}/interventions/{one['number']}/follow", {})
    assert lengths == [1, 1] and sum(kind == "event" for kind, _ in frames) == 6


def test_where_another_word_is_said_the_model_goes_on_from_it(store, tiny, asked):
    """As the model itself goes on from the text with that word."""
    _, made = asked
    made.start.settings["temperature"] = 0.0
    made.tokens[1].id = (made.tokens[1].id + 1) % 250  # another word than it would say
    greedy = store.add(made)
    place = made.thoughts[1].position
    with serving(store, tiny) as served:
        (one,) = tried(served, greedy, place, kind="edited", text=made.thoughts[1].samples[0].text)
        frames = served.frames(f"/api/runs/{greedy}/interventions/{one['number']}/follow", {"most": 5})
    said = [data["id"] for kind, data in frames if kind == "event"]
    before = made.ids[: place + 1]
    options = dict(thought_length=3, seed=5, stop_ids=[])
    expected = tiny.generate([*before, said[0]], max_new_tokens=4, **options).trace.tokens
    assert said[1:] == [token.id for token in expected]


def test_without_a_thought_the_first_word_that_follows_is_the_base_models(store, tiny, asked):
    _, made = asked
    place = made.thoughts[1].position
    made.start.settings["temperature"] = 0.0
    greedy = store.add(made)
    with serving(store, tiny) as served:
        (one,) = tried(served, greedy, place, kind="none")
        frames = served.frames(f"/api/runs/{greedy}/interventions/{one['number']}/follow", {"most": 3})
    assert next(data["id"] for kind, data in frames if kind == "event") == one["base"][0]["id"]
    assert sum(kind == "event" for kind, _ in frames) == 3


def test_changes_that_cannot_be_are_one_line_and_leave_no_trace(store, tiny, asked):
    run, made = asked
    place = made.thoughts[0].position
    wrong = [
        ("own", {}, "kind must be"), ("nonsense", {}, "control must be"), ("donor", {}, "no earlier thought"),
        ("donor", {"donor": 999}, "999"), ("resampled", {"n": 0}, "n must be"), ("resampled", {"n": 1000}, "n must be"),
        ("edited", {"text": "fox " * 600}, "at most 512"),
    ]  # fmt: skip
    with serving(store, tiny) as served:
        for kind, more, word in wrong:
            frames = served.frames(f"/api/runs/{run}/thoughts/{place}/change", {"kind": kind} | more)
            assert frames[-1][0] == "problem" and word in frames[-1][1]["error"], (kind, frames)
        assert served.frames(f"/api/runs/{run}/interventions/99/follow", {})[-1][0] == "problem"
    assert store.interventions(run) == []


def test_a_run_of_other_weights_is_not_changed(store, tiny):
    run = store.add(trace())
    with serving(store, tiny) as served:
        frames = served.frames(f"/api/runs/{run}/thoughts/1/change", {"kind": "filler"})
    assert frames[-1][0] == "problem" and "quietstar view --model m" in frames[-1][1]["error"]


def test_a_run_of_an_untrained_head_is_changed_by_the_model_loaded_anew(store, tiny_folder):
    from quietstar import QuietStar

    made = QuietStar.from_pretrained(tiny_folder, dtype="float32").generate(
        "the fox", max_new_tokens=3, thought_length=2, mixing_weight=0.5, stop_ids=[]
    )
    run = store.add(made.trace)
    place = made.trace.thoughts[0].position
    with serving(store, QuietStar.from_pretrained(tiny_folder, dtype="float32")) as served:
        (one,) = tried(served, run, place, kind="filler")
    assert one["sample"]["weight"] == 0.5


def test_what_only_shows_has_no_way_to_ask(store):
    run = store.add(trace())
    with serving(store) as served:
        assert served.get("/api/about")["model"] is None
        assert served.request("/api/ask", ASK)[0] == 404
        assert served.request(f"/api/runs/{run}/thoughts/1/change", {"kind": "filler"})[0] == 404


# -- faults -----------------------------------------------------------------------------------------------------------


def test_a_record_damaged_while_it_is_served_is_one_line(store):
    run = store.add(trace())
    store.close()
    with serving(store) as served:
        with Path(store.path).open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (Path(store.path).stat().st_size - 4096))
        status, told, _ = served.request(f"/api/runs/{run}")
    assert status == 400 and "\n" not in told["error"] and str(store.path) in told["error"]


def test_a_fault_of_the_server_is_a_line_too(store, monkeypatch):
    from quietstar.viewer import pages

    monkeypatch.setattr(pages, "about", lambda *_: 1 / 0)
    with serving(store) as served:
        status, told, headers = served.request("/api/about")
    assert status == 500 and "ZeroDivisionError" in told["error"] and "content-security-policy" in headers


def test_a_damaged_or_foreign_record_is_refused_at_once(run, tmp_path):
    (tmp_path / "text.db").write_text("no database, only words " * 99)
    code, _, err = run("view", "--db", str(tmp_path / "text.db"))
    assert code == 2 and err.count("\n") == 1 and "not a record of quietstar" in err
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE x (y)")
    code, _, err = run("view", "--db", str(tmp_path / "other.db"))
    assert code == 2 and err.count("\n") == 1 and "another program" in err


def test_a_port_in_use_is_one_line_that_says_by_whom(store, run, own_record):
    with serving(store) as served:
        code, _, err = run("view", "--port", str(served.port))
        assert code == 2 and err.count("\n") == 1
        assert "another `quietstar view` listens" in err and str(served.port) in err
    with socket.create_server(("127.0.0.1", 0)) as other:
        code, _, err = run("view", "--port", str(other.getsockname()[1]))
        assert code == 2 and err.count("\n") == 1 and "another program" in err


@pytest.mark.parametrize(
    ("options", "word"),
    [(["--port", "70000"], "--port"), (["--host", "no.such.host.invalid"], "listen"), (["--token", "x"], "--token"),
     (["--no-token", "--host", "0.0.0.0"], "--no-token"), (["--no-token", "--token", "secret-token"], "not both"),
     (["nothing"], "no run")],
)  # fmt: skip
def test_slips_of_the_command_are_one_line(run, options, word):
    code, _, err = run("view", *options)
    assert code == 2 and err.count("\n") == 1 and word in err


@pytest.mark.slow
def test_the_command_says_where_the_page_is_and_ends_by_ctrl_c(tmp_path):
    with Store.open(tmp_path / "r.db") as store:
        run = store.add(trace())
    command = [
        sys.executable,
        "-m",
        "quietstar.cli.main",
        "view",
        run[:5],
        "--db",
        str(tmp_path / "r.db"),
        "--port",
        "0",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    assert re.match(rf"http://127\.0\.0\.1:\d+/\?token=[\w-]+#/run/{run} ", line)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err


# -- one file ---------------------------------------------------------------------------------------------------------


def hostile(store) -> str:
    made = trace(HOSTILE, words=(HOSTILE, " b"), thoughts=[HOSTILE, "\ud800 lone"], model=HOSTILE)
    run = store.add(made)
    store.note(run, HOSTILE)
    one = thought(1, HOSTILE)
    store.intervene(run, Intervention(1, HOSTILE, one.samples[0], one.base, one.mixed, one.only, 0.1, False))
    return run


def test_in_a_file_everything_that_was_said_stays_inside_the_data(store):
    page = export.page(store, [hostile(store)])
    assert page.count("<script") == 2 and page.count("</script>") == 2 and "<img" not in page
    data = json.loads(re.search(r'id="quietstar-data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["runs"][0]["page"]["run"]["asked"] == HOSTILE
    assert "unsafe" not in re.search(r'Policy" content="([^"]*)"', page)[1]


def test_a_file_has_everything_and_names_no_other_machine_and_no_path(store, run):
    first, second = store.add(trace()), store.add(trace(seed=4))
    code, out, _ = run("runs", "export", str(store.path.parent / "page.html"), first, second, "--db", str(store.path))
    assert code == 0 and "2 runs" in out
    page = (store.path.parent / "page.html").read_text(encoding="utf-8")
    assert str(store.path.parent) not in page
    assert set(re.findall(r"https?://[^\s\"'`<]+", page)) <= {"http://www.w3.org/2000/svg"}
    assert "think2 deep" in page and first in page and second in page


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_export_onto_a_full_disk_is_one_line(store, run):
    store.add(trace())
    code, _, err = run("runs", "export", "/dev/full", "--format", "html", "--db", str(store.path))
    assert code == 2 and "no space left" in err and err.count("\n") == 1


def test_a_notebook_shows_the_page_in_a_frame_that_cannot_touch_it():
    shown = trace(HOSTILE, thoughts=[HOSTILE] * 3)._repr_html_()
    assert re.fullmatch(
        r'<iframe srcdoc="[^"<]*" sandbox="allow-scripts" title="quietstar" style="[^"]*"></iframe>', shown
    )


def test_the_modules_keep_to_the_form_that_makes_one_script(monkeypatch, tmp_path):
    assert "export " not in re.sub(r"//.*", "", files.script())
    (tmp_path / "main.js").write_text('import { a } from "./other.js";\nconst b = a;\n')
    (tmp_path / "other.js").write_text("export const a = 1;\nconst b = 2;\n")
    monkeypatch.setattr(files, "STATIC", tmp_path)
    with pytest.raises(ValueError, match="b is defined by other.js and by main.js"):
        files.script.__wrapped__()
    (tmp_path / "other.js").write_text("export default 1;\n")
    with pytest.raises(ValueError, match="export default"):
        files.script.__wrapped__()
    (tmp_path / "other.js").write_text('import { b } from "./main.js";\nexport const a = 1;\n')
    with pytest.raises(ValueError, match="circle"):
        files.script.__wrapped__()
