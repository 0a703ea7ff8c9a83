"""No link of the documents leads nowhere. Links to other hosts are not followed."""

import os
import re
import shutil
import subprocess
import sys

import pytest

import blocks
from blocks import ROOT
from links import anchors, links

DOCUMENTS = blocks.documents()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_link_leads_to_a_file_and_a_section_that_are_there(document):
    for link, path, section in links(document):
        assert (ROOT / path).exists(), f"{document}: {link}: there is no {path}"
        assert not section or section in anchors(path), f"{document}: {link}: there is no such part"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_path_in_the_text_is_there(document):
    """Such as `tests/rig/choose-host`: one of ours, whole."""
    here = [path.name for path in ROOT.iterdir() if path.is_dir()]
    folders = "|".join(name for name in here if name not in (".git", "build"))
    text = (ROOT / document).read_text()
    for path in re.findall(rf"`((?:{folders})/[\w./-]*\w/?)`", text):
        base = "" if (ROOT / path).exists() else os.path.dirname(document)
        assert (ROOT / base / path).exists(), f"{document}: there is no {path}"


def test_each_page_is_reached_from_the_readme():
    seen, to_read = set(), ["README.md"]
    while to_read:
        document = to_read.pop()
        if document not in seen:
            seen.add(document)
            for _, path, _ in links(document):
                page = path if path.endswith(".md") else f"{path}/README.md"
                if (ROOT / page).exists():
                    to_read.append(page)
    assert {name for name in DOCUMENTS if name.startswith("docs/")} <= seen


def test_each_document_is_in_the_sites_menu():
    menu = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(menu) == DOCUMENTS


@pytest.mark.skipif(not shutil.which("mkdocs", path="/usr/bin"),
                    reason="THE SITE WAS NOT BUILT: mkdocs is missing")
def test_the_site_is_built_without_a_warning_and_can_be_searched(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "tests" / "docs" / "site.py", tmp_path],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "site"
    assert "mayfly" in (site / "index.html").read_text()
    index = (site / "search" / "search_index.json").read_text()
    for document in DOCUMENTS:
        if document.startswith("docs/"):
            assert f'"{document.removesuffix(".md")}/"' in index, document
