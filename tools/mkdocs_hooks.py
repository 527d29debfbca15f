"""MkDocs hooks: pages from the repository's root, and links between these and docs/."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"(?P<text>!?\[[^\]]*\])\((?P<target>[^()\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the repository's root."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that are right in the repository into links that are right on the site."""
    source = {target: name for name, target in PAGES.items()}.get(page.file.src_uri)
    folder = "" if source else posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def rewrite(link: re.Match[str]) -> str:
        target, _, anchor = link["target"].partition("#")
        if not target or ":" in target:
            return link[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if path in PAGES or path.startswith("docs/"):
            there = PAGES.get(path) or path.removeprefix("docs/")
            here = posixpath.dirname(page.file.src_uri) or "."
            anchor = f"#{anchor}" if anchor else ""
            return f"{link['text']}({posixpath.relpath(there, here)}{anchor})"
        # The site holds no source files: a link to one becomes its text. Broken ones stay.
        is_source = (ROOT / path).exists() and not link["text"].startswith("!")
        return link["text"][1:-1] if is_source else link[0]

    return LINK.sub(rewrite, markdown)
