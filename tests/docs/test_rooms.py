"""The maps of the daemon's rooms show the rooms that there are."""

from __future__ import annotations

from pathlib import Path

from tests.docs.pages import INTERNALS, names, rows, section
from tests.harness import ROOT
from tests.test_boundaries import FLOORS, PACKAGES

README = ROOT / "daemon" / "README.md"
DAEMON = PACKAGES["pilliond"]


def test_the_floors_of_the_page_are_those_that_a_test_enforces() -> None:
    drawn = [names(row[1]) for row in rows(section(INTERNALS, "Rooms"))]
    assert [sorted(floor) for floor in drawn] == [
        sorted(floor) for floor in FLOORS["pilliond"] if floor != ["__init__"]
    ]


def test_the_readme_has_one_line_for_each_room() -> None:
    rooms = {file.parent.relative_to(DAEMON).as_posix() for file in DAEMON.rglob("__init__.py")} - {"."}
    listed = [names(row[0])[0] for row in rows(section(README, "Rooms"))]
    assert sorted(listed) == sorted(rooms)


def test_the_readme_names_the_modules_beside_the_rooms() -> None:
    text = section(README, "Rooms").rpartition("\n| ")[2].partition("\n\n")[2]
    modules = {file.name for file in DAEMON.glob("*.py")} - {"__init__.py"}
    assert {name for name in names(text) if name.endswith(".py")} == modules


def test_each_way_into_the_rooms_leads_somewhere() -> None:
    for row in rows(section(README, "Which room a new thing enters")):
        inside = [name for name in names(row[1]) if not name.startswith("pillion")]
        assert inside, row
        for name in inside:
            path = DAEMON / name
            assert path.exists() or Path(f"{path}.py").exists(), name
