"""Addresses of the page that people mistype or that others make up: one clear line, and never another server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import fuzz
from quietstar.record.store import Store
from quietstar.viewer.guard import Guard
from recorded import trace
from served import serving

SECRET = "secret-token"
ELSEWHERE = (
    "//other.host/?token=", "///other.host?token=", "//other.host//x?token=", "/\\other.host?token=",
    "/%5Cother.host?token=", "//%5C/other.host?token=", "/%2F/other.host?token=", "/%09/other.host?token=",
    "//user@other.host/?token=", "/.//other.host?token=",
)  # fmt: skip


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "record.db") as opened:
        yield opened


def leads_elsewhere(location: str) -> bool:
    """Whether a browser at http://here/ would leave the server for this Location (WHATWG: \\ is /, tabs are dropped)."""
    seen = location.replace("\t", "").replace("\n", "").replace("\r", "").replace("\\", "/")
    return not seen.startswith("/") or seen.startswith("//")


@pytest.mark.parametrize("path", ELSEWHERE)
def test_the_redirect_that_drops_the_token_stays_on_the_server(store, path):
    with serving(store, token=SECRET, host="0.0.0.0") as served:
        status, _, headers = served.request(path + SECRET)
    assert status == 303 and not leads_elsewhere(headers["location"]), headers["location"]


@fuzz(300)
@given(st.text(st.sampled_from("/\\.:@?#%\t\n ab2F5C"), max_size=20))
def test_no_path_leads_elsewhere(path):
    told = []

    async def send(message):
        told.append(message)

    scope = {"type": "http", "method": "GET", "path": "/" + path, "query_string": f"token={SECRET}".encode(),
             "headers": [(b"host", b"127.0.0.1")]}  # fmt: skip
    with pytest.raises(StopIteration):  # it waits for nothing
        Guard(None, "127.0.0.1", 1, SECRET)(scope, None, send).send(None)
    location = dict(told[0]["headers"])[b"location"].decode()
    assert not leads_elsewhere(location), location


@pytest.mark.browser
@pytest.mark.parametrize(
    ("place", "says"),
    [("#/%E0", "“%E0” is no valid percent-encoding"), ("#/run/%", "“%” is no valid percent-encoding"),
     ("#/run/%E0%A4/3", "no valid percent-encoding"), ("#/run/nothing", "no run"), ("#/run", "no run"),
     ("#/compare/%C0", "no valid percent-encoding"), ("#/compare", "no run")],
)  # fmt: skip
def test_a_damaged_address_is_one_line_with_a_way_back(store, visit, place, says):
    store.add(trace())
    with serving(store) as served:
        page = visit(served.url + place)
        problem = page.get_by_role("alert")
        problem.wait_for()
        assert says in problem.inner_text() and "\n" not in problem.inner_text()
        page.get_by_role("link", name="all runs").click()
        page.locator(".runs li").wait_for()


@pytest.mark.browser
@pytest.mark.parametrize(
    "place", ["#/constructor", "#/__proto__", "#/toString/x", "#/nonsense", "#//other.host", "#///"]
)
def test_an_unknown_page_is_the_list_of_runs(store, visit, place):
    store.add(trace())
    with serving(store) as served:
        page = visit(served.url + place)
        page.locator(".runs li").wait_for()
        assert page.url.startswith(served.url)
