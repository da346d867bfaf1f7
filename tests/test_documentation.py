"""The README and the pages in docs/: where their links lead, and what they say can be typed."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import TESTS

from dials_mpi.cli import evaluation_parser, layers, parser

CHECKOUT = TESTS.parent
README = CHECKOUT / "README.md"
PAGES = [README, *sorted((CHECKOUT / "docs").glob("*.md"))]
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def links(page: Path) -> list[str]:
    """Where links and pictures lead, other sites left out."""
    targets = re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", text(page)))
    return [target for target in targets if not target.startswith("https://")]


def anchors(page: Path) -> set[str]:
    """The headings' names in links, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", text(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_says_what_it_answers_and_its_links_lead_to_files_and_headings_of_the_checkout(page):
    title, empty, answer, *_ = text(page).splitlines()
    assert title.startswith("# ")
    assert not empty
    assert answer
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_file(), link
        assert target.is_relative_to(CHECKOUT), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_is_short_and_leads_to_every_page_and_every_picture_is_shown():
    assert len(text(README).splitlines()) <= 150
    pages = {(README.parent / link.partition("#")[0]).resolve() for link in links(README)}
    assert set(PAGES) - {README} <= pages
    shown = {(page.parent / link).resolve() for page in PAGES for link in links(page)}
    assert set((CHECKOUT / "docs").glob("*.png")) <= shown


def test_every_program_and_file_of_the_checkout_that_is_named_is_there():
    named = r"(?<![\w/.])((?:tools|jobs|configs|tests|docs|dials_mpi)/[\w/]+\.\w+)"
    names = [name for page in PAGES for name in re.findall(named, text(page))]
    assert "tools/quickstart.sh" in names
    assert [name for name in names if not (CHECKOUT / name).is_file()] == []


def test_every_command_that_trains_or_evaluates_is_understood():
    commands = [command for page in PAGES for command in re.findall(r"python -m dials_mpi +([^`\n]+)", text(page))]
    assert "--env warehouse --agents 100" in commands
    for command in commands:
        words = shlex.split(command, comments=True)
        if words[0] == "evaluate":
            evaluation_parser().parse_args(words[1:])
        else:
            layers(parser().parse_args(words))
