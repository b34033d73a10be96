"""What the documents say must be true: the example runs, links lead somewhere, and verbs exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_python_example_runs(tmp_path: Path) -> None:
    (example,) = blocks((ROOT / "README.md").read_text(), "python")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("10000 tokens read")
    assert (tmp_path / "conversation.safetensors").stat().st_size > 0


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)\)", document.read_text())
    missing = [target for target in targets if "://" not in target and not (document.parent / target).exists()]
    assert missing == []


def test_verbs_of_the_run_script_exist() -> None:
    from lm2.cli.main import app

    known = {verb.name for verb in (*app.registered_commands, *app.registered_groups)} | {"test", "lint", "python"}
    shown = re.findall(r"^\./run (\S+)", "\n".join(blocks((ROOT / "README.md").read_text(), "sh")), flags=re.MULTILINE)
    assert shown
    assert set(shown) <= known


def test_tables_of_ten_tasks_are_those_of_the_stored_report() -> None:
    program = ROOT / "benchmarks" / "readme_tables.py"
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True)
    tables = done.stdout.strip().split("\n\n")
    assert [len(table.splitlines()) for table in tables] == [8, 8, 7, 7, 7, 6, 6]
    readme = (ROOT / "README.md").read_text()
    assert [table for table in tables if table not in readme] == []
