"""The code blocks of the pages run, one after the other, and print what the page shows."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(page, capsys):
    """The names that the code blocks of a page leave; what its other blocks show was printed."""
    blocks = re.findall(r"```(\w*)\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    names, printed = {}, ""
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, page, "exec"), names)
            printed = capsys.readouterr().out
        elif kind == "text" or "runs:" in text:
            assert on_any_processor(printed) == on_any_processor(text)
    return names


def on_any_processor(text):
    return re.sub(r"compiled for \S+", "compiled for a level", text.strip())


def test_code_of_the_readme_runs_and_prints_what_it_shows(capsys):
    assert tuple(run("README.md", capsys)["out"].shape) == (2, 1024, 8, 32)


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("docs/pictures.md", "viz"),
        ("docs/attention_by_name.md", "vit"),
        ("docs/pyg.md", "report"),
        ("docs/generation.md", "found"),
        ("docs/hf.md", "same"),
        ("docs/kernels.md", "back"),
    ],
)
def test_code_of_the_docs_runs_and_prints_what_it_shows(page, name, capsys):
    assert name in run(page, capsys)
