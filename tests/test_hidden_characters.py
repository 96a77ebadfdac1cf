"""Whatever a record says, terminal and page show its control and direction characters as codes."""

from __future__ import annotations

import json
import subprocess
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import fuzz
from quietstar.cli import main as cli
from quietstar.record.entries import Intervention
from quietstar.record.store import Store
from quietstar.text import visible
from quietstar.viewer import files
from recorded import start, thought, trace, traces

EVIL = "\u202eevil\x1b[31m\x07\u2066\u200b\x85\ufeff\U000e0041"


def hidden(text: str, allowed: str = "\n\t") -> list[str]:
    """Characters of a text that a person does not see."""
    return [c for c in text if c not in allowed and c not in "\u200c\u200d"
            and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]  # fmt: skip


def hostile(store: Store) -> str:
    """A run with such characters wherever a record has text."""
    made = trace(EVIL, words=(EVIL, " b"), thoughts=[EVIL, EVIL], model=EVIL, base=EVIL, dtype=EVIL, device=EVIL,
                 version=EVIL, versions={EVIL: EVIL})  # fmt: skip
    made.start.settings |= {EVIL: EVIL, "stop": [EVIL], "deep": {EVIL: EVIL}}
    made.start.identity.adapter = made.start.identity.base_hash = made.start.identity.head_hash = EVIL
    for one in made.thoughts:
        one.trigger = one.control = EVIL
        for choice in (*one.base, *one.mixed, *one.only):
            choice.text = EVIL
    made.end.reason = EVIL
    run = store.add(made)
    store.note(run, EVIL)
    one = made.thoughts[0]
    settings = {EVIL: EVIL, "donor": EVIL, "original": EVIL, "compared": {
        "mixed": [[1, EVIL, 0.5]], "kl": 1, "floor": {"logprob": 1}, "changed": True, "computed": {EVIL: EVIL},
        "recorded": {EVIL: EVIL}}}  # fmt: skip
    store.intervene(run, Intervention(one.position, EVIL, one.samples[0], one.base, one.mixed, one.only, 0.1, False,
                                      continuation=EVIL, settings=settings))  # fmt: skip
    store.select("SELECT 1")
    return run


COMMANDS = (["show"], ["show", "--top", "3", "--measure", "gain"], ["runs"], ["stats"])


def test_the_terminal_shows_codes(run):
    with Store.open() as store:
        hostile(store)
    for command in COMMANDS:
        code, out, _ = run(*command)
        assert code == 0 and not hidden(out), command
        if command[0] != "stats":
            assert "\\x202eevil\\x1b[31m" in out


@fuzz(25)
@given(traces(), st.text(max_size=8))
def test_no_record_puts_a_hidden_character_into_the_terminal(run, own_record, made, note):
    with Store.open() as store:
        for old in store.runs(limit=None):
            store.delete(old.id)
        store.note(store.add(made), note)
    for command in COMMANDS:
        code, out, _ = run(*command)
        assert code == 0 and not hidden(out), (command, hidden(out))


@fuzz(200)
@given(st.text())
def test_visible_leaves_nothing_hidden(text):
    assert not hidden(visible(text), "")
    assert visible(visible(text)) == visible(text)


def test_a_message_on_standard_error_shows_codes(run):
    with Store.open() as store:
        store.add(trace())
    code, _, err = run("show", EVIL)
    assert code == 2 and not hidden(err)


@pytest.mark.skipif(not Path("/usr/bin/node").exists(), reason="needs node")
def test_the_page_makes_the_same_text_of_it(tmp_path):
    """The page's own function and ours, over every character that could matter."""
    every = [chr(n) for n in range(0x11000) if not 0xD800 <= n < 0xE000] + [chr(n) for n in range(0xE0000, 0xE0080)]
    module = (files.STATIC / "dom.js").read_text(encoding="utf-8")
    script = module.replace("export ", "") + (
        'const every = JSON.parse(require("fs").readFileSync(0, "utf8"));'
        "console.log(JSON.stringify(every.map(visible)));"
    )
    done = subprocess.run(["node", "-e", script], input=json.dumps(every), capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout)
    different = [hex(ord(c)) for c, one in zip(every, theirs, strict=True) if one != visible(c)
                 and unicodedata.category(c) != "Cn"]  # fmt: skip
    assert not different


def test_start_has_no_text_that_is_not_tried_here():
    """A field that is added to what a record says is added to `hostile` above."""
    assert set(start().to_dict()) == {
        "event", "schema", "version", "model", "base", "dtype", "device", "untrained", "prompts", "prompt_ids", "chat",
        "settings", "phase", "identity", "versions", "asked",
    }  # fmt: skip
    assert cli and thought(1).to_dict().keys() >= {"trigger", "control", "samples"}
