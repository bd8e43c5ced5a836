"""The page of the papers leads to what is there."""

import runpy
from pathlib import Path

import pytest

CORE = Path(__file__).resolve().parents[2] / "MedSegCore"


@pytest.fixture(scope="module")
def builder():
    return runpy.run_path(str(CORE / "papers" / "build.py"))


def test_the_page_is_what_its_sources_and_the_code_make(builder):
    assert (CORE / "PAPERS.md").read_text(encoding="utf-8") == builder["build"](), "make papers"


def test_every_link_lands_on_the_line_that_defines_the_symbol(builder):
    import re

    links = re.findall(
        r"\[`([\w.]+)`:\d+\]\((medsegcore/[\w/]+\.py)#L(\d+)\)",
        (CORE / "PAPERS.md").read_text(encoding="utf-8"),
    )
    assert len(links) > 80
    for symbol, path, line in links:
        text = (CORE / path).read_text(encoding="utf-8").splitlines()[int(line) - 1]
        assert symbol.split(".")[-1] in text, (symbol, path, line)


def test_a_symbol_that_is_gone_is_an_error(builder):
    with pytest.raises(SystemExit, match=r"rsanet\.py has no NoSuchBlock"):
        builder["linked"]("see `networks/rsanet.py`: `NoSuchBlock`", "a page")
    with pytest.raises(SystemExit, match=r"there is no medsegcore/networks/gone\.py"):
        builder["linked"]("see `networks/gone.py`: `RSANet`", "a page")
