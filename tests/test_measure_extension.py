"""A package adds a measure through the entry point group `quietstar.measures`; the example is the one of CONTRIBUTING.md."""

import json
import sys

import pytest

from quietstar import QuietStarError
from quietstar.evals import statistics
from quietstar.evals.measures import measures
from quietstar.record.store import Store
from quietstar.viewer import pages
from recorded import trace

MEASURE = '''\
"""A measure of another package: how surprised the model was by the thought it sampled."""

from quietstar.evals.measures import Measure
from quietstar.events import Trace


def mean_surprise(trace: Trace, number: int) -> float | None:
    """Mean over the samples of thought `number`, None where all of them are empty."""
    samples = [sample for sample in trace.thoughts[number].samples if sample.logprobs]
    found = [-sum(sample.logprobs) / len(sample.logprobs) for sample in samples]
    return sum(found) / len(found) if found else None


HESITATION = Measure(
    name="hesitation",
    label="surprise of the thought",
    unit="nats/token",
    formula="−1/|T| Σ log p(T_j | text, T_<j)",
    source="hesitation 1.0",
    of=mean_surprise,
)
'''
ENTRY_POINT = (
    'hesitation = "hesitation:HESITATION"'  # in pyproject.toml under [project.entry-points."quietstar.measures"]
)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package with one entry point on the path, as an installer does."""

    def installed(name: str, code: str, entry: str) -> None:
        site = tmp_path / name
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{name}.py").write_text(code, encoding="utf-8")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[quietstar.measures]\n" + entry.replace('"', "") + "\n")
        monkeypatch.syspath_prepend(site)

    return installed


def test_a_measure_of_another_package_stands_beside_the_others(install, own_record, run):
    own = list(measures())
    install("hesitation", MEASURE, ENTRY_POINT)
    assert list(measures()) == [*own, "hesitation"]
    made = trace()  # thoughts with log-probabilities -0.5 and -1.25
    assert statistics.of_trace(made)["hesitation"] == [0.875] * 3
    with Store.open() as store:
        name = store.add(made)
        found = {one.name: one for one in statistics.of_runs(store, name)}["hesitation"]
        assert (found.mean, found.count, found.unit) == (0.875, 3, "nats/token")
        assert found.to_dict() in pages.statistics(store, name)["statistics"]
    code, out, _ = run("stats", name, "--json")
    assert code == 0
    assert json.loads(json.dumps(found.to_dict())) in json.loads(out)["statistics"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_module", r"measure 'broken' \(broken:ONE\) could not be loaded: No module named"),
        ("ONE = 3", r"measure 'broken' \(broken:ONE\) must be a Measure with a function `of`"),
        (
            "from quietstar.evals.measures import Measure\nONE = Measure('x', 'x', '', 'x', 'x')",
            r"must be a Measure with a function `of`",
        ),
        (
            "from quietstar.evals.measures import Measure\nONE = Measure('kl', 'x', '', 'x', 'x', lambda t, n: 1.0)",
            r"two measures named 'kl'; rename the one in broken:ONE",
        ),
    ],
)
def test_a_measure_that_cannot_be_used_is_named(install, monkeypatch, code, message):
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    install("broken", code, "broken = broken:ONE")
    with pytest.raises(QuietStarError, match=message):
        measures()
    monkeypatch.delitem(sys.modules, "broken", raising=False)
