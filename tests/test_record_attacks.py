"""What damaged files, hostile requests and other programs can do to the record and its page: nothing but one clear line."""

import http.client
import json
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import fuzz
from quietstar import QuietStarError
from quietstar.record import exchange, schema
from quietstar.record.store import Store
from quietstar.viewer import pages, serving, worker
from recorded import trace
from served import serving as served_by
from served import until


def clear(error: QuietStarError) -> bool:
    return bool(str(error)) and "\n" not in str(error) and len(str(error)) < 600


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "record.db") as opened:
        yield opened


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> list[dict]:
    """Three runs as lines of JSON, the second behind the first."""
    folder = tmp_path_factory.mktemp("lines")
    with Store.open(folder / "record.db") as opened:
        first = opened.add(trace())
        runs = [first, opened.add(trace(seed=4), continues=first), opened.add(trace(seed=5))]
        opened.tag(first, "kept")
        opened.measure(first, {1: {"garble": 2.0}})
        return [json.loads(json.dumps(exchange.line(opened, run))) for run in runs]


def imported(store: Store, path, rows: list) -> exchange.Imported:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return exchange.load(store, path)


# -- imports ----------------------------------------------------------------------------------------------------------


def changed(row: dict, place: str, value: object) -> dict:
    row = json.loads(json.dumps(row))
    *parents, last = place.split(".")
    at = row
    for name in parents:
        at = at[int(name) if isinstance(at, list) else name]
    at[int(last) if isinstance(at, list) else last] = value
    return row


DEEP: object = []
for _ in range(200):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("place", "value", "word"),
    [
        ("batch", "no id!", "not the id of a run"),
        ("continues", "../../etc", "not the id of a run"),
        ("id", "x" * 100, "not the id of a run"),
        ("started", "0001-01-01T00:00:00+14:00", "not a time"),
        ("started", "9999-12-31T23:59:59-14:00", "not a time"),
        ("started", "yesterday", "not a time"),
        ("trace.start.settings", {"a": DEEP}, "deep"),
        ("trace.tokens.2.position", 2**70, "too large"),
        ("trace.thoughts.0.position", -(2**70), "too large"),
        ("trace.sequence", 5, "prompts do not fit"),
        ("quietstar", 99, "newer quietstar"),
    ],
)
def test_damaged_lines_are_refused_and_nothing_comes_in(store, lines, tmp_path, place, value, word):
    with pytest.raises(QuietStarError, match=word) as refused:
        imported(store, tmp_path / "in.jsonl", [lines[2], changed(lines[0], place, value)])
    assert clear(refused.value) and "nothing was imported" in str(refused.value)
    assert store.totals()["runs"] == 0


def test_a_circle_of_continued_runs_is_refused_at_import_and_survived_in_a_file(store, lines, tmp_path, run):
    first, second = changed(lines[0], "continues", lines[1]["id"]), lines[1]
    with pytest.raises(QuietStarError, match="continues itself"):
        imported(store, tmp_path / "in.jsonl", [first, second])
    with pytest.raises(QuietStarError, match="continues itself"):
        imported(store, tmp_path / "in.jsonl", [changed(lines[2], "continues", lines[2]["id"])])
    imported(store, tmp_path / "in.jsonl", [lines[0], second])
    store.change([("UPDATE runs SET continues = ? WHERE id = ?", [second["id"], lines[0]["id"]])])
    assert [one.id for one in store.chain(second["id"])] == [lines[0]["id"], second["id"]]
    assert run("show", second["id"], "--db", str(store.path))[0] == 0


def test_a_line_without_end_is_refused_before_it_is_read_whole(store, tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "LONGEST_LINE", 2**20)
    path = tmp_path / "long.jsonl"
    path.write_bytes(b'{"quietstar": 1, "id": "' + b"a" * 2**21)
    with pytest.raises(QuietStarError, match="more than 1 MB"):
        exchange.load(store, path)


@pytest.mark.parametrize("name", ["", "a\0b", "~no-such-user-here/x.jsonl", "x" * 5000])
def test_names_of_files(store, run, name):
    one = store.add(trace())
    for arguments in (
        ("import", name),
        ("export", name, one, "--format", "jsonl"),
        ("export", name, "--format", "html"),
    ):
        code, _, err = run("runs", arguments[0], *arguments[1:], "--db", str(store.path))
        assert code == 2 and err.count("\n") == 1 and "Traceback" not in err, err
    for arguments in (("runs", "--db", name), ("show", "x", "--db", name)):
        code, _, err = run(*arguments)
        assert code == 2 and err.count("\n") == 1, err


SCALAR = (
    st.none() | st.booleans() | st.integers() | st.integers(-(2**80), 2**80) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["", "nan", "inf", "own", "0001-01-01", "\ud800", "\0"])
)  # fmt: skip
ANYTHING = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


def places(value: object, prefix: tuple = ()) -> list[tuple]:
    """Every place inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [prefix, *(place for key, one in inner for place in places(one, (*prefix, key)))]


@fuzz(120)
@given(st.data())
def test_any_damage_to_a_line_is_read_or_refused_with_a_line(lines, tmp_path_factory, data):
    row = json.loads(json.dumps(lines[data.draw(st.integers(0, 2))]))
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(places(row)[1:]))
        at = row
        for key in place[:-1]:
            at = at[key]
        if data.draw(st.booleans()):
            at[place[-1]] = data.draw(ANYTHING)
        else:
            del at[place[-1]]
    text = json.dumps(row)
    if data.draw(st.integers(0, 3)) == 0:
        cut = data.draw(st.integers(0, len(text)))
        text = text[:cut] + data.draw(st.text(max_size=3)) + text[cut + data.draw(st.integers(0, 3)) :]
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "in.jsonl").write_text(text, encoding="utf-8", errors="surrogatepass")
    with Store.open(folder / "record.db") as opened:
        try:
            done = exchange.load(opened, folder / "in.jsonl")
        except QuietStarError as error:
            assert clear(error)
            assert opened.totals()["runs"] == 0
            return
        for name in done.added:  # what came in can be read, shown and written out again
            assert opened.chain(name) and opened.trace(name).to_dict()
            exchange.line(opened, name)


# -- damaged files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [("runs", "settings", "{"), ("runs", "prompt_ids", "[[["), ("runs", "batch_size", 10**15), ("runs", "versions", "[" * 9999),
     ("thoughts", "base_top", "[1]"), ("samples", "logprobs", '["x"]'), ("runs", "sequence", -7),
     ("runs", "settings", "[1]"), ("runs", "versions", "[]"), ("runs", "prompt_ids", "{}"), ("samples", "tokens", "{}"),
     ("samples", "tokens", '["a"]'), ("samples", "pieces", "[1]"), ("samples", "logprobs", "{}"),
     ("thoughts", "mixed_top", '[["a", "b", 1]]')],
)  # fmt: skip
def test_values_that_nobody_wrote_are_told_with_the_run(store, table, column, value):
    name = store.add(trace())
    store.change([(f"UPDATE {table} SET {column} = ?", [value])])
    with pytest.raises(QuietStarError, match="damaged"):
        list(store.runs())
        store.trace(name)
    with pytest.raises(QuietStarError, match="damaged"):
        pages.run(store, name)
        for thought in store.thoughts(run=name, limit=None):
            pages.thought(store, name, thought.position)
        exchange.line(store, name)


def test_a_file_that_cannot_be_written_is_read_where_it_stands(store, tmp_path):
    name = store.add(trace())
    with closing(schema.connect(store.path, writable=False)) as db:
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            db.execute("DELETE FROM runs")
        second = store.add(trace(seed=9))  # written meanwhile by somebody who may
        assert {row[0] for row in db.execute("SELECT id FROM runs")} == {name, second}


def test_a_file_whose_folder_takes_no_files_is_read_from_a_copy(store, monkeypatch):
    name = store.add(trace())
    real = schema._connect

    def refusing(uri: str):
        if "mode=ro" in uri:
            raise sqlite3.OperationalError("unable to open database file")
        return real(uri)

    monkeypatch.setattr(schema, "_connect", refusing)
    with closing(schema.connect(store.path, writable=False)) as db:
        assert [row["id"] for row in db.execute("SELECT id FROM runs")] == [name]


def test_threads_that_ended_leave_no_connection_open(store):
    store.add(trace())

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    for _ in range(5):
        threads = [threading.Thread(target=lambda: list(store.runs())) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(store._opened) <= 2
    assert descriptors() <= before + 20  # SQLite keeps a few to close later, because of POSIX locks


# -- the page's server ------------------------------------------------------------------------------------------------

PATHS = st.sampled_from(
    ["/", "/api/about", "/api/runs", "/api/runs/{}", "/api/runs/{}/statistics", "/api/runs/{}/thoughts/{}", "/api/thoughts",
     "/api/histograms", "/api/ask", "/api/runs/{}/thoughts/{}/change", "/api/runs/{}/measure",
     "/api/runs/{}/interventions/{}/follow", "/static/{}", "/{}", "//{}"]
)  # fmt: skip
PIECE = st.sampled_from(
    ["RUN", "1", "0", "-1", "9" * 12, "9" * 30, "9" * 5000, "%00", "%E0", "..", "a%2Fb", "", "x" * 3000, "nan"]
)
QUERY = st.dictionaries(
    st.sampled_from(["query", "tag", "after", "offset", "order", "way", "min_kl", "max_gain", "flipped", "run", "model", "x"]),
    st.sampled_from(["", "1", "-1", "9" * 40, "9" * 5000, "nan", "inf", '"', "%", "\0", "kl", "a b", "\ud7ff", "*", "NEAR("]),
    max_size=3,
)  # fmt: skip
BODY = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([b"[" * 20000, b'{"prompt": ' + b"1" * 5000 + b"}", b"null", b"[]", b'{"a": 1e999}']),
    st.fixed_dictionaries(
        {},
        optional={
            "prompt": SCALAR, "system": SCALAR, "raw": SCALAR, "kind": st.sampled_from(["edited", "donor", "none", "own", "x"]) | SCALAR,
            "text": SCALAR, "n": SCALAR, "seed": SCALAR, "donor": SCALAR, "most": SCALAR,
            "settings": st.dictionaries(
                st.sampled_from(["raw", "max_new_tokens", "thought_length", "stop", "seed", "trigger", "x", "prompt"]),
                SCALAR | st.just({}), max_size=2,
            ),
        },
    ).map(lambda form: json.dumps(form).encode("utf-8", "surrogatepass")),
)  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page over one run, with a model that answers nothing."""

    class Silent:
        def __getattr__(self, name):
            raise QuietStarError("no model here")

    with Store.open(tmp_path_factory.mktemp("page") / "record.db") as opened:
        name = opened.add(trace())
        with served_by(opened, Silent()) as served:
            served.run = name
            yield served


@fuzz(150)
@given(
    PATHS,
    st.lists(PIECE, min_size=2, max_size=2),
    QUERY,
    st.none() | BODY,
    st.sampled_from(["GET", "POST", "PUT", "DELETE"]),
)
def test_any_request_gets_an_answer_that_is_no_fault(page, path, pieces, query, body, method):
    from urllib.parse import urlencode

    pieces = [page.run if one == "RUN" else one for one in pieces]
    address = path.format(*pieces) + (f"?{urlencode(query, errors='replace')}" if query else "")
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=30)
    try:
        connection.request(method, address.replace(" ", "%20"), body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
    except (http.client.HTTPException, ConnectionError, ValueError):  # refused by the client or as no HTTP
        return
    finally:
        connection.close()
    assert answer.status < 500, (method, address, body, text)
    if answer.status >= 400 and answer.headers.get("content-type", "").startswith("application/json"):
        assert "\n" not in json.loads(text)["error"]
    if answer.headers.get("content-type", "").startswith("text/event-stream"):
        for line in text.decode().split("\n"):
            if line.startswith("data: ") and "error" in (found := json.loads(line[6:])):
                assert "Error:" not in found["error"], (address, body, found)


def test_an_unknown_address_is_a_line_of_json(page):
    status, found, _ = page.request("/api/nowhere")
    assert status == 404 and "nowhere" in found["error"]
    status, found, _ = page.request("/api/runs", body={})
    assert status == 405 and "POST" in found["error"]


def test_settings_that_are_none_are_refused_by_name(page):
    *_, (kind, found) = page.frames("/api/ask", {"prompt": "Why?", "settings": {"raw": True}})
    assert kind == "problem" and "'raw'" in found["error"]


def test_small_answers_do_not_wait_for_acknowledgements():
    with closing(serving._listen("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert accepted.proto == socket.IPPROTO_TCP  # asyncio looks at this


# -- who else listens on the port -------------------------------------------------------------------------------------


@contextmanager
def squatting(answer):
    """A program on a port of its own that answers every connection with `answer(connection)`."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


def endless(connection) -> None:
    try:
        while True:
            connection.sendall(b"x" * 65536)
    except OSError:
        pass


def trickling(connection) -> None:
    try:
        while True:
            connection.sendall(b"x")
            time.sleep(0.05)
    except OSError:
        pass


@pytest.mark.parametrize(
    "answer",
    [endless, trickling, lambda connection: time.sleep(60),
     lambda connection: connection.sendall(b'HTTP/1.0 200 OK\r\n\r\n{"record": "\x1b[2J\x07"}'), lambda connection: connection.close()],
    ids=["endless", "trickling", "silent", "control characters", "closes"],
)  # fmt: skip
def test_a_squatter_is_another_program_and_nothing_it_says_is_shown(answer, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with squatting(answer) as port:
        began = time.monotonic()
        line = serving._taken("127.0.0.1", port)
        assert time.monotonic() - began < 10
    assert "another program" in line and line.isprintable()


def test_another_page_of_ours_is_known_though_it_asks_for_a_token(store):
    with served_by(store, token="secret-token") as served:
        assert "another `quietstar view`" in serving._taken("127.0.0.1", served.port)


# -- ending -----------------------------------------------------------------------------------------------------------


def test_work_between_frames_ends_when_nobody_listens(store):
    begun, ended = threading.Event(), threading.Event()

    def work(model):
        begun.set()
        try:
            while True:
                worker.check()
                time.sleep(0.01)
        finally:
            ended.set()
        yield

    with served_by(store, object()) as served:
        import asyncio

        async def ask() -> None:
            job = served.worker.start(work)
            while not begun.is_set():
                await asyncio.sleep(0.01)
            job.stop()
            async for _ in job:
                pass

        asyncio.run(ask())
        assert until(ended.is_set, 5)


def test_a_cancelled_measurement_frees_its_place(store_of_tiny):
    store, tiny, run = store_of_tiny
    with served_by(store, tiny) as at:
        answer, connection = at.open_stream(f"/api/runs/{run}/measure", {})
        answer.close()
        connection.close()
        assert until(lambda: not at.worker._jobs, 10)
        assert at.frames("/api/ask", {"prompt": "the", "settings": {"max_new_tokens": 2}})[-1][1]["event"] == "end"


@pytest.fixture
def store_of_tiny(tmp_path, tiny):
    with Store.open(tmp_path / "r.db") as store:
        yield store, tiny, store.add(tiny.generate("the quick", max_new_tokens=40, thought_length=6, stop_ids=[]).trace)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_terminated_has_its_end_recorded(folder, tmp_path, number):
    db = tmp_path / "record.db"
    process = subprocess.Popen(
        [sys.executable, "-m", "quietstar", "think", "the quick", "--model", folder, "--db", str(db), "-n", "400", "--raw",
         "--json", "-t", "20", "--speculate", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stdout:
        if '"token"' in line:
            break
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode in (130, 128 + number)
    with Store.open(db, create=False) as opened:
        (one,) = opened.runs()
        assert one.reason == "interrupted" and one.tokens >= 1
