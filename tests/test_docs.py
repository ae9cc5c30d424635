"""Every code block of the README and of docs/ is run, or says why not; the site builds and needs no network."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import yaml

import avssl
from avssl.command import PROGRAMS
from avssl.recipe_files import config_files
from data_prep.demo.corpus import make_demo_corpus
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.transcode.options import WriteOptions
from data_prep.write.run import write_shards
from tests.browser import VIEWS, chromium, faint_texts, overflow_px  # noqa: F401  (a fixture)
from tests.conftest import ROOT, built_once
from tests.docs_pages import COMMANDS, LANGUAGES, Folder, blocks, pages, smaller
from tests.foreign import hugging_face_table, write_arrow_stream, write_parquet, write_tar

PAGES = {str(path.relative_to(ROOT)): path for path in pages()}
RUN = [page for page, path in PAGES.items() if any(block.reason is None for block in blocks(path))]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is_and_is_run_or_says_why_not(page):
    for block in blocks(PAGES[page]):
        assert block.language in LANGUAGES, f"{block}: name a language: {', '.join(LANGUAGES)}"
        assert block.reason is None or len(block.reason.split()) > 2, f"{block}: say why in words"
        if block.language == "text":
            words = [line.split()[0] for line in block.text.splitlines() if line.strip()]
            assert not {"$", *COMMANDS} & set(words), f"{block}: commands are bash or console"
        if block.language == "console":
            assert block.commands(), f"{block}: no line begins with $; output alone is text"


@pytest.mark.parametrize("page", PAGES)
def test_blocks_that_are_not_run_name_programs_and_recipes_that_exist(page):
    recipes = {name.removeprefix("evaluate/") for name in config_files()} | set(config_files())
    for block in blocks(PAGES[page]):
        if block.reason is None or block.language not in ("bash", "console"):
            continue
        for command in block.commands():
            for program, rest in re.findall(r"(?<![\w/.-])avssl ([\w-]+)(.*)", command):
                assert program in {*PROGRAMS, "recipes", "copy", "doctor"}, f"{block}: {command}"
                recipe = rest.split()[0] if rest.split() else ""
                if program == "pretrain" and re.fullmatch(r"[a-z]\w*", recipe):
                    assert recipe in recipes, f"{block}: {command}"


def test_the_commands_for_own_videos_in_the_readme_are_those_that_its_page_runs():
    block = next(one for one in blocks(PAGES["README.md"]) if "VIDEOS --out corpus.jsonl" in one.text)
    run = [command for one in blocks(PAGES["docs/own_videos.md"]) if one.reason is None for command in one.commands()]
    assert len(block.commands()) == 8
    assert not set(block.commands()) - set(run)


def test_a_block_that_fails_fails_its_page(tmp_path):
    page = tmp_path / "page.md"
    text = (
        "```bash\n{}\n```\n\n<!-- not run: needs a machine of your own -->\n```bash\nfalse\n```\n\n```python\n{}\n```\n"
    )
    (tmp_path / "work").mkdir()
    for number, (command, code) in enumerate((("ls no-such-file", ""), ("true", "assert 1 == 2"))):
        page.write_text(text.format(command, code))
        first, second, third = blocks(page)
        assert second.reason == "needs a machine of your own"
        folder = tmp_path / f"run-{number}"
        folder.mkdir()
        runner = Folder(folder)
        with pytest.raises(AssertionError, match=r"page\.md:1:|page\.md:10:"):
            [runner.run(block) for block in (first, third)]


def test_a_pretraining_is_made_small_and_keeps_what_the_page_says():
    words = smaller(["pretrain", "avid", "steps=7", "data.global_batch_size=auto", "epochs=300"])
    assert words[:4] == ["pretrain", "avid", "steps=7", "data.global_batch_size=auto"]
    assert [word for word in words if word.startswith(("steps", "data.global_batch_size"))] == words[2:4]
    assert smaller(["embed", "runs/avid"]) == ["embed", "runs/avid"]


def published(corpus, folder):
    """Files with the names of a published data set, and its lists, of the tiny corpus; the third of each is absent."""
    (folder / "media").mkdir(parents=True)
    for split, list_name in (("train", "train"), ("test", "validate")):
        films = sorted(path for path in (corpus / split).rglob("*") if path.suffix in (".mp4", ".mkv", ".webm"))
        rows = []
        for number, path in enumerate(films):
            video, label = f"{split:_<5}{number:06d}", path.parent.name
            rows.append((video, label, split))
            name = {"kinetics": f"{video}_000010_000020", "vggsound": f"{video}_000010"}.get(folder.name, f"Y{video}")
            if number != 2:
                shutil.copy(path, folder / "media" / f"{name}{path.suffix}")
        if folder.name == "kinetics":
            lines = [
                "label,youtube_id,time_start,time_end,split",
                *(f"{label},{video},10,20,{list_name}" for video, label, _ in rows),
            ]
            (folder / f"{list_name}.csv").write_text("\n".join(lines) + "\n")
        elif folder.name == "vggsound":
            with (folder / "vggsound.csv").open("a") as file:
                file.writelines(f"{video},10,{label},{split}\n" for video, label, _ in rows)
        elif split == "train":
            lines = ["# YTID, start_seconds, end_seconds, positive_labels"]
            lines += [f'{video}, 10.000, 20.000, "/m/{label},/m/all"' for video, label, _ in rows]
            (folder / "balanced_train_segments.csv").write_text("\n".join(lines) + "\n")


def foreign(clip, folder, name):
    """A data set of one clip twice, as other programs write it."""
    content = clip.read_bytes()
    if name == "tars":
        for number in range(2):
            sample = {"__key__": f"clip{number}", "mp4": content, "txt": b"a clip"}
            write_tar(folder / "tars" / f"clips-{number:06d}.tar", [sample])
    elif name == "table.csv":
        (folder / name).write_text("video,caption,label\nmedia/clip.mp4,a clip,dog\n")
        (folder / "media").mkdir()
        shutil.copy(clip, folder / "media" / "clip.mp4")
    else:
        table = hugging_face_table([{"video": {"bytes": content, "path": f"{n}.mp4"}, "label": n} for n in range(2)])
        if name == "parquet":
            write_parquet(folder / name / "train-00000-of-00001.parquet", table)
        else:
            write_arrow_stream(folder / name / "data-00000-of-00001.arrow", table)
            state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
            (folder / name / "state.json").write_text(json.dumps(state))


# What pages presuppose, by the name that it has there; see `given`. A page that is not named here presupposes nothing.
GIVEN = {
    "README.md": ["VIDEOS", "IMAGES", "QUERY.mp4", "holiday.mp4", "test_shards", "kinetics_train.csv"],
    "docs/checkpoints.md": ["shards:shards/train"],
    "docs/choosing.md": ["VIDEOS"],
    "docs/data_sets.md": ["audioset", "vggsound", "IMAGES", "own"],
    "docs/embeddings.md": ["VIDEOS", "QUERY.mp4", "holiday.mp4", "runs/avid_cma"],
    "docs/evaluation.md": ["demo/shards/train", "demo/shards/test", "demo/runs/avid"],
    "docs/exports.md": ["shards:shards/train", "test_shards:shards/test", "VIDEOS", "runs/avid"],
    "docs/faq.md": ["VIDEOS"],
    "docs/foreign_formats.md": ["tars", "parquet", "saved", "table.csv"],
    "docs/first_hour.md": ["videos", "holiday.mp4"],
    "docs/index.md": ["VIDEOS", "VIDEOS/one.mp4"],
    "docs/kinetics400.md": ["kinetics"],
    "docs/mixtures.md": ["shards:kinetics", "test_shards:audioset"],
    "docs/own_videos.md": ["VIDEOS", "VIDEOS/one.mp4"],
    "docs/plugins.md": ["image_shards:shards", "IMAGES"],
    "docs/public_models.md": ["shards", "runs/avid"],
    "docs/selection.md": ["VIDEOS"],
    "docs/storage.md": ["VIDEOS"],
}


EVALUATION = "docs/evaluation.md"


@pytest.fixture
def larger_test(tmp_path):
    """Shards with several clips of each class: retrieval by label has an answer."""
    make_demo_corpus(
        tmp_path / "larger", num_train=1, num_test=24, size_px=32, duration_seconds=1.5, seed=4, num_workers=1
    )
    labels = tmp_path / "larger" / "test" / "labels.csv"
    build_manifest(labels.parent, tmp_path / "larger.jsonl", IndexOptions(labels=str(labels)))
    write_shards(tmp_path / "larger.jsonl", tmp_path / "larger_shards", WriteOptions(short_side_px=32))
    return tmp_path / "larger_shards"


@pytest.fixture
def page_folder(corpus, shards, tiny_run, image_shards, tmp_path, monkeypatch, request):
    """The folder of a page with what it presupposes."""
    clip = sorted((corpus / "test").rglob("*.mp4"))[0]
    large = request.getfixturevalue("larger_test") if request.node.callspec.params["page"] == EVALUATION else None
    given = {
        "VIDEOS": corpus / "train", "videos": corpus / "train", "VIDEOS/one.mp4": clip, "QUERY.mp4": clip,
        "holiday.mp4": clip, "shards": shards["train"], "test_shards": shards["test"],
        "demo/shards/train": shards["train"], "demo/shards/test": large, "demo/runs/avid": tiny_run,
        "runs/avid": tiny_run, "runs/avid_cma": tiny_run,
        "IMAGES": image_shards.parent / "images", "image_shards": image_shards,
    }  # fmt: skip
    (tmp_path / "page").mkdir()
    runner = Folder(tmp_path / "page")
    for name in GIVEN.get(request.node.callspec.params["page"], []):
        if name in ("kinetics", "vggsound", "audioset"):
            published(corpus, runner.path / name)
            continue
        if name in ("tars", "parquet", "saved", "table.csv"):
            foreign(clip, runner.path, name)
            continue
        if name == "own":
            (runner.path / "own").mkdir()
            [shutil.copy(clip, runner.path / "own" / f"{number}.mp4") for number in ("one", "two")]
            continue
        source, _, target = name.partition(":")
        path = runner.path / (target or source)
        path.parent.mkdir(parents=True, exist_ok=True)
        if source.endswith(".csv"):
            path.write_text("label,youtube_id,time_start,time_end,split\nclapping,train-000000,0,1,train\n")
        else:
            (shutil.copytree if given[source].is_dir() else shutil.copy)(given[source], path)
    pretrain = avssl.pretrain

    def small_pretrain(recipe, data, out="", **changes):
        words = smaller(["pretrain", recipe, *(f"{key}={value}" for key, value in changes.items())])[2:]
        made = (word.split("=", 1) for word in words)
        return pretrain(recipe, data, out, **({key: yaml.safe_load(value) for key, value in made} | changes))

    monkeypatch.setattr(avssl, "pretrain", small_pretrain)
    return runner


@pytest.mark.slow
@pytest.mark.usefixtures("own_registries")
@pytest.mark.parametrize("page", RUN)
def test_the_blocks_of_a_page_run_in_their_order(page, page_folder):
    for block in blocks(PAGES[page]):
        if block.reason is None:
            page_folder.run(block)


class _Links(HTMLParser):
    """What a page loads (scripts, styles, images, frames, fonts), and where its links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag in ("script", "img", "iframe", "source", "video", "audio") and values.get("src"):
            self.loaded.append(values["src"])
        if tag == "link" and values.get("rel") not in ("canonical", "prev", "next") and values.get("href"):
            self.loaded.append(values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, warnings being errors."""

    def build(folder):
        process = subprocess.run(
            [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder / "site"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr[-4000:]

    return built_once(tmp_path_factory, "docs_site", build) / "site"


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(site):
    pages_of_site = sorted(site.rglob("*.html"))
    assert len(pages_of_site) > 20
    for page in pages_of_site:
        links = _Links()
        links.feed(page.read_text(encoding="utf-8"))
        assert links.loaded, page
        for target in links.loaded:
            assert "//" not in target, f"{page.name} loads {target}"
            if page.name != "404.html":
                assert (page.parent / target.partition("?")[0].partition("#")[0]).is_file(), f"{page}: {target}"


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_pages_of_the_site_are_whole_from_the_disk(chromium, site, view):  # noqa: F811
    for page in ("index", "families", "kinetics400", "healthy_runs", "api/losses"):
        with chromium.open((site / f"{page}.html").as_uri(), view) as shown:  # no message, no request that fails
            shown.wait_for_timeout(500)
            assert overflow_px(shown) == 0, page
            assert not faint_texts(shown), page
            broken = "() => [...document.images].filter((one) => !one.naturalWidth).map((one) => one.src)"
            assert shown.evaluate(broken) == [], page


@pytest.mark.slow
def test_the_search_of_the_site_works_from_the_disk(chromium, site):  # noqa: F811
    with chromium.open((site / "index.html").as_uri()) as shown:
        shown.locator("input.md-search__input").click()
        shown.keyboard.type("collapse")
        shown.wait_for_selector(".md-search-result__item")
        assert "Four families" in " ".join(shown.locator(".md-search-result__item").all_text_contents())


@pytest.mark.slow
def test_the_api_pages_have_every_offered_name(site):
    from tests.test_exports import OFFERED

    text = {page.stem: page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html")}
    names = [*OFFERED, *(("avssl", name) for name in avssl.__all__ if not name.startswith("__"))]
    for package, name in names:
        defined = getattr(importlib.import_module(package), name).__module__
        assert f'id="{defined}.{name}"' in text[package.rpartition(".")[2]], f"{package}.{name}"


def test_every_figure_is_shown_and_says_what_it_shows_in_light_and_dark():
    shown = set()
    for page in pages():
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert len(words.split()) > 3, f"{page.name}: {target} has no text for readers who do not see it"
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
            shown.add((page.parent / target).resolve())
    figures = {path.resolve() for path in (ROOT / "docs/figures").glob("*.svg")}
    assert figures <= shown, f"no page shows {figures - shown}"
    for figure in figures:
        root = ElementTree.fromstring(figure.read_text(encoding="utf-8"))
        style = root.find("{*}style")
        assert root.findtext("{*}title")
        assert "prefers-color-scheme: dark" in style.text


def test_the_navigation_has_every_page():
    navigation = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)["nav"]

    def files(entry):
        if isinstance(entry, str):
            return [entry]
        return [file for part in (entry.values() if isinstance(entry, dict) else entry) for file in files(part)]

    named = files(navigation)
    here = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(named) == sorted(here)
