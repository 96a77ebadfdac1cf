"""The page in a real browser: every part of it, by mouse and by keyboard, narrow and wide, light and dark.

Chromium is Debian's (/usr/bin/chromium) or Playwright's own; without either these tests are skipped. Pictures of the
pages are left in build/screenshots. axe-core is used where it is found in build/axe (`make browser` fetches it).
"""

from __future__ import annotations

import re

import pytest

from browsing import AXE, SIZES, picture
from quietstar.events import Choice, End, Sample, Trace
from quietstar.record.store import Store
from quietstar.viewer import export
from recorded import garbled, start, thought, token, trace
from served import serving, until
from test_viewer import HOSTILE, hostile

pytestmark = pytest.mark.browser


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "record.db") as opened:
        yield opened


def long_trace(words: int, seed: int = 0) -> Trace:
    """A run of so many words, each with a thought; every fiftieth thought changes its word, every ninetieth is a line."""
    import random

    rng = random.Random(seed)
    made = Trace(start("Why is the sky blue?", settings=start().settings | {"seed": seed}))
    for n in range(words):
        kl = rng.expovariate(8) ** 2
        made.add(thought(1 + n, garbled(rng, 6), kl=kl, flipped=n % 50 == 7, entropy=rng.random() * 5))
        made.add(token(2 + n, "\n" if n % 90 == 89 else f" {garbled(rng, 1)}"))
    made.add(End(0, "length", made.text, words, words, 1.0))
    return made


def selected(page) -> str:
    return page.locator('.token[aria-selected="true"]').inner_text()


# -- a run ------------------------------------------------------------------------------------------------------------


def test_the_text_reads_as_it_is_and_is_tinted_by_the_chosen_measure(store, visit):
    run = store.add(trace(words=(" So", " it\n", "", " is")))
    with serving(store) as served:
        page = visit(f"{served.url}#/run/{run}")
        assert page.locator(".passage").evaluate("e => e.textContent") == " So it\n is"
        tints = lambda: page.locator(".token").evaluate_all("all => all.map(e => e.dataset.step)")
        assert tints() == ["4"] * 4  # 0.1, 0.2, 0.3, 0.4 nats
        page.get_by_role("radio", name="w", exact=True).check()
        assert tints() == ["4"] * 4  # 0.3
        page.get_by_role("radio", name="surprise").check()
        assert "−log p" in page.locator(".legend").inner_text()
        page.reload()
        assert page.get_by_role("radio", name="surprise").is_checked()  # what was chosen stays chosen


def test_a_changed_word_is_underlined_and_spaces_are_shown_on_demand(store, visit):
    run = store.add(trace(words=(" So", " it\n", " is")))
    with serving(store) as served:
        page = visit(f"{served.url}#/run/{run}")
        lines = page.locator(".token").evaluate_all("all => all.map(e => getComputedStyle(e).textDecorationLine)")
        assert lines == ["none", "underline", "none"]
        page.get_by_label("show spaces").check()
        assert page.locator(".passage").evaluate("e => e.textContent") == "·So·it⏎\n·is"
        page.get_by_label("show spaces").uncheck()
        assert "·" not in page.locator(".passage").inner_text()


def test_a_character_split_over_tokens_is_whole_and_its_inner_thought_can_be_reached(store, visit):
    run = store.add(trace(words=(" a", "", "", "🦊", " b")))
    with serving(store) as served:
        page = visit(f"{served.url}#/run/{run}/2")
        assert page.locator(".passage").evaluate("e => e.textContent") == " a🦊 b"
        assert page.locator(".panel .samples").inner_text().startswith("t")  # think1 deep
        assert page.locator('.token[aria-selected="true"]').get_attribute("aria-label") == "inside a character"
        page.get_by_label("show spaces").check()
        assert page.locator(".passage").evaluate("e => e.textContent") == "·a◦◦🦊·b"


def test_a_thought_is_shown_token_by_token_with_its_bars_samples_and_neighbours(store, visit):
    made = trace(words=(" So", " it", " is", " so"))
    made.thoughts[1].samples = [
        Sample([7, 8, 9], "one two", [-0.1, -1.0, -3.0], 0.25, ["one", " t", "wo"]),
        Sample([7, 8], "other", [-0.5, -0.5], 0.35, ["ot", "her"]),
    ]
    made.thoughts[1].mixed = [Choice(6, " other", 0.6), Choice(5, " base", 0.3)]
    run = store.add(made)
    with serving(store) as served:
        page = visit(f"{served.url}#/run/{run}")
        page.locator(".token").nth(1).click()
        panel = page.locator(".panel")
        panel.locator(".bars").first.wait_for()
        assert panel.locator(".samples > li").count() == 2
        pieces = panel.locator(".samples > li").first.locator(".piece").all_inner_texts()
        assert [piece.split("\n") for piece in pieces] == [["one", "90%"], ["·t", "37%"], ["wo", "5.0%"]]
        assert panel.locator(".bars h3").all_inner_texts() == ["without", "with", "only the thought"]
        boxes = [one.bounding_box() for one in panel.locator(".bars").all()]
        assert len({round(box["y"]) for box in boxes}) == 1 and boxes[0]["x"] < boxes[1]["x"] < boxes[2]["x"]
        assert [" ".join(t.split()) for t in panel.locator(".bars").nth(1).locator("li").all_inner_texts()] == [
            "·other 60 %", "·base 30 %"]  # fmt: skip
        assert panel.locator(".bars li.other").first.inner_text().startswith("·other")
        numbers = panel.inner_text()
        assert (
            "0.2000" in numbers and "0.300" in numbers and "always" in numbers and "likeliest word changed" in numbers
        )
        around = panel.locator(".around button")
        assert around.count() == 3 and "think0 deep" in around.first.inner_text()
        around.last.click()
        assert selected(page).strip() == "so"


def test_every_place_has_an_address_that_survives_a_reload(store, visit):
    run = store.add(long_trace(300))
    with serving(store) as served:
        page = visit(f"{served.url}#/run/{run}/200")
        assert page.locator('.token[aria-selected="true"]').get_attribute("id") == "t200"
        page.locator("#t201").click()
        assert page.url.endswith(f"#/run/{run}/201")
        page.reload()
        page.locator('#t201[aria-selected="true"]').wait_for()
        box = page.locator("#t201").bounding_box()
        assert 0 < box["y"] < SIZES["wide"][1]


def test_all_of_it_by_keyboard(store, visit):
    run = store.add(trace(words=(" So", " it", " is", " so", " now"), thoughts=["a", "b", "c", "d", "e"]))
    with serving(store) as served:
        page = visit(f"{served.url}#/run/{run}")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "skip to the text"
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.getAttribute('role')") == "listbox":
                break
        page.keyboard.press("ArrowRight")
        assert selected(page).strip() == "So"
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowLeft")
        assert selected(page).strip() == "So"
        page.keyboard.press("f")
        assert selected(page).strip() == "it"  # the changed word
        page.keyboard.press("End")
        assert selected(page).strip() == "now"
        active = page.locator(".passage").get_attribute("aria-activedescendant")
        assert page.locator(f"#{active}").inner_text().strip() == "now"
        assert "thought: e" in page.locator(".panel [role=status]").inner_text()
        page.keyboard.press("Shift+Tab")
        assert page.evaluate("document.activeElement.getAttribute('role')") == "slider"
        page.keyboard.press("Home")
        assert selected(page).strip() == "So"
        assert page.locator(".strip").get_attribute("aria-valuetext") == "token 1 of 5"


def test_up_and_down_go_by_lines(store, visit):
    run = store.add(long_trace(400))
    with serving(store) as served:
        page = visit(f"{served.url}#/run/{run}/5")
        top = lambda: page.locator('.token[aria-selected="true"]').evaluate(
            "e => e.getBoundingClientRect().y + scrollY"
        )
        page.locator(".passage").focus()
        before = top()
        page.keyboard.press("ArrowDown")
        below = top()
        page.keyboard.press("ArrowUp")
        assert below > before + 10 and abs(top() - before) < 3


def test_a_run_of_5000_thoughts_opens_whole_and_fetches_only_what_is_looked_at(store, visit):
    run = store.add(long_trace(5000))
    with serving(store) as served:
        page = visit(f"{served.url}#/run/{run}")
        page.locator(".token").nth(4999).wait_for(state="attached")
        assert not [url for url in page.asked if "/thoughts/" in url]
        strip = page.locator(".strip").bounding_box()
        page.mouse.click(strip["x"] + strip["width"] * 0.99, strip["y"] + 10)
        page.locator(".panel .bars").first.wait_for()
        place = int(page.locator('.token[aria-selected="true"]').get_attribute("id")[1:])
        assert place > 4900 and len([url for url in page.asked if "/thoughts/" in url]) == 1
        box = page.locator(f"#t{place}").bounding_box()
        assert 0 < box["y"] < SIZES["wide"][1]
        assert page.locator(".block").first.evaluate("e => getComputedStyle(e).contentVisibility") == "auto"
        picture(page, "run-5000")


# -- lists ------------------------------------------------------------------------------------------------------------


def test_a_thousand_runs_are_read_page_by_page_and_searched(store, visit):
    for n in range(1000):
        store.add(trace(f"question {n}", words=(" a",), thoughts=["deep zebra" if n == 3 else "deep"]))
    with serving(store) as served:
        page = visit(served.url)
        items = page.locator(".runs li")
        items.nth(49).wait_for()
        first = items.count()
        assert first <= 150 and "question 999" in items.first.inner_text()
        page.mouse.wheel(0, 20_000)
        assert until(lambda: items.count() > first)
        page.get_by_role("searchbox").fill("zebra")
        assert until(lambda: items.count() == 1)
        assert until(lambda: "question 3" in items.first.inner_text())
        page.reload()
        assert until(lambda: items.count() == 1)  # the search stands in the address
        items.first.locator("a").click()
        page.locator(".passage").wait_for()
        assert "question 3" in page.locator("h1").inner_text()


def test_thoughts_over_runs_are_sorted_filtered_and_lead_to_their_place(store, visit):
    for n in range(3):
        store.add(trace(f"q{n}", model=f"model{n}"))
    with serving(store) as served:
        page = visit(f"{served.url}#/thoughts")
        rows = page.locator("tbody tr")
        rows.nth(8).wait_for()
        assert [float(t) for t in rows.locator("td:nth-child(3)").all_inner_texts()] == [0.3] * 3 + [0.2] * 3 + [
            0.1
        ] * 3
        page.get_by_role("button", name="KL").click()
        assert until(lambda: rows.count() == 9 and rows.first.locator("td:nth-child(3)").inner_text() == "0.1000")
        assert page.locator('th[aria-sort="ascending"]').inner_text().strip().startswith("KL")
        page.get_by_label("model").select_option("model1")
        page.get_by_label("likeliest word").select_option("1")
        assert until(lambda: rows.count() == 1)
        page.reload()
        rows.first.wait_for()
        assert rows.count() == 1 and page.locator(".spread svg").count() == 5
        assert page.locator(".spread svg").first.get_attribute("aria-label").endswith("1 thought")
        rows.first.locator("a").click()
        page.locator('.token[aria-selected="true"]').wait_for()
        assert "flipped" in page.locator('.token[aria-selected="true"]').get_attribute("class")


def test_a_bar_of_a_histogram_bounds_the_list(store, visit):
    store.add(trace())
    with serving(store) as served:
        page = visit(f"{served.url}#/thoughts")
        page.locator(".spread .bar").nth(39).click()
        assert until(lambda: page.locator("tbody tr").count() == 1)
        assert "min_kl=" in page.url
        page.get_by_role("button", name="all").click()
        assert until(lambda: page.locator("tbody tr").count() == 3)


def test_thoughts_are_sorted_by_gain_and_what_is_unknown_comes_last(store, visit):
    made = trace()
    for one, gain in zip(made.thoughts, (0.5, -0.25, None), strict=True):
        one.base_logprob, one.mixed_logprob = (None, None) if gain is None else (-1.0, -1.0 + gain)
    store.add(made)
    with serving(store) as served:
        page = visit(f"{served.url}#/thoughts")
        gains = page.locator('tbody td[data-label="gain"]')
        gains.nth(2).wait_for()
        page.get_by_role("button", name="gain").click()
        assert until(lambda: gains.all_inner_texts() == ["0.5000", "\u22120.2500", "–"])
        page.get_by_role("button", name="gain").click()
        assert until(lambda: gains.all_inner_texts() == ["\u22120.2500", "0.5000", "–"])


def test_statistics_of_a_run_are_shown_and_completed_by_the_model(store, tiny, tmp_path, visit):
    from quietstar.evals import statistics
    from quietstar.evals.measures import measures

    recorder = store.recorder()
    for _ in recorder.record(tiny.stream("the quick fox", max_new_tokens=8, thought_length=3, stop_ids=[])):
        pass
    (run,) = recorder.runs
    with serving(store, tiny) as served:
        page = visit(f"{served.url}#/run/{run}")
        page.locator(".statistics summary").click()
        rows = page.locator(".statistics tbody tr")
        rows.first.wait_for()
        assert rows.count() == sum(not one.model for one in measures().values())
        page.get_by_role("button", name="Measure with the model").click()
        assert until(lambda: rows.count() == len(measures()))
        means = [float(text.replace("\u2212", "-")) for text in rows.locator("td:nth-child(2)").all_inner_texts()]
        assert means == [pytest.approx(one.mean, abs=6e-5) for one in statistics.of_runs(store, run)]
        assert page.get_by_text("Next token settled after").is_visible()
        picture(page, "statistics")
        page.locator(".token").nth(2).click()
        page.get_by_text("content effect").nth(1).wait_for()
        untouched(page)
    export.write(store, tmp_path / "page.html", [run])
    page = visit((tmp_path / "page.html").as_uri(), offline=True)
    page.locator(".statistics summary").click()
    page.locator(".statistics tbody tr").nth(len(means) - 1).wait_for()


def test_two_runs_side_by_side_differences_first(store, visit):
    one = store.add(trace(words=(" The", " sky", " is", " blue"), seed=1))
    two = store.add(trace(words=(" The", " sea", " is", " blue", "."), seed=2))
    with serving(store) as served:
        page = visit(f"{served.url}#/run/{one}")
        page.get_by_label("compare with another run").focus()
        page.locator(f'option[value="{two}"]').wait_for(state="attached")
        page.get_by_label("compare with another run").select_option(two)
        page.locator(".aligned").wait_for()
        table = page.locator(".differing").inner_text()
        assert "seed" in table and "trigger" not in table
        assert page.locator(".parted li").all_inner_texts() == ["sky / sea", "(nothing) / ."]
        cells = [cell.evaluate("e => e.textContent") for cell in page.locator(".cell").all()]
        assert cells == [" The", " The", " sky", " sea", " is blue", " is blue", "(nothing)", "."]
        assert page.locator(".cell.parts").count() == 4
        order = page.evaluate(
            "[...document.querySelectorAll('.differing, .parted, .aligned')].map(e => e.classList[0])"
        )
        assert order == ["differing", "parted", "aligned"]
        picture(page, "compare")
        page.reload()
        page.locator(".aligned").wait_for()
        page.locator(".cell a").first.click()
        page.locator('.token[aria-selected="true"]').wait_for()


# -- live -------------------------------------------------------------------------------------------------------------


def test_asking_streams_the_answer_and_ends_at_its_run(store, tiny, visit):
    with serving(store, tiny) as served:
        page = visit(f"{served.url}#/ask")
        page.get_by_label("prompt", exact=True).fill("the quick")
        page.get_by_label("system prompt").fill("be kind")
        page.get_by_text("settings").click()
        page.get_by_label("longest answer").fill("6")
        page.get_by_label("thought length").fill("2")
        page.get_by_role("button", name="Ask").click()
        page.wait_for_url(re.compile(r"#/run/\w+"))
        page.locator(".run .passage").wait_for()
        assert page.locator(".token").count() == 6
        (run,) = store.runs()
        assert run.settings["thought_length"] == 2 and "be kind" in run.prompt and run.id in page.url


def test_stop_stops_and_what_was_said_is_kept(store, tiny, visit):
    with serving(store, tiny) as served:
        page = visit(f"{served.url}#/ask")
        page.get_by_label("prompt", exact=True).fill("the")
        page.get_by_text("settings").click()
        page.get_by_label("longest answer").fill("450")
        page.get_by_role("button", name="Ask").click()
        page.locator(".token").nth(3).wait_for(state="attached")  # thoughts and words come as they come
        page.locator(".token").nth(1).click()
        page.locator(".panel .bars").first.wait_for()  # and can be looked at meanwhile
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("see what was recorded").wait_for()
        assert until(lambda: not served.worker._jobs)
        (run,) = store.runs()
        assert run.reason == "interrupted" and 3 < run.tokens < 450


def test_a_wrong_setting_is_one_line_on_the_page(store, tiny, visit):
    with serving(store, tiny) as served:
        page = visit(f"{served.url}#/ask")
        page.get_by_label("prompt", exact=True).fill("the")
        page.get_by_text("settings").click()
        page.get_by_label("when to think").fill("sometimes")
        page.get_by_role("button", name="Ask").click()
        page.get_by_text("unknown trigger 'sometimes'").wait_for()


def test_a_thought_is_changed_and_the_text_goes_on(store, tiny, visit):
    made = tiny.generate("the quick fox", max_new_tokens=8, thought_length=3, stop_ids=[]).trace
    run = store.add(made)
    place = made.thoughts[2].position
    with serving(store, tiny) as served:
        page = visit(f"{served.url}#/run/{run}/{place}")
        page.get_by_label("the thought, to edit").fill("before it speaks")
        page.get_by_role("button", name="Try this text").click()
        attempt = page.locator(".try").first
        attempt.locator(".bars").first.wait_for()
        assert attempt.locator(".bars h3").all_inner_texts() == ["own thought", "this thought", "only this thought"]
        attempt.get_by_role("button", name="Continue the text").click()
        attempt.get_by_role("button", name="Continue it again").wait_for()
        attempt.get_by_label("mark differences").check()
        old, new = (one.evaluate("e => e.textContent") for one in attempt.locator(".said").all())
        assert old and new  # what followed stands beside what was said
        for kind in ("Empty", "Filler", "Shuffle", "No thought", "Donor"):
            before = page.locator(".try").count()
            page.get_by_role("button", name=kind, exact=True).click()
            assert until(lambda n=before: page.locator(".try").count() == n + 1), kind
        page.get_by_role("button", name="Resample 8").click()
        assert until(lambda: page.locator(".try").count() == 14)
        made_of = store.interventions(run, place)
        assert len(made_of) == 14 and made_of[0].kind == "edited" and made_of[0].continuation is not None
        picture(page, "change")
        page.reload()
        page.locator(".try").nth(13).wait_for()  # every try is still there
        assert page.locator(f"#t{place}.changed").count() == 1


# -- looks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pages(store):
    """A record with something on every page, and the addresses of the pages."""
    one, two = store.add(long_trace(240)), store.add(long_trace(200, seed=1))
    store.tag(one, "kept")
    store.note(one, "worth a look")
    return {"runs": "#/runs", "run": f"#/run/{one}/58", "thoughts": "#/thoughts", "ask": "#/ask",
            "compare": f"#/compare/{one}/{two}"}  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("look", ["light", "dark"])
def test_every_page_fits_its_window(store, tiny, pages, visit, size, look):
    with serving(store, tiny) as served:
        for name, place in pages.items():
            page = visit(served.url + place, size=size, look=look)
            page.wait_for_timeout(300)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
            picture(page, f"{name}-{size}-{look}")
            page.context.close()


def test_a_chosen_word_is_not_hidden_by_its_thought(store, visit):
    run = store.add(long_trace(300))
    with serving(store) as served:
        page = visit(f"{served.url}#/run/{run}", size="narrow")
        for _ in range(3):
            page.get_by_role("button", name="strongest").click()
            page.locator(".panel .bars").first.wait_for()
            box = page.locator('.token[aria-selected="true"]').bounding_box()
            above, below = page.locator(".tools").bounding_box(), page.locator(".panel").bounding_box()
            assert above["y"] + above["height"] <= box["y"] and box["y"] + box["height"] <= below["y"]


def test_light_and_dark_can_be_chosen_and_stay(store, pages, visit):
    with serving(store) as served:
        page = visit(served.url, look="light")
        paper = lambda: page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        light = paper()
        page.get_by_label("colour scheme").select_option("dark")
        assert paper() != light
        page.reload()
        page.locator(".runs li").first.wait_for()
        assert paper() != light


@pytest.mark.parametrize("look", ["light", "dark"])
def test_axe_finds_nothing(store, tiny, pages, visit, look):
    if not AXE.exists():
        pytest.skip("needs axe-core: make browser, or npm install --prefix build/axe axe-core")
    script = AXE.read_text(encoding="utf-8")
    with serving(store, tiny) as served:
        for name, place in pages.items():
            page = visit(served.url + place, look=look, bypass_csp=True)
            page.wait_for_timeout(300)
            page.evaluate(script)
            found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
            told = [f"{one['id']}: {node['target']} {node['failureSummary']}" for one in found for node in one["nodes"]]
            assert not told, f"{name}: " + "\n".join(told[:5])
            page.context.close()


# -- safety -----------------------------------------------------------------------------------------------------------


def untouched(page) -> None:
    """No markup came from what was said: only the page's own kinds of elements, no image, no foreign script."""
    assert page.locator("img, iframe, object, embed, form[action], script:not([src]):not([type])").count() == 0
    assert page.evaluate("document.querySelectorAll('script').length") <= 2


def test_whatever_was_said_is_text(store, visit):
    run = hostile(store)
    other = store.add(trace(HOSTILE, words=(HOSTILE,), thoughts=[HOSTILE]))
    with serving(store) as served:
        for place in ("#/runs", f"#/run/{run}/1", "#/thoughts", f"#/compare/{run}/{other}", f"#/runs?query={HOSTILE}"):
            page = visit(served.url + place)
            page.wait_for_timeout(200)
            untouched(page)
        page = visit(f"{served.url}#/run/{run}/1")
        page.locator(".try summary").click()
        page.get_by_label("show spaces").check()
        untouched(page)
        assert "<img·src=x" in page.locator(".passage").inner_text()
        assert "\u202e" not in page.locator("main").inner_text() and "\\x202e" in page.locator(".passage").inner_text()
        assert {url.split("/")[2] for url in page.asked if not url.startswith("data:")} == {served.url.split("/")[2]}


def test_an_imported_file_is_text_too(store, tmp_path, visit):
    from quietstar.record import exchange

    with Store.open(tmp_path / "other.db") as other:
        run = hostile(other)
        exchange.export(other, tmp_path / "runs.jsonl", [run], "jsonl")
    exchange.load(store, tmp_path / "runs.jsonl")
    with serving(store) as served:
        page = visit(f"{served.url}#/run/{run}/1")
        page.locator(".panel .bars").first.wait_for()
        untouched(page)


def test_the_browser_itself_refuses_markup_and_foreign_scripts(store, visit):
    with serving(store) as served:
        page = visit(served.url, tolerant=True)  # what the policy refuses is told on the console
        assert page.evaluate(
            "(() => { try { document.body.innerHTML = '<b>x</b>' } catch (e) { return e.name } })()"
        ) == ("TypeError")
        assert page.evaluate("fetch('http://192.0.2.1/').catch((e) => e.name)") == "TypeError"


# -- one file ---------------------------------------------------------------------------------------------------------


def test_a_file_reads_the_same_without_server_or_network(store, tmp_path, visit):
    one, two = store.add(long_trace(200)), store.add(trace(HOSTILE, words=(HOSTILE,), thoughts=[HOSTILE]))
    file = tmp_path / "page.html"
    export.write(store, file, [one, two])
    page = visit(file.as_uri(), offline=True)
    page.locator(".runs li").nth(1).wait_for()
    assert page.get_by_role("link", name="Ask").count() == 0
    page.get_by_role("link", name="Thoughts", exact=True).click()
    page.locator("tbody tr").nth(99).wait_for()
    strengths = [float(text) for text in page.locator("tbody td:nth-child(3)").all_inner_texts()]
    assert strengths == sorted(strengths, reverse=True)
    page.locator("tbody a").first.click()
    page.locator(".panel .bars").first.wait_for()
    page.reload()
    page.locator('.token[aria-selected="true"]').wait_for()
    page.goto(f"{file.as_uri()}#/run/{two}/1")
    page.locator(".panel .bars").first.wait_for()
    untouched(page)
    page.goto(f"{file.as_uri()}#/compare/{one}/{two}")
    page.locator(".aligned").wait_for()
    assert {url.split(":")[0] for url in page.asked} <= {"file", "data"}
    picture(page, "file")


def test_a_file_of_one_run_opens_on_it(store, tmp_path, visit):
    export.write(store, tmp_path / "page.html", [store.add(trace())])
    page = visit((tmp_path / "page.html").as_uri(), offline=True)
    page.locator(".passage").wait_for()
    page.locator(".token").first.click()
    page.locator(".panel .bars").first.wait_for()


def test_a_notebook_shows_the_run_and_its_thoughts(tmp_path, visit):
    (tmp_path / "notebook.html").write_text(f"<!doctype html><main>{trace()._repr_html_()}</main>", encoding="utf-8")
    page = visit((tmp_path / "notebook.html").as_uri(), offline=True)
    frame = page.frame_locator("iframe")
    frame.locator(".token").nth(1).click()
    frame.locator(".panel .bars").first.wait_for()
    frame.get_by_role("link", name="all its thoughts").click()
    frame.locator("tbody tr").nth(2).wait_for()
    assert page.url.endswith("notebook.html")


# -- the default model ------------------------------------------------------------------------------------------------


@pytest.mark.model
@pytest.mark.slow
def test_the_default_model_is_asked_read_and_changed(store, visit):
    from quietstar import QuietStar

    with serving(store, QuietStar.from_pretrained("default")) as served:
        page = visit(f"{served.url}#/ask")
        page.get_by_label("prompt", exact=True).fill("What is the capital of France?")
        page.get_by_text("settings").click()
        page.get_by_label("longest answer").fill("8")
        page.get_by_label("mixing weight").fill("0.25")
        page.get_by_role("button", name="Ask").click()
        page.wait_for_url(re.compile(r"#/run/\w+"), timeout=120_000)
        page.locator(".run .passage").focus()
        page.keyboard.press("ArrowRight")
        page.locator(".panel .bars").first.wait_for()
        page.get_by_role("button", name="Resample 8").click()
        page.locator(".try").nth(7).wait_for(timeout=60_000)
        assert "Paris" in page.locator(".passage").inner_text()
        picture(page, "default-model")
