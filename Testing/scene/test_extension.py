"""What the index of extensions asks for agrees with what is in the project."""

import ast
import json
import re
from pathlib import Path

import pytest
from PIL import Image

PROJECT = Path(__file__).resolve().parents[2]
RAW = "https://raw.githubusercontent.com/medseg/SlicerMedSeg/main/"
PICTURES = sorted((PROJECT / "Screenshots").glob("*.*"))


@pytest.fixture(scope="module")
def metadata():
    """EXTENSION_* of CMakeLists.txt."""
    text = (PROJECT / "CMakeLists.txt").read_text(encoding="utf-8")
    return dict(re.findall(r'set\(EXTENSION_(\w+) "([^"]*)"\)', text))


def test_the_catalog_entry_says_what_the_build_says(metadata):
    entry = json.loads((PROJECT / "MedSeg.json").read_text(encoding="utf-8"))
    assert set(entry) == {
        "$schema", "build_dependencies", "build_subdirectory", "category", "scm_revision",
        "scm_url", "tier",
    }  # fmt: skip
    assert entry["category"] == metadata["CATEGORY"]
    assert entry["build_dependencies"] == metadata["DEPENDS"].split()
    assert entry["scm_url"] == metadata["HOMEPAGE"] + ".git"
    # One entry, named as the project; the repository is named Slicer + that.
    name = re.search(r"project\((\w+)\)", (PROJECT / "CMakeLists.txt").read_text("utf-8"))
    assert name is not None
    assert (PROJECT / f"{name[1]}.json").is_file()
    assert metadata["HOMEPAGE"].endswith(f"/Slicer{name[1]}")


def test_icon_and_screenshots_are_files_of_the_project(metadata):
    urls = [metadata["ICONURL"], *metadata["SCREENSHOTURLS"].split()]
    assert len(urls) > 2
    for url in urls:
        assert url.startswith(RAW)
        assert (PROJECT / url.removeprefix(RAW)).is_file(), url
    with Image.open(PROJECT / "MedSeg.png") as icon:
        assert icon.size == (128, 128)


def test_a_few_sentences_describe_it_and_a_license_is_there(metadata):
    assert 1 <= metadata["DESCRIPTION"].count(".") <= 3
    assert (PROJECT / "LICENSE").read_text(encoding="utf-8").lstrip().startswith("Apache License")


def test_every_file_that_is_built_in_is_there():
    text = (PROJECT / "SlicerMedSeg" / "CMakeLists.txt").read_text(encoding="utf-8")
    named = re.search(r"set\(MODULE_PYTHON_RESOURCES(.*?)\)", text, re.DOTALL)
    assert named is not None
    resources = {line.replace("${MODULE_NAME}", "SlicerMedSeg") for line in named[1].split()}
    folder = PROJECT / "SlicerMedSeg"
    found = {p.relative_to(folder).as_posix() for p in (folder / "Resources").rglob("*.*")}
    assert resources == found


def test_the_pictures_are_small_and_the_readme_shows_all_of_them():
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\]\(Screenshots/([^)]+)\)", readme))
    assert shown == {path.name for path in PICTURES}
    sizes = [path.stat().st_size for path in PICTURES]
    assert max(sizes) < 300_000
    assert sum(sizes) < 2_000_000


def shownTexts():
    """The texts of the code; of formatted ones the parts between the values."""
    texts: list[str] = []
    for folder in ("SlicerMedSeg", "MedSegCore/medsegcore"):
        for path in (PROJECT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return texts


def test_the_common_problems_are_told_in_the_words_of_the_code():
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    table = readme.split("## Common problems")[1].split("\n## ")[0]
    messages = re.findall(r"^\| (?!message|-)(.+?) \|", table, re.MULTILINE)
    assert len(messages) > 20
    texts, unknown = shownTexts(), []
    for message in messages:
        # What pip says is not ours.
        words = message.split(": '...")[0]
        for part in re.split(r"\.{3}| / ", words):
            told = part.strip("'. :")
            if told and not any(told in text for text in texts):
                unknown.append(told)
    assert unknown == []


@pytest.mark.parametrize(
    "told",
    [
        "of memory are free on", "has ... GB free", "Edited by hand since",
        "The worker has no model", "The worker has the model", "All frames are wanted",
        "has no frame", "looks like it",
        "belongs to another study than", "does not lie where", "is taken for", "is above 0",
        "seems to have its skull",
    ],
)  # fmt: skip
def test_what_stops_or_warns_the_user_is_among_the_common_problems(told):
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    table = readme.split("## Common problems")[1].split("\n## ")[0]
    (row,) = {line for line in table.splitlines() if told in line.split(" | ")[0]}
    assert len(row.strip("| ").split(" | ")) == 2
