"""What mkdocs does for this site beside its plugins: files of examples/ are part of it, and the API pages list names.

An API page has the line `<!-- offered: avssl.losses -->`. In its place stands every name that the package offers, with
its docstring, so that a new name is documented and a removed one is not.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
OFFERED = re.compile(r"<!-- offered: ([\w.]+) -->")


def examples() -> list[str]:
    """The files of examples/ that the site offers, relative to the repository."""
    paths = (ROOT / "examples").rglob("*")
    return sorted(str(path.relative_to(ROOT)) for path in paths if path.suffix in (".py", ".ipynb", ".sbatch"))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the examples, to be opened or saved as they are."""
    for path in examples():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links to ../examples lead to the site's copies; the names of a package stand where its page says so."""
    above = "../" * page.file.src_uri.count("/")
    markdown = re.sub(r"\]\((?:\.\./)+examples/([^)]*)\)", rf"]({above}examples/\1)", markdown)
    return OFFERED.sub(lambda match: described(match[1]), markdown)


def described(package: str) -> str:
    """The directives of mkdocstrings for all names that a package offers, in the order of the alphabet."""
    module = importlib.import_module(package)
    offered = vars(module).get("_offered", {})
    lines = []
    for name in sorted(module.__all__, key=str.lower):
        if name.startswith("__"):
            continue
        lines += [f"::: {offered.get(name, package)}.{name}", "    options:", f"      heading: {package}.{name}", ""]
    return "\n".join(lines)
