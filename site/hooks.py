"""What mkdocs does besides: nothing here fetches anything, and nothing writes outside the site."""

import re


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Links that leave the docs folder (to the README, to sources) lead to the repository."""
    root = config["repo_url"] + "/blob/main/"
    return re.sub(r"\]\(\.\./(?!docs/)([^)]+)\)", lambda found: f"]({root}{found.group(1)})", markdown)
