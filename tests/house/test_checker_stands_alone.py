"""The checker is a second opinion only as long as it shares nothing with what it judges."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHECKER = sorted(
    path for path in (ROOT / "tests" / "checker").glob("*.py") if not path.name.startswith(("test_", "small"))
)


def _imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written out"
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def test_the_checker_imports_itself_and_the_standard_library_alone() -> None:
    assert CHECKER
    for path in CHECKER:
        foreign = {
            name
            for name in _imported(path)
            if not name.startswith("tests.checker") and name.split(".")[0] not in sys.stdlib_module_names
        }
        assert not foreign, f"{path.name} imports {sorted(foreign)}"


def test_the_checker_loads_nothing_of_the_product() -> None:
    """Neither by way of a package that it lies in."""
    code = (
        "import sys, tests.checker.__main__\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('orchestrator', 'providers', 'tasks', 'workers')"
        " or m.startswith('tests.support')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
