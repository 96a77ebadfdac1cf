"""The page is opened in the browser by a private file, so that its token is on no command line."""

import stat

import pytest

from quietstar.record.store import Store
from quietstar.viewer.opening import private_redirect
from recorded import trace
from served import serving


def test_the_redirecting_file_is_private_and_removed():
    with private_redirect("http://127.0.0.1:1/?token=a&b#/run/x") as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert "url=http://127.0.0.1:1/?token=a&amp;b#/run/x" in path.read_text()
    assert not path.parent.exists()


@pytest.mark.browser
def test_the_redirecting_file_opens_the_page_with_its_token(tmp_path, visit):
    with Store.open(tmp_path / "r.db") as store:
        run = store.add(trace())
        with serving(store, token="a-secret-token") as served:
            address = f"http://127.0.0.1:{served.port}/?token=a-secret-token#/run/{run}"
            with private_redirect(address) as path:
                page = visit(path.as_uri())
                page.wait_for_url("**/#/run/*")
                page.locator(".token").first.wait_for()
                assert "token" not in page.url
