"""The explorer: it finds what a search finds, and gives nothing to who has no token, nor any file but its own clips."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.parse import parse_qsl, urlencode, urlsplit

import numpy as np
import pytest

from avssl.embedding.lance_table import open_index
from avssl.embedding.search import EmbeddingIndex, load_embedder_of
from avssl.embedding.sources import suffixes_of
from avssl.embedding_pages.origins import Origins
from avssl.exchange.targets import command as export
from avssl.explorer.answers import Explorer
from avssl.explorer.cuts import ClipStore
from avssl.explorer.page import Place, page_of, render
from avssl.explorer.question import ALL_WINDOWS, Asked, UploadLimits, address, asked_of
from avssl.explorer.server import MOST_WAITING_UPLOADS, Service
from avssl.media.decode import probe
from avssl.processes.limits import Limits
from avssl.processes.pool import Sandbox
from data_prep.transcode.encode import write_media
from recipes import report as report_recipe
from recipes import search as search_recipe
from tests.test_embed import frames, sine
from tests.test_full_disk import files_of_at_most
from tests.test_public_search import clap  # noqa: F401  (a fixture)
from tests.test_report import Checker
from tests.test_search_page import CLASS, found  # noqa: F401  (a fixture)

TOKEN = "right"
LIMITS = UploadLimits(300_000, 4.0, Limits(60.0))


@pytest.fixture(scope="module")
def service(found, tmp_path_factory):  # noqa: F811
    """The requests of an explorer of four files of a hostile folder."""
    index = EmbeddingIndex(found[1])
    with Sandbox(1, LIMITS.reading) as sandbox:
        clips = ClipStore(tmp_path_factory.mktemp("served"), sandbox)
        explorer = Explorer(index, load_embedder_of(index), clips, LIMITS)
        place = Place(Origins(index.folder, index.content.settings, explorer.keys))
        service = Service(
            TOKEN,
            clips.folder,
            LIMITS,
            suffixes_of(explorer.settings["modalities"]),
            pages=lambda values: page_of(explorer, place, values, 3),
            take=explorer.take,
            clip_path=clips.path,
        )
        service.explorer, service.place = explorer, place
        yield service
        service.close()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video of two seconds with sound."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_media(path, video=frames(32, 32), video_fps=16, audio=sine(2.0), audio_rate_hz=24_000)
    return path


def request(service, method, path, body=b"", cookie=TOKEN, query="", leaves=False, **headers):
    """(status, headers, body) of a request that is handed to the application as it is, without a client's mending.

    leaves: the client is gone before the last block.
    """
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    if cookie is not None:
        lines.append((b"cookie", f"{service.cookie}={cookie}".encode()))
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
             "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
             "headers": lines, "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1)}  # fmt: skip
    blocks = [body[start : start + 65_536] for start in range(0, len(body), 65_536)] or [b""]
    sent = []

    async def receive():
        if blocks:
            return {"type": "http.request", "body": blocks.pop(0), "more_body": leaves or bool(blocks)}
        return {"type": "http.disconnect"} if leaves else await forever()

    async def forever():
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    with ThreadPoolExecutor(1) as pool:  # the browser of another test may hold a loop in this thread
        pool.submit(asyncio.run, service.app()(scope, receive, send)).result()
    begun = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], begun, b"".join(message.get("body", b"") for message in sent[1:])


def test_what_is_found_is_what_a_search_by_key_finds(service, found):  # noqa: F811
    explorer = service.explorer
    key = next(name for name in explorer.keys if name.endswith("two_mp4"))
    answer = explorer.answer(Asked(key=key), 5)
    given = search_recipe.parse([str(found[1]), "--key", key])
    query = search_recipe.key_query(explorer.index, given)
    assert answer.modality == query.modality
    assert set(answer.hits) == set(query.vectors) == {"video", "audio"}
    for name, vector in query.vectors.items():
        theirs = explorer.index.search(name, vector, 5, exclude={key}, one_per_key=True)[0]
        assert [hit.row for hit in answer.hits[name]] == [hit.row for hit in theirs]
        np.testing.assert_allclose([hit.score for hit in answer.hits[name]], [hit.score for hit in theirs], atol=1e-6)
    table, numbers = explorer.index.table_of(key)
    for window in (1, 2):  # a window asks with its own vector
        found_too = explorer.answer(Asked(key=key, window=window, by="audio", with_own=True, each_row=True), 50)
        row = int(numbers[np.flatnonzero(table.has_audio)[window - 1]])
        vector = table.audio_embedding[table.has_audio][window - 1 : window]
        for name in ("video", "audio"):
            theirs = explorer.index.search(name, vector, 50)[0]
            assert [hit.row for hit in found_too.hits[name]] == [hit.row for hit in theirs]
        assert next(hit.score for hit in found_too.hits["audio"] if hit.row == row) == pytest.approx(1, abs=1e-6)
        assert explorer.resolved(Asked(row=row, by="audio")) == Asked(key=key, by="audio", window=window)


def test_only_rows_of_a_label_are_found(service):
    explorer = service.explorer
    label = f"label: {CLASS}"
    assert label in explorer.labels
    hits = explorer.answer(Asked(key="a_wav", label=label, each_row=True), 50).hits
    rows = {hit.row for one in hits.values() for hit in one}
    assert rows == set(explorer.labels[label].tolist())
    assert all(CLASS in names for number in rows for names in explorer.index.facts([number])[number].labels.values())
    with pytest.raises(ValueError, match="no row has the label"):
        explorer.answer(Asked(key="a_wav", label="label: none"), 5)


@pytest.mark.slow
def test_a_lance_table_is_explored_and_reported_as_its_folder(service, found, tmp_path):  # noqa: F811
    """Four files are compared without an index; more rows are searched as `avssl search` searches the table."""
    where = tmp_path / "films.lance"
    assert export.command([str(found[1]), "--to", "lance", "--out", str(where)]) == 0
    theirs, lance = service.explorer, open_index(where)
    explorer = Explorer(lance, load_embedder_of(lance), theirs.clips, LIMITS)
    for name in ("keys", "labels"):
        mine, other = getattr(explorer, name), getattr(theirs, name)
        assert list(mine) == list(other)
        assert all(np.array_equal(mine[key], other[key]) for key in mine)
    key = next(name for name in explorer.keys if name.endswith("two_mp4"))
    of_label, of_all = {"label": f"label: {CLASS}"}, {"with_own": True, "each_row": True}
    for changes in ({}, {"window": 2, "by": "audio"}, of_label, of_all):
        answer, expected = (one.answer(Asked(key=key, **changes), 4) for one in (explorer, theirs))
        assert answer.hits == expected.hits
        assert answer.facts == expected.facts
    place = Place(Origins(lance.folder, lance.content.settings, explorer.keys))
    page = render(explorer, place, Asked(key=key), 3)
    assert not Checker(page).wrong
    assert "cannot be shown" not in page
    shutil.copytree(found[1], tmp_path / "index")
    report_recipe.main(where, [])
    report_recipe.main(tmp_path / "index", [])
    pages = [(folder / "report.html").read_text() for folder in (where, tmp_path / "index")]
    assert pages[0].replace("films.lance", "index") == pages[1]


def test_addresses_say_what_is_asked_and_numbers_are_checked():
    asked = Asked(key=f"{CLASS}/x?&=%", window=3, by="audio", label="a: b", with_own=True, each_row=True)
    query = dict(part.split("=", 1) for part in urlsplit(address(asked)).query.split("&"))
    assert set(query) == {"key", "window", "by", "label", "own", "each"}
    assert asked_of(dict(parse_qsl(urlsplit(address(asked)).query))) == asked
    assert address(Asked()) == "/"
    assert asked_of({"window": "0"}).window == ALL_WINDOWS
    for wrong in ("-1", "1e3", "٣", "9" * 10, "../x"):
        with pytest.raises(ValueError, match="whole number"):
            asked_of({"window": wrong})


def test_the_page_is_escaped_and_every_medium_of_it_is_a_clip_that_was_cut(service):
    explorer = service.explorer
    key = next(name for name in explorer.keys if name.endswith("one_mp4"))
    status, headers, body = request(service, "GET", "/", query=urlencode({"key": key, "window": 1}))
    text = body.decode()
    checked = Checker(text)
    assert status == 200
    assert not checked.wrong
    assert not checked.open
    assert not [names for _, names in checked.tags if any(name.startswith("on") for name in names)]
    assert CLASS in "".join(checked.text)
    assert headers["cache-control"] == "no-store"
    media = json.loads(re.search(r'<script type="application/json" id="media">(.*?)</script>', text)[1])
    addresses = {names["src"] for _, names in checked.tags if "src" in names} | set(media.values())
    assert media
    for one in addresses:
        status, headers, content = request(service, "GET", one)
        assert (status, headers["x-content-type-options"]) == (200, "nosniff")
        assert content[:2] == b"\xff\xd8" or probe(content).duration_seconds <= 3.2
    one = next(iter(media.values()))
    status, headers, content = request(service, "GET", one, range="bytes=0-9")  # browsers seek so
    assert (status, len(content)) == (206, 10)
    wrong = request(service, "GET", "/", query=urlencode({"key": "<script>x</script>"}))
    assert wrong[0] == 400
    assert b"<script>x" not in wrong[2]
    assert b"has no rows of the key" in wrong[2]


def test_without_the_token_nothing_is_given(service, clip):
    for cookie in (None, "", "wrong", TOKEN + "x", "rïght"):
        for method, path in (("GET", "/"), ("GET", "/media/1.mp4"), ("POST", "/upload"), ("GET", "/nothing")):
            status, _, body = request(service, method, path, cookie=cookie, body=clip.read_bytes())
            assert status == 403
            assert len(body) < 200
    assert request(service, "GET", "/", cookie=None, query="token=wrong")[0] == 403
    status, headers, _ = request(service, "GET", "/", cookie=None, query=f"token={TOKEN}")
    assert (status, headers["location"]) == (303, "/")
    assert "httponly" in headers["set-cookie"].lower()
    assert "samesite=strict" in headers["set-cookie"].lower()
    assert request(service, "POST", "/upload", sec_fetch_site="same-site", body=b"x")[0] == 403
    assert request(service, "GET", "/", sec_fetch_site="cross-site")[0] == 403


def test_no_name_in_a_request_becomes_a_path(service, found, tmp_path):  # noqa: F811
    folder = service.explorer.clips.folder
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"secret")
    (folder / "link.mp4").symlink_to(secret)
    (folder / "other.mp4").write_bytes(b"secret")
    own = str(next(found[0].rglob("*.mp4")))
    names = ("link.mp4", "other.mp4", "../secret.mp4", "..%2fsecret.mp4", "%2e%2e/secret.mp4", str(secret), own,
             f"//{own}", "..\\secret.mp4", "1.mp4/../other.mp4", "", ".", "..", "1.mp4\x00")  # fmt: skip
    for name in names:
        status, _, body = request(service, "GET", f"/media/{name}")
        assert status == 404, name
        assert b"secret" not in body
    for path in ("/etc/passwd", "/../etc/passwd", "/avssl/explorer/server.py", "/static/x", own):
        assert request(service, "GET", path)[0] == 404
    listed = service.place.origins.files["a_wav"]
    assert service.place.is_named(listed.path)
    assert not service.place.is_named(str(secret))  # a list that was changed afterwards
    assert not service.place.is_named(f"{found[0]}/../../{secret}")


def upload(service, content, name="clip.mp4", **headers):
    status, _, body = request(service, "POST", "/upload", content, query=urlencode({"name": name}), **headers)
    return status, json.loads(body)


def left(service):
    return sorted(path.name for path in service.explorer.clips.folder.glob("upload*"))


def test_uploads_that_are_too_large_too_long_or_no_media_are_refused_and_leave_nothing(service, clip, tmp_path):
    before = left(service)
    limit = LIMITS.num_bytes
    assert upload(service, b"", content_length=str(limit + 1))[0] == 413
    status, told = upload(service, b"x" * (limit + 1), content_length="10")  # what is stated is not believed
    assert (status, "--upload-mib" in told["error"]) == (413, True)
    # A manifest would name files of this machine; a playlist, too.
    manifest = json.dumps({"path": "/etc/passwd", "key": "x"}).encode()
    for name in ("corpus.jsonl", "list.m3u8", "x", "x.mp4.sh", "../../x.txt", ".mp4"):
        assert upload(service, manifest, name)[0] == 400
    status, told = upload(service, b"#EXTM3U\nfile:///etc/passwd\n", "../../list.mp4")
    assert status == 400
    assert str(service.explorer.clips.folder) not in told["error"]
    assert "list.mp4" in told["error"]
    write_media(tmp_path / "long.wav", audio=sine(5.0), audio_rate_hz=24_000, audio_codec="pcm_s16le")
    status, told = upload(service, (tmp_path / "long.wav").read_bytes(), "long.wav")
    assert (status, "lasts 5 s" in told["error"]) == (400, True)
    service._num_uploads = MOST_WAITING_UPLOADS
    assert upload(service, clip.read_bytes())[0] == 503
    service._num_uploads = 0
    assert left(service) == before


def test_an_upload_whose_sender_leaves_or_that_the_disk_does_not_hold_ends_without_a_trace(service, clip):
    before = left(service)
    status, _, body = request(service, "POST", "/upload", clip.read_bytes(), query="name=a.mp4", leaves=True)
    assert (status, body) == (400, b"")
    with files_of_at_most(1000):
        status, told = upload(service, b"x" * 70_000)
    assert (status, "free space" in told["error"]) == (507, True)
    assert str(service.explorer.clips.folder) not in told["error"]
    assert left(service) == before
    assert service._num_uploads == 0


@pytest.mark.slow
def test_an_upload_is_embedded_in_a_process_of_its_own_and_finds_the_file_it_is(service, found, monkeypatch):  # noqa: F811
    explorer = service.explorer
    path = found[0] / "mute.mp4"
    workers = []
    embed = explorer.embedder.embed
    monkeypatch.setattr(explorer.embedder, "embed", lambda *a, **k: workers.append(k["num_workers"]) or embed(*a, **k))
    status, told = upload(service, path.read_bytes(), f"../{CLASS}.mp4")
    assert status == 200, told
    assert workers == [1]
    identifier = told["address"].partition("upload=")[2]
    answer = explorer.answer(Asked(upload=identifier, window=3, each_row=True), 50)
    own = [hit for hit in answer.hits["video"] if hit.key == "mute_mp4"]
    assert next(hit.score for hit in own if hit.start_seconds == 1.0) == pytest.approx(1, abs=1e-5)  # its third window
    assert len(answer.windows.keys) == len(own)
    text = request(service, "GET", "/", query=told["address"][2:])[2].decode()
    assert CLASS not in text
    assert not Checker(text).wrong
    assert request(service, "GET", "/", query="upload=unknown")[0] == 400


def test_clips_beyond_the_bound_go_and_the_last_one_stays(service, found, tmp_path):  # noqa: F811
    explorer = service.explorer
    clips = ClipStore(tmp_path, explorer.clips.sandbox, most_bytes=1)
    first, last = (service.place.cut(row) for row in explorer.index.facts([0, 3]).values())
    names = [clips.shown([cut])[0].movie for cut in (first, last)]
    assert clips.path(names[0]) is None
    assert clips.path(names[1]).is_file()
    assert {path.name for path in tmp_path.iterdir()} >= {names[1]}
    assert names[0] not in {path.name for path in tmp_path.iterdir()}
    gone = replace(first, place=replace(first.place, path="/nowhere/x.mp4"))
    shown = clips.shown([gone])[0]
    assert shown.problem
    assert "/nowhere" not in shown.problem


def test_text_that_the_model_does_not_read_is_an_error_that_says_so(service):
    status, _, body = request(service, "GET", "/", query="text=a+dog")
    assert status == 400
    assert b"reads no text" in body
    assert 'name="text"' not in render(service.explorer, service.place, Asked(), 3)


@pytest.mark.slow
def test_text_finds_what_a_search_by_text_finds(clap, tmp_path):  # noqa: F811
    index = EmbeddingIndex(clap[2])
    embedder = load_embedder_of(index)
    with Sandbox(1, LIMITS.reading) as sandbox:
        explorer = Explorer(index, embedder, ClipStore(tmp_path, sandbox), LIMITS)
        place = Place(Origins(index.folder, index.content.settings, explorer.keys))
        assert explorer.text_modalities == ("audio",)
        theirs = index.search("audio", embedder.embed_text(["a dog barks"], "audio"), 3)[0]
        assert [hit.row for hit in explorer.answer(Asked(text="a dog barks"), 3).hits["audio"]] == [
            hit.row for hit in theirs
        ]
        text, status = page_of(explorer, place, {"text": "a dog <b>"}, 3)
        assert status == 200
        assert 'name="text"' in text
        assert "a dog &lt;b&gt;" in text
        assert page_of(explorer, place, {"text": "dog " * 200}, 3)[1] == 400
