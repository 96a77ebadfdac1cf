"""The noise floor, the scale and what may be compared, on the page in a real browser."""

from __future__ import annotations

import pytest

from browsing import picture
from quietstar.events import Choice
from quietstar.record import scale
from quietstar.record.store import Store
from quietstar.viewer import export
from recorded import trace
from served import serving, until
from test_hidden_characters import hidden, hostile
from test_noise_shown import measured

pytestmark = pytest.mark.browser


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "record.db") as opened:
        yield opened


def grounds(page, selector: str = ".token") -> list[str]:
    """The colours below words, as #rrggbb; "" for none."""
    found = page.locator(selector).evaluate_all("all => all.map(e => getComputedStyle(e).backgroundColor)")
    numbers = [[float(n) for n in one[one.index("(") + 1 : -1].split(",")] for one in found]
    return ["" if len(one) == 4 and not one[3] else "#" + "".join(f"{int(n):02x}" for n in one[:3]) for one in numbers]


def test_below_the_floor_no_colour_no_mark_and_never_the_strongest(store, visit):
    run = store.add(measured())
    with serving(store) as served:
        page = visit(f"{served.url}#/run/{run}")
        page.wait_for_timeout(300)  # colours fade in
        assert grounds(page) == ["", scale.COLOURS[2], "", scale.COLOURS[1]]
        lines = page.locator(".token").evaluate_all("all => all.map(e => getComputedStyle(e).textDecorationLine)")
        assert lines == ["none", "underline", "none", "none"]
        facts = page.locator(".run-head .facts").first.inner_text()
        assert "likeliest word changed 1 time" in facts and "2 above the noise floor (KL 0.001 nats)" in facts
        assert "Noise floor: 0.001 nats" in page.locator(".legend").inner_text()
        chosen = lambda: page.locator('.token[aria-selected="true"]').inner_text().strip()
        seen = []
        for _ in range(3):
            page.get_by_role("button", name="strongest").click()
            seen.append(chosen())
        assert seen == ["w1", "w3", "w1"]
        page.locator(".token").first.click()
        page.locator(".panel .bars").first.wait_for()
        assert "below the noise floor (KL 0.001): no change" in page.locator(".panel").inner_text()
        assert page.locator(".panel .bars li.other").count() == 1  # from only the thought; with it is no change
        page.get_by_role("radio", name="gain").check()
        page.wait_for_timeout(300)
        assert grounds(page) == ["", scale.COLOURS[3], "", scale.BELOW_ZERO[1]]
        assert "Noise floor of KL: 0.001 nats" in page.locator(".legend").inner_text()
        picture(page, "floor")


def test_a_run_from_before_says_that_it_was_not_measured(store, visit):
    run = store.add(measured(floor=None))
    with serving(store) as served:
        page = visit(f"{served.url}#/run/{run}")
        page.wait_for_timeout(300)
        assert grounds(page) == [scale.COLOURS[n] for n in (0, 2, 0, 1)]
        assert "noise floor not measured" in page.locator(".run-head").inner_text()
        assert "Noise floor not measured" in page.locator(".legend").inner_text()
        page.goto(f"{served.url}#/runs")
        page.locator(".runs").get_by_text("likeliest word changed 2 times").wait_for()
        assert "(noise floor not measured)" in page.locator(".runs").inner_text()


def test_the_legend_shows_every_step_in_its_colour(store, visit):
    run = store.add(measured())
    with serving(store) as served:
        page = visit(f"{served.url}#/run/{run}")
        for measure, label in (("kl", "KL"), ("weight", "w"), ("gain", "gain"), ("entropy", "entropy")):
            page.get_by_role("radio", name=label, exact=True).check()
            swatches = page.locator(".legend .swatch:not(.negative)")
            first, *told = swatches.all_inner_texts()
            assert [float(one.split()[0]) for one in told] == list(scale.BOUNDS[measure])
            assert first == ("up to 0.001: noise" if measure == "kl" else f"below {scale.BOUNDS[measure][0]:g}")
            assert grounds(page, ".legend .swatch:not(.negative)") == ["", *scale.COLOURS]


def test_the_page_and_python_agree_on_every_step(store, visit):
    run = store.add(measured())
    values = [sign * 10 ** (n / 7) for n in range(-35, 10) for sign in (1, -1)] + [0.0, *scale.BOUNDS["kl"]]
    with serving(store) as served:
        page = visit(f"{served.url}#/run/{run}")
        theirs = page.evaluate(
            """async (values) => { const { BOUNDS, step } = await import("/static/scale.js");
            return Object.keys(BOUNDS).map((m) => [m, values.map((v) => step(m, v)), values.map((v) => step(m, v, 0.004))]) }""",
            values,
        )
    for measure, plain, floored in theirs:
        assert plain == [scale.step(measure, value) for value in values]
        assert floored == [scale.step(measure, value, 0.004) for value in values]


def test_side_by_side_one_colour_is_one_size_and_what_computed_them_is_named(store, visit):
    one = store.add(measured(kls=(0.02, 0.02, 0.02, 0.02)))
    two = store.add(measured(kls=(0.0201, 5.0, 0.0009, 0.0201), dtype="bfloat16", floor=0.003,
                             versions={"torch": "3", "transformers": "5"}))  # fmt: skip
    with serving(store) as served:
        page = visit(f"{served.url}#/compare/{one}/{two}")
        page.locator(".aligned").wait_for()
        page.wait_for_timeout(300)
        left, right = grounds(page, ".cell:nth-of-type(1) .token"), grounds(page, ".cell:nth-of-type(2) .token")
        assert left == [scale.COLOURS[2]] * 4 and right == [scale.COLOURS[2], scale.COLOURS[4], "", scale.COLOURS[2]]
        rows = {}
        for row in page.locator(".differing .computed tr").all():
            rows[row.locator("th").inner_text()] = row.locator("td").all_inner_texts()
        assert rows["dtype ≠"] == ["float32", "bfloat16"] and rows["device ="] == ["cpu", "cpu"]
        assert rows["torch ≠"] == ["2", "3"] and rows["transformers ≠"] == ["–", "5"]
        assert rows["noise floor, KL ≠"] == ["0.001", "0.003"]
        assert "Computed with another dtype, torch, transformers" in page.locator(".compare").inner_text()
        assert "0.001 left, 0.003 right" in page.locator(".legend").inner_text()
        picture(page, "compare-floor")


def test_a_difference_within_the_larger_floor_is_none(store, visit):
    one = store.add(measured(kls=(0.02,) * 4))
    two = store.add(measured(kls=(0.0225,) * 4, floor=0.003))
    far = store.add(measured(kls=(0.03,) * 4))
    with serving(store) as served:
        page = visit(f"{served.url}#/compare/{one}/{two}")
        page.locator(".aligned").wait_for()
        assert "mean KL" not in page.locator(".differing").inner_text()
        assert "so no difference: mean KL." in page.locator(".compare").inner_text()
        page = visit(f"{served.url}#/compare/{one}/{far}")
        page.locator(".aligned").wait_for()
        assert "mean KL" in page.locator(".differing").inner_text()


@pytest.mark.parametrize(("probability", "says"), [(0.2999, True), (0.25, False)])
def test_texts_that_part_within_the_floor_may_part_by_rounding(store, visit, probability, says):
    names = []
    for n, word in enumerate((" left", " right")):
        made = measured()
        made.tokens[2].id, made.tokens[2].text = 20 + n, word
        made.thoughts[2].mixed = [Choice(20 + n, word, 0.3), Choice(21 - n, "other", probability)]
        names.append(store.add(made))
    with serving(store) as served:
        page = visit(f"{served.url}#/compare/{names[0]}/{names[1]}")
        page.locator(".aligned").wait_for()
        assert ("may be rounding" in page.locator(".compare").inner_text()) == says


def test_the_list_of_thoughts_shows_what_is_below_apart(store, visit, tmp_path):
    run = store.add(measured())
    old = store.add(measured(floor=None))
    export.write(store, tmp_path / "page.html", [run, old])
    with serving(store) as served:
        for address in (served.url, (tmp_path / "page.html").as_uri()):
            page = visit(f"{address}#/thoughts?run={run}")
            rows = page.locator("tbody tr")
            rows.first.wait_for()
            assert rows.locator(".thought").all_inner_texts() == ["think1", "think3"]
            page.get_by_label("noise floor").select_option("below")
            assert until(lambda rows=rows: rows.locator(".thought").all_inner_texts() == ["think2", "think0"])
            assert rows.first.get_attribute("title") == "below the noise floor: no change"
            page.get_by_label("noise floor").select_option("any")
            assert until(lambda rows=rows: rows.count() == 4)
            page = visit(f"{address}#/thoughts?run={old}")
            rows = page.locator("tbody tr")
            rows.nth(3).wait_for()


def test_a_change_is_told_beside_its_original(store, tiny, visit):
    made = tiny.generate("the quick fox", max_new_tokens=6, thought_length=3, stop_ids=[]).trace
    made.start.dtype = "bfloat16"
    run = store.add(made)
    with serving(store, tiny) as served:
        page = visit(f"{served.url}#/run/{run}/{made.thoughts[2].position}")
        page.get_by_role("button", name="Filler", exact=True).click()
        attempt = page.locator(".try").first
        attempt.locator(".bars").first.wait_for()
        assert attempt.locator(".bars h3").all_inner_texts() == ["own thought", "this thought", "only this thought"]
        told = attempt.inner_text()
        assert "Both predictions were computed now, by dtype float32" in told and "the run by dtype bfloat16" in told
        attempt.get_by_role("button", name="Continue the text").click()
        attempt.get_by_text("with its own thought, computed again").wait_for()
        page.get_by_text("statistics of the thoughts").click()
        page.get_by_role("button", name="Measure with the model").click()
        page.get_by_text("load it with --dtype bfloat16 --device cpu").wait_for()
        page.reload()
        page.locator(".try summary").first.click()
        page.get_by_text("with its own thought, computed again").wait_for()


@pytest.mark.parametrize("page_of", ["run", "runs", "thoughts", "compare", "file"])
def test_no_hidden_character_of_a_record_is_on_the_page(store, visit, tmp_path, page_of):
    run, other = hostile(store), store.add(trace())
    store.tag(run, "plain")
    place = {"run": f"#/run/{run}/1", "runs": "#/runs", "thoughts": "#/thoughts", "compare": f"#/compare/{run}/{other}"}
    export.write(store, tmp_path / "page.html", [run])
    with serving(store) as served:
        page = visit(served.url + place[page_of] if page_of in place else (tmp_path / "page.html").as_uri())
        page.wait_for_timeout(300)
        for summary in page.locator("summary").all():
            if summary.is_visible():
                summary.click()
        page.wait_for_timeout(300)
        text = page.evaluate("document.body.textContent + document.title")
        read = page.evaluate(
            """[...document.querySelectorAll("*")].flatMap((e) =>
            ["title", "aria-label", "placeholder", "aria-description", "aria-valuetext"].map((n) => e.getAttribute(n) ?? "")).join(" ")"""
        )
        script = page.locator("script").evaluate_all("all => all.map(e => e.textContent)")
        for part in script:  # the data of a file, which nobody reads
            text = text.replace(part, "")
        assert "evil" in text and not hidden(text) and not hidden(read)


def test_a_thought_with_hidden_characters_is_edited_as_it_is_shown(store, tiny, visit):
    made = tiny.generate("the quick fox", max_new_tokens=3, thought_length=3, stop_ids=[]).trace
    made.thoughts[1].samples[0].text = "a\u202eb"
    run = store.add(made)
    with serving(store, tiny) as served:
        page = visit(f"{served.url}#/run/{run}/{made.thoughts[1].position}")
        assert page.get_by_label("the thought, to edit").input_value() == "a\\x202eb"
        page.get_by_role("button", name="Try this text").click()
        page.locator(".try").first.wait_for()
    (one,) = store.interventions(run)
    assert one.sample.ids == made.thoughts[1].samples[0].ids, "left as it is it is the thought that was there"
