"""What the documentation names exists: commands, options, settings, files and make targets."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from data.settings import settings_of
from flows.cli.app import main
from flows.recipes import RECIPES, Recipe, build_recipe
from tests.helpers.places import REPO
from tools.docs.settings_page import on_page_markdown

PAGES = [
    *(REPO / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((REPO / "docs").rglob("*.md")),
]
TEXTS = {str(page.relative_to(REPO)): page.read_text(encoding="utf-8") for page in PAGES}
SETTINGS = settings_of(Recipe)
GROUPS = sorted(key for key in SETTINGS if "." not in key and SETTINGS[key].is_group)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
"""An inline code span."""
KEY = re.compile(rf"^((?:{'|'.join(GROUPS)})(?:\.[a-z_0-9]+)+)(?:=(.*))?$")
"""A span that is a key, or a key and a value."""
FILE = re.compile(r"\.(html|json|jsonl|md|parquet|py|safetensors|toml)$")
PLACEHOLDERS = {"RECIPE": "demo", "FOLDER": "out", "FILE": "a.jpg", "FINGERPRINT": "0"}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Return the commands of bash blocks as words, and of spans that begin with clip-scgi."""
    lines = [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += [span for span in SPAN.findall(text) if span.startswith("clip-scgi ")]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def clip_scgi(text: str) -> list[list[str]]:
    return [words[1:] for words in commands(text) if words[0] == "clip-scgi"]


@cache
def help_of(*path: str) -> str:
    """Return the help of a command; fails if the command does not exist."""
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            status = main([*path, "--help"])
        except SystemExit as stop:
            status = stop.code
    assert not status, f"clip-scgi {' '.join(path)} does not exist:\n{out.getvalue()}"
    return out.getvalue()


def overrides(words: list[str]) -> list[str]:
    return [value for flag, value in pairwise(words) if flag == "--set" and "=" in value]


GROUPS = ("artifacts", "corrections", "gallery", "paper")
"""The words that are followed by another word of a command."""


@pytest.mark.parametrize("page", TEXTS)
def test_commands_options_and_settings_exist(page, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for words in clip_scgi(TEXTS[page]):
        plain = [word for word in words if not word.startswith("-")]
        path = plain[: 2 if plain[:1] and plain[0] in GROUPS else 1]
        text = help_of(*path)
        for option in (word.partition("=")[0] for word in words if word.startswith("--") and word != "--version"):
            assert option in text, f"{page}: clip-scgi {' '.join(words)}: no option {option}"
        if overrides(words):
            recipe = next((word for word in plain[1:] if word in RECIPES), "demo")
            build_recipe(recipe, [value.replace("KEY=VALUE", "train.seed=1") for value in overrides(words)])


@pytest.mark.parametrize("page", TEXTS)
def test_named_recipes_exist(page):
    for words in clip_scgi(TEXTS[page]):
        if words[0] in ("run", "caption", "audit", "train", "evaluate", "report", "show", "search", "sheet"):
            named = [word for word in words[1:2] if not word.startswith("-")]
            assert set(named) <= {*RECIPES, *PLACEHOLDERS}, f"{page}: {' '.join(words)}"


@pytest.mark.parametrize("page", TEXTS)
def test_keys_in_code_spans_are_settings_that_take_the_value(page):
    for span in SPAN.findall(TEXTS[page]):
        found = KEY.match(span)
        if found is None or FILE.search(span) or is_python(found[1]):
            continue
        assert found[1] in SETTINGS, f"{page}: `{span}` is not a setting"
        if found[2] and found[2] not in PLACEHOLDERS:
            recipe = "demo" if found[1].startswith("synthetic") else "market1501"
            setting = SETTINGS[found[1]]
            takes = setting.choices or setting.kinds & {int, float, bool} or setting.is_group
            assert not takes or reads(recipe, span), f"{page}: `{span}`"


BESIDE = ("train.validation.every=5", "caption.template=free")
"""Overrides that some others need beside them."""


def reads(recipe: str, override: str) -> bool:
    """Return True if some recipe takes the override, alone or with what it needs beside it."""
    from data.errors import ConfigError

    for name, beside in ((recipe, ()), ("demo", ()), *(("demo", (text,)) for text in BESIDE)):
        try:
            build_recipe(name, [*beside, override])
        except ConfigError:
            continue
        return True
    return False


def is_python(name: str) -> bool:
    """Return True for a dotted name of a module, or of something in a module, such as `data.people`."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        return all(hasattr(found, part) for part in parts[length : length + 1])
    return False


@pytest.mark.parametrize("page", TEXTS)
def test_named_files_and_modules_exist(page):
    text = TEXTS[page]
    for span in SPAN.findall(text):
        if re.fullmatch(r"(?:captioning|data|flows|reid|tools|tests|benchmarks|docs)/[\w./-]*", span):
            assert (REPO / span).exists(), f"{page}: {span}"
        if re.fullmatch(r"(?:captioning|data|flows|reid|tools)(?:\.\w+)+", span) and not KEY.match(span):
            assert is_python(span), f"{page}: {span}"
    for path in re.findall(r"\b((?:benchmarks|tests|tools)/[\w/]+\.py)\b", text):
        assert (REPO / path).exists(), f"{page}: {path}"


@pytest.mark.parametrize("page", TEXTS)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z]+):", (REPO / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = re.findall(r"`make ([a-z]+)`", TEXTS[page])
    named += [words[1] for words in commands(TEXTS[page]) if words[0] == "make"]
    assert set(named) <= targets


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXTS[page]):
        if not target.startswith(("http:", "https:")):
            assert ((REPO / page).parent / target).exists(), f"{page}: {target}"


def test_every_setting_is_in_the_reference():
    page = on_page_markdown(TEXTS["docs/api/settings.md"])
    listed = re.findall(r"^\| `([\w.]+)` \| .+ \| .*\|$|^##+ ([\w.]+)$", page, re.MULTILINE)
    assert {key or group for key, group in listed} == {key for key in SETTINGS if key != "name"}


@pytest.mark.timeout(900)
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    """Links to other sites are fine; scripts, styles, fonts and images from there are not."""
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(list((REPO / "docs").rglob("*.md")))  # 404.html too
    for page in pages:
        html = page.read_text(encoding="utf-8")
        tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", html)
        assert not [tag for tag in tags if re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag)], page
        assert 'class="mermaid"' not in html  # the theme would load it from elsewhere


def test_every_page_is_in_the_navigation():
    nav = (REPO / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    listed = set(re.findall(r"[\w/]+\.md", nav))
    assert listed == {str(page.relative_to(REPO / "docs")) for page in (REPO / "docs").rglob("*.md")}


def test_the_readme_is_one_screen_and_its_picture_is_small():
    readme = TEXTS["README.md"]
    assert len(readme.splitlines()) <= 80
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", readme)
    assert (REPO / picture).stat().st_size < 300_000


@pytest.mark.parametrize("page", [*TEXTS, "CHANGELOG.md"])
def test_headings_are_unique_within_their_parent(page):
    text = re.sub(r"^```.*?^```", "", Path(REPO / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    above: dict[int, str] = {}
    seen: set[tuple[str, ...]] = set()
    for marks, title in re.findall(r"^(#+) (.+)$", text, re.MULTILINE):
        above = {level: name for level, name in above.items() if level < len(marks)} | {len(marks): title}
        path = tuple(above[level] for level in sorted(above))
        assert path not in seen, f"{page}: the heading {' > '.join(path)} stands twice"
        seen.add(path)


@pytest.mark.parametrize("page", TEXTS)
def test_the_spelling_is_american(page):
    british = r"\b\w*(artefact|colour|normalis|tokenis|regularis|optimis|behaviour|licence)\w*|\b(grey|data sets?)\b"
    prose = re.sub(r"^```text.*?^```", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)  # not what programs print
    found = [match[0] for match in re.finditer(british, prose, re.IGNORECASE)]
    assert not found
