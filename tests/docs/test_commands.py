"""Every command of the documentation is typed by a test; this table names which."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.docs.pages import CONCEPTS, ENGINES, GLOSSARY, INTERNALS, OPERATING, REFERENCE, commands
from tests.harness import ROOT

DOCUMENTS = "daemon/admin/test_documents.py"
TYPED = {
    OPERATING: {
        r"\.venv/bin/pilliond .*|curl .*/health": f"{DOCUMENTS}::test_the_commands_of_the_operating_page_start_a_daemon_on_every_carrier_and_ask_for_its_health",
        r"\.venv/bin/pillion token .*": "daemon/admin/test_tokens.py::test_every_token_command_of_the_page_runs",
        r"\.venv/bin/pillion (?!token|artifact).*": "daemon/commands/test_versions.py::test_every_operators_command_of_the_page_runs",
    },
    REFERENCE: {
        r"curl .* -o daemon/openapi\.json": "daemon/admin/test_openapi.py::test_the_file_in_the_repository_is_what_the_command_of_the_reference_makes",
        r"curl .*/v2/.*": f"{DOCUMENTS}::test_the_examples_of_the_kserve_section_are_answered",
    },
    ENGINES: {
        r".*robot/pixels.*|.*--policy pixels": "docs/test_engines_page.py::test_the_torch_program_of_the_page_is_served",
        r".*jax.*": "docs/test_engines_page.py::test_the_jax_policy_of_the_page_is_served",
        r"python3 .*|robot/\.venv/(?!.*jax).*|\.venv/bin/(?!.*(pixels|jax)).*": "docs/test_engines_page.py::test_the_commands_of_the_page_serve_a_python_policy_from_its_own_environment",
    },
    CONCEPTS: {},
    GLOSSARY: {},
    INTERNALS: {},
}


@pytest.mark.parametrize("page", TYPED, ids=lambda page: page.name)
def test_every_command_is_typed_by_one_test(page: Path) -> None:
    for command in commands(page):
        assert len([pattern for pattern in TYPED[page] if re.fullmatch(pattern, command)]) == 1, command


def test_the_tests_that_type_them_exist() -> None:
    for tests in TYPED.values():
        for name in tests.values():
            file, _, function = name.partition("::")
            tree = ast.parse((ROOT / "tests" / file).read_text())
            assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, name
