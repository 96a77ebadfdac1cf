"""Writes what the docs show of the program itself: commands.md (the real help), the tables of record.md, statistics.md
and tests.md, think.svg (a real run), and page-*.png (the real page, with the default model; needs a Chromium).
--no-picture leaves the pictures as they are."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HERE = Path(__file__).parent
COMMANDS = (
    "",
    "think",
    "show",
    "stats",
    "runs",
    "runs tag",
    "runs note",
    "runs delete",
    "runs export",
    "runs import",
    "view",
    "score",
    "train",
    "plot",
    "tasks",
    "tasks list",
    "tasks make",
    "tasks convert",
    "bench",
    "bench train",
    "bench generate",
)
TABLES = "<!-- tables: written by docs/make.py from the file itself -->\n", "<!-- end of tables -->"
MEASURES = "<!-- measures: written by docs/make.py from the registry itself -->\n", "<!-- end of measures -->"
SKIPS = "<!-- skips: written by docs/make.py from the tests themselves -->\n", "<!-- end of skips -->"
PAGE = ["Why is the sky blue? Explain it to a child.", "-n", "90"]
PICTURE = ["Why is the sky blue? Answer in one sentence.", "--show", "5"]


def commands() -> str:
    """The page of commands, from the program's own help."""
    parts = ["# Commands\n\nThe help of every command, as the program prints it (`make docs` writes this page).\n"]
    for name in COMMANDS:
        words = ["quietstar", *name.split()]
        done = subprocess.run(
            [sys.executable, "-m", "quietstar.cli.main", *name.split(), "--help"],
            capture_output=True, text=True, check=True,
            env={"COLUMNS": "100", "PATH": "", "PYTHONPATH": str(HERE.parent / "src")},
        )  # fmt: skip
        parts.append(f"## {' '.join(words)}\n\n```text\n{done.stdout.strip()}\n```\n")
    return "\n".join(parts)


def tables() -> str:
    """The tables and columns of the record, from a real file and the comments in its own definition."""
    import tempfile

    from quietstar.record.schema import MIGRATIONS
    from quietstar.record.schema import TABLES as NAMES
    from quietstar.record.store import Store

    parts = []
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "record.db") as store:
        for name in NAMES:
            definition = store._row("SELECT sql FROM sqlite_schema WHERE name = ?", [name])["sql"]
            meanings = dict(re.findall(r"^ {4}(\w+) [A-Z]+\b.*?-- (.*)$", definition, re.MULTILINE))
            added = rf"^ALTER TABLE {name} ADD COLUMN (\w+) .*?-- (.*)$"
            meanings |= re.findall(added, "".join(MIGRATIONS), re.MULTILINE)
            rows = [f"| `{column}` | {kind} | {meanings[column]} |" for column, kind in store.columns(name).items()]
            parts.append(f"### {name}\n\n| column | type | |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def record(page: str) -> str:
    """The page of the record with its tables written anew."""
    before, _, rest = page.partition(TABLES[0])
    return f"{before}{TABLES[0]}\n{tables()}\n{TABLES[1]}{rest.partition(TABLES[1])[2]}"


def measures(page: str) -> str:
    """The page of statistics with its table written anew."""
    from quietstar.evals import measures as registry

    before, _, rest = page.partition(MEASURES[0])
    rows = [
        " | ".join(
            ["", one.label, one.unit, one.formula.replace("|", r"\|"), "yes" * one.model, one.source, ""]
        ).strip()
        for one in registry.measures().values()
    ]
    table = "| measure | unit | | needs `--measure` | source |\n|---|---|---|---|---|\n" + "\n".join(rows)
    return f"{before}{MEASURES[0]}\n{table}\n\n{MEASURES[1]}{rest.partition(MEASURES[1])[2]}"


def _skips_in(path: Path) -> Iterator[tuple[str, str]]:
    """(reason, where) of every skip in a file of tests; where is a test, a fixture, or the whole file."""

    def visit(node: ast.AST, where: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.FunctionDef):
            where = f"`{path.name}`: `{node.name}`"
        if isinstance(node, ast.Call):
            reasons = [one.value for one in node.keywords if one.arg == "reason"]
            match ast.unparse(node.func):
                case "pytest.skip":
                    yield ast.literal_eval((reasons + node.args)[0]), where
                case "pytest.mark.skipif" | "pytest.mark.skip":
                    yield ast.literal_eval((reasons + node.args)[0]), where
                case "pytest.importorskip":
                    package = ast.literal_eval(node.args[0]).partition(".")[0]
                    yield ast.literal_eval(reasons[0]) if reasons else f"needs the package {package}", where
        for child in ast.iter_child_nodes(node):
            yield from visit(child, where)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), f"`{path.name}`: all")


def skips(page: str) -> str:
    """The page of tests with its list of skips written anew."""
    before, _, rest = page.partition(SKIPS[0])
    found: dict[str, list[str]] = {}
    for path in sorted((HERE.parent / "tests").glob("**/*.py")):
        for reason, where in _skips_in(path):
            if where not in found.setdefault(reason, []):
                found[reason].append(where)
    rows = [f"| {reason} | {'; '.join(found[reason])} |" for reason in sorted(found)]
    table = "| skipped, because | where |\n|---|---|\n" + "\n".join(rows)
    return f"{before}{SKIPS[0]}\n{table}\n\n{SKIPS[1]}{rest.partition(SKIPS[1])[2]}"


def picture() -> str:
    """A terminal picture of one real run of `quietstar think` with the default model."""
    from rich.console import CONSOLE_SVG_FORMAT, Console
    from rich.text import Text

    from quietstar import QuietStar
    from quietstar.cli.render import Screen

    console = Console(record=True, width=118, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    question, *options = PICTURE
    console.print(Text(f'$ quietstar think "{question}" {" ".join(options)}', style="bold"))

    class Wrapped(Screen):
        """Streams like the terminal's, but wrapped by words, as a picture does not wrap by itself."""

        answer = Text()

        def _write(self, text: Text) -> None:
            self.answer += text

        def finish(self, interrupted: bool = False) -> None:
            self.console.print(self.answer)
            self.answer = Text()
            super().finish(interrupted)

    screen = Wrapped(show=int(options[1]))
    screen.console = console
    for event in QuietStar.from_pretrained("default").stream(question):
        screen.event(event)
    screen.finish()
    # no font from the network, no link to anywhere
    local_fonts = re.sub(r"@font-face {{.*?}}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
        "https://www.textualize.io", ""
    )
    return console.export_svg(title="quietstar", code_format=local_fonts, unique_id="quietstar")


@contextmanager
def opened(db: str | Path, *options: str) -> Iterator[tuple[Browser, str]]:
    """A browser, and the address of the page over a record."""
    from playwright.sync_api import sync_playwright

    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    command = [sys.executable, "-m", "quietstar", "view", "--port", "0", "--db", str(db), *options]
    with sync_playwright() as playwright, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[0]
            found = [p for p in ("/usr/bin/chromium", playwright.chromium.executable_path) if Path(p).exists()]
            browser = playwright.chromium.launch(executable_path=found[0], args=flags)
            yield browser, address
            browser.close()
        finally:
            server.terminate()


def page_pictures(model: str = "default", *more: str) -> None:
    """Pictures of the page of one real run: wide, narrow and dark, and a thought that was changed."""
    import tempfile

    question, *options = PAGE
    with tempfile.TemporaryDirectory() as folder:
        db = Path(folder) / "record.db"
        think = [sys.executable, "-m", "quietstar", "think", question, *options, "--quiet", "--model", model, *more]
        subprocess.run([*think, "--db", str(db)], check=True, stdout=subprocess.DEVNULL)
        with opened(db, "--model", model) as (browser, address):
            for name, width, height, look in (("run", 1180, 760, "light"), ("narrow", 390, 780, "dark")):
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=look)
                page.goto(address)
                page.locator(".runs a").first.click()
                page.get_by_role("button", name="next change").click()
                if not page.locator(".token[aria-selected=true]").count():  # no thought changed a word
                    page.get_by_role("button", name="strongest").click()
                page.locator(".panel .bars").first.wait_for()
                page.mouse.move(0, 0)
                page.wait_for_timeout(500)
                page.screenshot(path=HERE / f"page-{name}.png")
            page.set_viewport_size({"width": 1180, "height": 900})
            page.emulate_media(color_scheme="light")
            for button in ("Shuffle", "Donor", "No thought"):
                tried = page.locator(".try").count()
                page.get_by_role("button", name=button).click()
                page.locator(".try").nth(tried).wait_for(timeout=600_000)
            page.get_by_role("button", name="Continue the text").first.click()
            page.get_by_role("button", name="Continue it again").first.wait_for(timeout=600_000)
            page.get_by_label("mark differences").first.check()
            page.locator(".change").evaluate("e => e.scrollIntoView()")
            page.wait_for_timeout(500)
            page.locator(".panel").screenshot(path=HERE / "page-change.png")


if __name__ == "__main__":
    if set(sys.argv[1:]) - {"--no-picture"}:
        sys.exit(__doc__)
    (HERE / "commands.md").write_text(commands(), encoding="utf-8")
    page = HERE / "record.md"
    page.write_text(record(page.read_text(encoding="utf-8")), encoding="utf-8")
    page = HERE / "statistics.md"
    page.write_text(measures(page.read_text(encoding="utf-8")), encoding="utf-8")
    page = HERE / "tests.md"
    page.write_text(skips(page.read_text(encoding="utf-8")), encoding="utf-8")
    if "--no-picture" not in sys.argv:
        (HERE / "think.svg").write_text(picture(), encoding="utf-8")
        page_pictures()
