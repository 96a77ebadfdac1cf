"""A record with flipped bytes: one line that names the file and what to do, and no other change to the file's rows."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import fuzz
from quietstar import QuietStarError
from quietstar.record import exchange, overview
from quietstar.record.store import Store
from quietstar.viewer import pages
from recorded import trace


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("w") / "r.db"
    with Store.open(path) as store:
        for n in range(8):
            run = store.add(trace(prompt=f"question {n}", seed=n))
            store.tag(run, "kept")
            store.measure(run, {1: {"garble": 1.0}})
    return path.read_bytes()


def read_all(store: Store) -> None:
    store.totals()
    for query in ("", "question", "question think2"):
        for run in store.runs(query):
            pages.run(store, run.id)
            pages.statistics(store, run.id)
            exchange.line(store, run.id)
    pages.thoughts(store, {})
    pages.histograms(store, {})
    overview.facets(store)


@fuzz(40)
@given(seed=st.integers(0, 2**32), many=st.sampled_from([1, 1, 2, 8, 64, 1000]))
def test_flipped_bytes_are_one_line(whole, tmp_path_factory, seed, many):
    rng = random.Random(seed)
    data = bytearray(whole)
    for _ in range(many):
        at = rng.randrange(100 if rng.random() < 0.1 else len(data))
        data[at] ^= 1 << rng.randrange(8)
    path = tmp_path_factory.mktemp("d") / "r.db"
    path.write_bytes(data)
    try:
        with Store.open(path) as store:
            read_all(store)
    except QuietStarError as error:
        text = str(error)
        assert len(text.splitlines()) == 1 and (str(path) in text or "run" in text), text


def test_a_value_of_another_kind_is_damage(whole, tmp_path):
    path = tmp_path / "r.db"
    for statement in (
        "UPDATE thoughts SET kl = 'much'",
        "UPDATE runs SET batch_size = 1 << 40",
        "UPDATE runs SET started = x'00'",
    ):
        path.write_bytes(whole)
        with Store.open(path) as store:
            store.change([(statement, [])])
            with pytest.raises(QuietStarError, match=f"{path} is damaged"):
                read_all(store)
