"""The page of a search: one offline file, escaped, bounded, true to the hits, and it plays in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import time
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

import avssl
from avssl.embedding.folder import FolderJob
from avssl.embedding.media import open_media
from avssl.embedding.search import EmbeddingIndex, Query
from avssl.embedding_pages.cards import seconds_text
from avssl.embedding_pages.clips import clip_of, clip_span, spectrogram
from avssl.embedding_pages.folder_page import write_folder_page
from avssl.embedding_pages.origins import Origins
from avssl.embedding_pages.search_page import MAX_CARDS, write_search_page
from avssl.media.decode import probe
from avssl.shards.manifest import FileSource
from avssl.types import Span
from data_prep.transcode.encode import write_media
from recipes import search as search_recipe
from tests.browser import (  # noqa: F401  (chromium is a fixture)
    DESKTOP,
    PHONE,
    VIEWS,
    chromium,
    faint_texts,
    overflow_px,
    reached_by_keyboard,
    unnamed_controls,
)
from tests.conftest import built_once, run_python
from tests.test_embed import frames, sine
from tests.test_report import HOSTILE, Checker

CLASS = "<b onclick=alert(1)>&"


@pytest.fixture(scope="session")
def found(tiny_run, tmp_path_factory):
    """(folder of media, its embeddings): two videos with sound in a hostile folder, one without sound, one sound."""

    def build(root):
        (root / "videos" / CLASS).mkdir(parents=True)
        for number, name in enumerate((f"{CLASS}/one.mp4", f"{CLASS}/two two.mp4", "mute.mp4")):
            video = [np.roll(frame, 7 * number, 0) for frame in frames(16 * (number + 2), 32)]
            sound = {} if name == "mute.mp4" else {"audio": sine(2.0 + number), "audio_rate_hz": 24_000}
            write_media(root / "videos" / name, video=video, video_fps=16, **sound)
        write_media(root / "videos" / "a.wav", audio=sine(1.5), audio_rate_hz=24_000, audio_codec="pcm_s16le")
        run = shutil.copytree(tiny_run, root / "run")  # for other processes: each writes in a tiny_run of its own
        embedder = avssl.load_embedder(str(run))
        FolderJob.begin(embedder, [root / "videos"], root / "index", window_seconds=0.5).run(embedder, run_folder=run)

    root = built_once(tmp_path_factory, "page", build)
    return root / "videos", root / "index"


@pytest.fixture(scope="module")
def page(found, tmp_path_factory):
    """The page of a search by key, as the command writes it."""
    path = tmp_path_factory.mktemp("html") / "results.html"
    asked = EmbeddingIndex(found[1]).facts([3])[3].key
    given = search_recipe.parse([str(found[1]), "--key", asked, "--top", "6", "--html", str(path)])
    assert search_recipe.main(given) == 0
    return path


def media_of(text):
    return json.loads(re.search(r'<script type="application/json" id="media">(.*?)</script>', text)[1])


def test_the_page_is_one_well_formed_file_that_asks_for_nothing_and_escapes_names(page):
    text = page.read_text()
    checked = Checker(text)
    assert not checked.wrong
    assert not checked.open
    assert [name for name, _ in checked.tags].count("b") < 60
    assert not [attributes for _, attributes in checked.tags if any(name.startswith("on") for name in attributes)]
    for _, attributes in checked.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    assert CLASS in "".join(checked.text)
    assert "http" not in re.sub(r"data:[^\"']*|http-equiv", "", text).replace("w3.org", "")


def test_a_card_names_the_file_of_its_row_as_it_is_written(found, page):
    index = EmbeddingIndex(found[1])
    assert "two two.mp4" in Checker(page.read_text()).text
    origins = Origins(index.folder, index.content.settings, ())
    files = {"birds/_mp4": "/videos/birds/鳥の声.mp4", "birds/_mp4_0_2000": "/videos/birds/鳥の声.mp4",
             "a_b_mp4-0a1b2c3d": "/videos/a b.mp4", "given_1": "/videos/a b.mp4"}  # fmt: skip
    vars(origins)["files"] = {key: FileSource(path, key) for key, path in files.items()}
    assert [origins.name(key) for key in (*files, "gone_mp4")] == [
        "birds/鳥の声.mp4", "birds/鳥の声.mp4_0_2000", "a b.mp4-0a1b2c3d", "given_1", "gone_mp4"
    ]  # fmt: skip


def test_every_result_has_rank_score_key_seconds_and_a_clip_of_those_seconds(found, page):
    index, text = EmbeddingIndex(found[1]), page.read_text()
    asked = index.facts([3])[3].key
    table, _ = index.table_of(asked)
    query = table.select(table.has_video).pool_by_key().video_embedding
    for modality in ("video", "audio"):
        for hit in index.search(modality, query, 6)[0]:
            assert f"{hit.score:.3f}" in text
            assert seconds_text(hit.start_seconds, hit.end_seconds) in text
    clips = [base64.b64decode(uri.partition(",")[2]) for uri in media_of(text).values()]
    assert clips
    lengths = {round(probe(clip).duration_seconds, 1) for clip in clips}
    assert max(lengths) <= 3.1  # a window of half a second, with what is around it
    assert text.count('class="hit"') == 12 + 1
    assert all(f">{rank}</b>" in text for rank in range(1, 7))


@pytest.mark.slow
def test_what_does_not_fit_or_is_gone_is_said_and_the_rest_is_there(found, tmp_path):
    index = EmbeddingIndex(found[1])
    vectors = {"video": np.ones((1, 8))}
    query = Query(HOSTILE, "text", vectors, [{"text": HOSTILE}])
    results = {"video": index.search("video", vectors["video"], 5)}
    whole = write_search_page(tmp_path / "whole.html", index, query, results)
    small = write_search_page(tmp_path / "small.html", index, query, results, max_bytes=60_000)
    assert whole.num_left_out == 0
    assert whole.num_playing == 5
    assert small.num_playing < 5
    assert small.num_bytes < 60_000 + 60_000
    assert "did not fit" in (tmp_path / "small.html").read_text() or small.num_left_out == 0
    again = write_search_page(tmp_path / "again.html", index, query, results)
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "whole.html").read_bytes()
    assert again.num_bytes == whole.num_bytes
    assert not Checker((tmp_path / "whole.html").read_text()).wrong
    shutil.copytree(found[1], tmp_path / "moved")
    lines = (tmp_path / "moved" / "sources.jsonl").read_text().replace(str(found[0]), "/nowhere")
    (tmp_path / "moved" / "sources.jsonl").write_text(lines)
    gone = write_search_page(tmp_path / "gone.html", EmbeddingIndex(tmp_path / "moved"), query, results)
    assert gone.num_playing == 0
    assert (tmp_path / "gone.html").read_text().count("Cannot be shown: /nowhere") == 5
    many = {"video": [results["video"][0] * MAX_CARDS]}
    assert write_search_page(tmp_path / "many.html", index, query, many).num_cut == 4 * MAX_CARDS


def test_clips_show_the_window_with_what_is_around_it():
    assert clip_span(Span(10, 10.5), 60) == Span(8.75, 11.75)
    assert clip_span(Span(0, 0.5), 60) == Span(0, 3)
    assert clip_span(Span(59.5, 60), 60) == Span(57, 60)
    assert clip_span(Span(0, 30), 30) == Span(12, 18)
    assert clip_span(Span(0, 30), 30, from_start=True) == Span(0, 6)
    assert clip_span(Span(0, 0.5), 0.7) == Span(0, 0.7)
    assert seconds_text(61.5, 3725) == "1:01.50 – 1:02:05.00"
    assert seconds_text(59.999, 60) == "1:00.00 – 1:00.00"


def test_a_clip_has_the_picture_and_the_sound_of_its_seconds(tmp_path):
    """A film that is red, then blue, and silent, then loud: the still is of the window, and so is the sound."""
    colors = [(220, 20, 20)] * 64 + [(20, 20, 220)] * 64
    video = [np.full((480, 640, 3), color, np.uint8) for color in colors]
    sound = np.concatenate([np.zeros(4 * 24_000), sine(4.0)[0]]).astype(np.float32)[None]
    write_media(tmp_path / "film.mp4", video=video, video_fps=16, audio=sound, audio_rate_hz=24_000)
    media = open_media(tmp_path / "film.mp4", "film", ["video", "audio"])
    clip = clip_of(media, Span(4.5, 5.0))
    media.close()
    assert clip.span == Span(3.25, 6.25)
    still = np.asarray(Image.open(io.BytesIO(clip.still))).reshape(-1, 3).mean(0)
    assert still[2] > 180
    assert still[0] < 60
    facts = probe(clip.movie)
    assert (facts.video.width, facts.video.height) == (320, 240)
    assert facts.duration_seconds == pytest.approx(3.0, abs=0.1)
    shade = np.asarray(Image.open(io.BytesIO(clip.sound)).convert("L")).astype(float).mean(0)
    assert shade[:60].mean() < shade[120:].mean() / 1.5  # the first quarter is silent


def test_a_spectrogram_has_low_tones_below_and_high_ones_above():
    def row_of(hz):
        time = np.arange(24_000) / 24_000
        picture = Image.open(io.BytesIO(spectrogram(np.sin(2 * np.pi * hz * time), 24_000))).convert("L")
        return int(np.asarray(picture).astype(float).mean(1).argmax())

    rows = [row_of(hz) for hz in (150, 600, 2400, 9600)]
    assert all(above < below - 8 for below, above in pairwise(rows))
    silent = np.asarray(Image.open(io.BytesIO(spectrogram(np.zeros(24_000), 24_000))).convert("L"))
    assert silent.max() < 40


def comes(page, expression, seconds=20):
    """Whether an expression becomes true. Playwright's own wait needs eval, which the page's policy forbids."""
    end = time.monotonic() + seconds
    while not (found := page.evaluate(expression)) and time.monotonic() < end:
        page.wait_for_timeout(50)
    return bool(found)


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_the_page_plays_in_a_browser_and_answers_to_the_keyboard(chromium, page, view):  # noqa: F811
    with chromium.open(page, view) as opened:
        assert overflow_px(opened) == 0
        assert unnamed_controls(opened) == []
        assert [text for text in faint_texts(opened) if ".place" not in text and ".time" not in text] == []
        assert reached_by_keyboard(opened, "button.play")
        opened.keyboard.press("ArrowRight")
        opened.keyboard.press("Space")
        assert comes(opened, "[...document.querySelectorAll('video, audio')].some((one) => one.currentTime > 0.2)")
        assert opened.locator(".hit.playing").count() == 1
        opened.locator("section .through").first.click()
        assert comes(opened, "document.querySelector('section .hit.playing video')?.currentTime > 0.1")
        assert opened.locator(".hit.playing").count() == 1


@pytest.mark.slow
def test_the_command_asks_by_file_by_key_and_refuses_what_is_no_query(found, tmp_path):
    folder, index = found
    said = run_python(
        "recipes/search.py", index, folder / "mute.mp4", "--html", tmp_path / "a.html", "--top", "3"
    ).stdout
    assert re.search(r"a\.html: \d\.\d MB, one file, \d clips that play", said)
    assert (tmp_path / "a.html").is_file()
    wrong = run_python("recipes/search.py", index, "--key", "mute.mp4", check=False)
    assert "has no rows of the key 'mute.mp4'; it has, for example, 'mute_mp4'" in wrong.stderr
    both = run_python("recipes/search.py", index, "x.mp4", "--key", "mute_mp4", check=False)
    assert "give one of QUERY (a file), --key and --text; given: QUERY, --key" in both.stderr


@pytest.mark.slow
def test_a_folder_of_embeddings_has_a_page_of_what_it_holds_and_what_not(found, tmp_path, chromium):  # noqa: F811
    shutil.copytree(found[1], tmp_path / "index")
    index = json.loads((tmp_path / "index" / "index.json").read_text())
    index |= {"num_listed": index["num_listed"] + 1, "num_skipped": 1, "skipped_by_reason": {"not_media": 1}}
    (tmp_path / "index" / "index.json").write_text(json.dumps(index))
    line = {"key": HOSTILE, "reason": "not_media", "message": HOSTILE}
    (tmp_path / "index" / "skipped.jsonl").write_text(json.dumps(line) + "\n")
    path = write_folder_page(tmp_path / "index")
    text = path.read_text()
    assert not Checker(text).wrong
    assert HOSTILE in "".join(Checker(text).text)
    assert "4 of 5 sources have rows (80.0 %)" in text
    assert media_of(text)
    for view in (DESKTOP, PHONE):
        with chromium.open(path, view) as opened:
            assert overflow_px(opened) == 0
            assert faint_texts(opened) == []
