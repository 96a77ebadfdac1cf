"""Imported lines that are wrong in any way: one line that names file and line, nothing imported, nothing left hanging."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import fuzz
from quietstar import QuietStarError
from quietstar.scratchpad import exchange
from quietstar.scratchpad.store import Store
from recorded import trace

ODD = [
    None, True, -1, 0, 1.5, 2**31, 2**63, -(2**63) - 1, 10**30, 1e308, "", "x", "\ud800", "\0", "9" * 400, [], {}, [[]],
    [None], {"": None}, [1, "a"], "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "abcdefgh",
]  # fmt: skip


def deep(levels: int) -> dict:
    inner: dict = {}
    for _ in range(levels):
        inner = {"a": inner}
    return inner


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict:
    with Store.open(tmp_path_factory.mktemp("g") / "g.db") as store:
        run = store.add(trace())
        store.tag(run, "kept")
        store.measure(run, {1: {"garble": 1.0}})
        return json.loads(json.dumps(exchange.line(store, run)))


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "record.db") as opened:
        yield opened


def refused(store, path, *lines) -> str:
    path.write_text("\n".join(json.dumps(line) for line in lines))
    with pytest.raises(QuietStarError, match="nothing was imported") as told:
        exchange.load(store, path)
    assert len(str(told.value).splitlines()) == 1 and len(str(told.value)) < 1000 and not list(store.runs())
    return str(told.value)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("batch", "../etc", "no id"), ("batch", 5, "batch"), ("batch", {}, "batch"), ("continues", "A b", "no id"),
        ("continues", ["x"], "continues"), ("started", "0001-01-01T00:00:00+14:00", "no time"),
        ("started", "9999-12-31T23:59:59-12:00", "no time"), ("started", "", "no time"),
        ("measures", {"77": {"garble": 1.0}}, "nothing was imported"),
    ],
)  # fmt: skip
def test_fields_of_a_line(good, store, tmp_path, field, value, says):
    assert says in refused(store, tmp_path / "wrong.jsonl", good | {field: value})


@pytest.mark.parametrize("levels", [70, 400, 900, 100_000])
def test_settings_are_bounded_in_depth(good, store, tmp_path, levels):
    text = json.dumps(good).replace(
        '"settings": {', '"settings": {"x": ' + '{"a":' * levels + "1" + "}" * levels + ",", 1
    )
    (tmp_path / "deep.jsonl").write_text(text)
    with pytest.raises(QuietStarError, match="deep|no JSON"):
        exchange.load(store, tmp_path / "deep.jsonl")


def test_a_line_goes_on_from_itself_or_in_a_circle(good, store, tmp_path):
    assert "itself" in refused(store, tmp_path / "a.jsonl", good | {"continues": good["id"]})
    ids = ["aaaa1111", "bbbb2222", "cccc3333"]
    circle = [good | {"id": one, "continues": ids[n - 1]} for n, one in enumerate(ids)]
    assert "itself" in refused(store, tmp_path / "b.jsonl", *circle)


def test_a_circle_that_is_there_is_read_and_shown(good, store, tmp_path, run):
    ids = [store.add(trace(seed=n)) for n in range(3)]
    for n, one in enumerate(ids):
        store.change([("UPDATE runs SET continues = ? WHERE id = ?", [ids[n - 1], one])])
    code, out, _ = run("show", ids[0], "--db", str(store.path))
    assert code == 0 and all(one in out for one in ids)


def test_a_long_line_is_not_read(good, store, tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "LONGEST_LINE", 3000)
    assert "it has more than" in refused(store, tmp_path / "long.jsonl", good | {"note": "x" * 4000})


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


def places(value, path=()):
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


@fuzz(60)
@given(seed=st.integers(0, 2**32), many=st.integers(1, 3))
def test_any_damage_is_one_line_or_a_whole_run(good, tmp_path_factory, seed, many):
    rng = random.Random(seed)
    line = json.loads(json.dumps(good))
    for _ in range(many):
        path = rng.choice([one for one in places(line) if one])
        inner = line
        for key in path[:-1]:
            inner = inner[key]
        how = rng.randrange(4)
        if how == 0:
            del inner[path[-1]]
        elif how == 1 and isinstance(inner, dict):
            inner[rng.choice(["x", "\ud800", "n" * 300])] = rng.choice(ODD)
        else:
            inner[path[-1]] = deep(rng.choice([3, 80, 300])) if how == 2 else rng.choice(ODD)
    data = bytearray(json.dumps(line).encode())
    if rng.random() < 0.3:
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    folder = tmp_path_factory.mktemp("f")
    (folder / "x.jsonl").write_bytes(data)
    with Store.open(folder / "r.db") as store:
        try:
            added = exchange.load(store, folder / "x.jsonl").added
        except QuietStarError as error:
            assert len(str(error).splitlines()) == 1 and not list(store.runs())
            return
        for run in added:  # what came in can be read, listed and taken out again
            whole = exchange.line(store, run)
            assert whole["id"] == run and store.run(run) and store.thoughts(run=run) is not None
