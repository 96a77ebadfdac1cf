"""The docs say what the program does."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def maker():
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "docs" / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_page_of_commands_is_the_real_help():
    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == maker().commands(), "run `make docs`"


def test_the_page_of_statistics_has_the_real_measures():
    page = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
    assert page == maker().measures(page), "run `make docs`"


def test_the_page_of_the_record_has_the_real_tables():
    page = (ROOT / "docs" / "record.md").read_text(encoding="utf-8")
    assert page == maker().record(page), "run `make docs`"


def test_the_page_of_tests_lists_every_skip():
    page = (ROOT / "docs" / "tests.md").read_text(encoding="utf-8")
    assert page == maker().skips(page), "run `make docs`"


def test_no_test_is_expected_to_fail():
    words = ("mark." + "xfail", "pytest." + "xfail")
    for path in (ROOT / "tests").rglob("*.py"):
        assert not any(word in path.read_text(encoding="utf-8") for word in words), (
            f"{path.name}; tests.md says none is"
        )


def test_the_example_of_the_record_runs(own_record, tmp_path, monkeypatch, capsys):
    from quietstar.record.store import Store
    from recorded import trace

    with Store.open() as store:
        store.add(trace())
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "record.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})
    assert "think2 deep" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this system")
def test_make_hands_a_question_over_as_it_was_typed():
    question = 'It\'s $5, "ok" `id` $(HOME)?'
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}  # of an outer make
    shown = subprocess.run(
        ["make", "-n", "think", f"ASK={question}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    command = shlex.split(shown.splitlines()[-1])
    assert command[-3:] == ["think", "--", question]


@pytest.mark.model
def test_the_readmes_python_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {})


def test_links_inside_the_docs_lead_somewhere():
    roots = [ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")]
    for page in [*roots, *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def exists(name: str) -> bool:
    """Whether a dotted name leads to a module of the package or to something in one."""
    module, attributes = name, []
    while True:
        try:
            found = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            attributes.insert(0, last)
    for part in attributes:
        if not hasattr(found, part) and part not in getattr(found, "__dataclass_fields__", {}):
            return False
        found = getattr(found, part, None)
    return True


def test_code_that_the_pages_name_exists():
    named: dict[str, str] = {}
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        if page.name == "CHANGELOG.md":  # tells of names of its day
            continue
        text = page.read_text(encoding="utf-8")
        named |= dict.fromkeys(re.findall(r"`(quietstar(?:\.\w+)+)[`(]", text), page.name)
        for module, names in re.findall(r"^from (quietstar[\w.]*) import ([\w, ]+)$", text, re.MULTILINE):
            named |= {f"{module}.{one.strip()}": page.name for one in names.split(",")}
        for path in re.findall(r"`((?:src/quietstar|tests|docs)/[\w/.-]+)`", text):
            assert (ROOT / path).exists(), f"{page.name} names {path}"
        for path in re.findall(r"`(quietstar/[\w/]+\.py)`", text):
            assert (ROOT / "src" / path).exists(), f"{page.name} names {path}"
    assert len(named) > 30
    entry_points = {"quietstar.tasks", "quietstar.triggers", "quietstar.controls", "quietstar.measures"}
    wrong = {name: page for name, page in named.items() if name not in entry_points and not exists(name)}
    assert not wrong
