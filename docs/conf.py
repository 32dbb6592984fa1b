"""Sphinx configuration: the site, and the manual page memfs(1) from the same text."""

from importlib.metadata import version as version_of

project = "memfs"
author = "the memfs authors"
project_copyright = f"2026, {author}"
release = version = version_of("memfs")

extensions = ["myst_parser"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
smartquotes = False

html_theme = "furo"
html_title = f"memfs {release}"
html_copy_source = False

man_pages = [("commands", "memfs", "the memory of every process as files", [], 1)]
