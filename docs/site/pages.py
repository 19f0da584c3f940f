"""A hook of MkDocs: the pages are the files of the repository where they are, so that their links work everywhere."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PATTERNS = [
    "*.md",
    "CITATION.cff",
    "LICENSE",
    "docs/*.md",
    "docs/*.svg",
    "experiments/*/*.md",
    "experiments/*/*.png",
    "experiments/*/*.csv",
]
PATTERNS += ["docs/site/*.js", "examples/*.py", "examples/conf/**/*.yaml", "examples/*.ipynb"]

# What a browser would fetch from elsewhere; links to click are no such thing.
EXTERNAL = re.compile(r'<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)="?(?:https?:)?//[^>]*>')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the repository in the place of those of `docs_dir`, which would leave out its parent."""
    for file in list(files):
        if Path(file.abs_src_path or "").is_relative_to(config.docs_dir):
            files.remove(file)
    for path in sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern)):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that needs the network to be read."""
    if found := EXTERNAL.search(output):
        raise PluginError(f"{page.file.src_uri} needs the network: {found[0]}")
    return output
