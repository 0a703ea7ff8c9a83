"""Makes a site of the documents with mkdocs: site.py DIRECTORY. It is in DIRECTORY/site.

The documents link to each other and to sources by their places in the repository. So what is built
has these places: the documents, and copies of what they link to.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile

from blocks import ROOT, documents
from links import links


def gather(to):
    pages = documents()
    linked = {path for page in pages for _, path, _ in links(page) if (ROOT / path).is_file()}
    for name in {*pages, *linked}:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, to / name)


def main():
    to = pathlib.Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        gather(work / "source")
        config = (ROOT / "mkdocs.yml").read_text()
        (work / "mkdocs.yml").write_text(f"{config}docs_dir: source\n")
        subprocess.run(["/usr/bin/mkdocs", "build", "--strict",
                        "--config-file", work / "mkdocs.yml", "--site-dir", to / "site"], check=True)


if __name__ == "__main__":
    main()
