"""The code blocks of the README run, one after the other, and print what the README shows."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_code_of_the_readme_runs_and_prints_what_it_shows(capsys):
    blocks = re.findall(r"```(\w*)\n(.*?)```", README.read_text(), flags=re.DOTALL)
    names = {}
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, "README.md", "exec"), names)
            printed = capsys.readouterr().out
        elif "runs:" in text:
            assert printed.strip() == text.strip()
    assert tuple(names["out"].shape) == (2, 1024, 8, 32)
