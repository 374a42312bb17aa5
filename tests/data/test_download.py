from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from cemg_hf.data import download, images
from cemg_hf.data.download import DownloadConfig, download_images, download_table, file_stem, summary
from cemg_hf.errors import CEMGError

FAST = DownloadConfig(workers=4, requests_per_second=0, timeout=0.4, deadline=2.0, retries=2, backoff=0.01, max_megabytes=0.2)


def picture(format: str = "JPEG", size: tuple[int, int] = (40, 20), mode: str = "RGB", **options: object) -> bytes:
    buffer = BytesIO()
    Image.new(mode, size, "red" if mode != "P" else 1).save(buffer, format, **options)
    return buffer.getvalue()


class Shop(ThreadingHTTPServer):
    """A server on 127.0.0.1 that remembers what was asked for."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[tuple[str, float]] = []
        self.released = threading.Event()
        self.retry_after = "0"

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def count(self, path: str) -> int:
        return sum(asked == path for asked, _ in self.asked)

    def times(self, path: str) -> list[float]:
        return [moment for asked, moment in self.asked if asked == path]


class Answer(BaseHTTPRequestHandler):
    server: Shop

    def do_GET(self) -> None:
        self.server.asked.append((self.path, time.monotonic()))
        attempt = self.server.count(self.path)
        kind = self.path.split("/")[1]
        match kind:
            case "ok":
                self.send(200, picture())
            case "png":
                self.send(200, picture("PNG", mode="RGBA"))
            case "large":
                self.send(200, picture(size=(640, 480), exif=rotated()))
            case "transparent":
                self.send(200, picture("PNG", size=(640, 480), mode="RGBA"))
            case "busy":
                self.send(503 if attempt == 1 else 200, picture() if attempt > 1 else b"")
            case "wait":
                self.send(429 if attempt == 1 else 200, picture() if attempt > 1 else b"", {"Retry-After": self.server.retry_after})
            case "down":
                self.send(500, b"")
            case "redirect":
                self.send(302, b"", {"Location": "/ok/redirected.jpg"})
            case "loop":
                self.send(302, b"", {"Location": self.path})
            case "scheme":
                self.send(302, b"", {"Location": "file:///etc/hostname"})
            case "slow":
                self.server.released.wait(5)
            case "trickle":
                self.trickle()
            case "truncated":
                self.send(200, picture()[:200], length=len(picture()))
            case "dropped" if attempt == 1:
                self.send(200, picture()[:200], length=len(picture()))
            case "dropped":
                self.send(200, picture())
            case "half":
                self.send(200, picture(size=(300, 300))[:-600])
            case "page":
                self.send(200, b"<html>no such picture</html>")
            case "empty":
                self.send(200, b"")
            case "pixel":
                self.send(200, picture("GIF", size=(1, 1), mode="P"))
            case "huge":
                self.send(200, picture() + bytes(400_000))
            case "forbidden":
                self.send(403, b"")
            case _:
                self.send(404, b"")

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def trickle(self) -> None:
        """A byte now and then: never silent for as long as the time-out."""
        self.send_response(200)
        self.end_headers()
        while not self.server.released.wait(0.1):
            self.wfile.write(b"x")

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def rotated() -> bytes:
    """Exif that turns the picture by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Shop()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


def table(shop: Shop, *kinds: str) -> pl.DataFrame:
    return pl.DataFrame({"item_id": list(kinds), "image_url": [shop.url(f"/{kind}/{kind}.jpg") for kind in kinds]})


def outcome(report: pl.DataFrame) -> dict[str, tuple[str, str | None, str | None]]:
    return {item: (status, file, reason) for item, status, file, reason in report.select("item_id", "status", "file", "reason").iter_rows()}


def test_every_kind_of_answer(shop: Shop, tmp_path: Path) -> None:
    kinds = (
        "ok",
        "png",
        "busy",
        "redirect",
        "dropped",
        "gone",
        "forbidden",
        "loop",
        "half",
        "page",
        "empty",
        "pixel",
        "huge",
        "down",
        "truncated",
    )
    items = pl.concat(
        [table(shop, *kinds), pl.DataFrame({"item_id": ["bare"], "image_url": [None]}, schema_overrides={"image_url": pl.String})]
    )
    report = download_images(items, tmp_path, FAST)
    assert report["item_id"].to_list() == [*kinds, "bare"]
    found = outcome(report)
    for kind in ("ok", "busy", "redirect", "dropped"):
        assert found[kind] == ("downloaded", f"{kind}.jpg", None), kind
        assert (tmp_path / f"{kind}.jpg").read_bytes() == picture()
    assert found["png"] == ("downloaded", "png.png", None)
    expected = {
        "gone": ("missing", "HTTP 404"),
        "forbidden": ("missing", "HTTP 403"),
        "loop": ("missing", "too many redirects"),
        "bare": ("missing", "no URL"),
        "half": ("invalid", "not a readable image"),
        "page": ("invalid", "not a readable image"),
        "empty": ("invalid", "not a readable image"),
        "pixel": ("invalid", "1 × 1 pixels, a placeholder"),
        "huge": ("invalid", "larger than 0.2 MB"),
        "down": ("failed", "HTTP 500 (after 3 attempts)"),
        "truncated": ("failed", "ProtocolError"),
    }
    for kind, (status, reason) in expected.items():
        assert found[kind][:2] == (status, None), kind
        assert (found[kind][2] or "").startswith(reason), kind
    attempts = {"ok": 1, "gone": 1, "forbidden": 1, "page": 1, "half": 1, "huge": 1, "busy": 2, "dropped": 2, "down": 3, "truncated": 3}
    for kind, count in attempts.items():
        assert shop.count(f"/{kind}/{kind}.jpg") == count, kind
    assert {path.name for path in tmp_path.iterdir()} == {file for file in report["file"] if file} | {"report.parquet", "report.json"}
    assert json.loads((tmp_path / "report.json").read_text()) == summary(report)
    assert summary(report) == {"downloaded": 5, "cached": 0, "missing": 4, "invalid": 5, "failed": 2}
    assert pl.read_parquet(tmp_path / "report.parquet").equals(report)


def test_the_second_run_asks_only_for_what_failed(shop: Shop, tmp_path: Path) -> None:
    items = table(shop, "ok", "png", "redirect", "gone", "page", "down")
    download_images(items, tmp_path, FAST)
    shop.asked.clear()
    report = download_images(items, tmp_path, FAST)
    assert summary(report) == {"downloaded": 0, "cached": 3, "missing": 1, "invalid": 1, "failed": 1}
    assert {path for path, _ in shop.asked} == {"/down/down.jpg"}
    shop.asked.clear()
    assert summary(download_images(items.filter(pl.col("item_id") != "down"), tmp_path, FAST))["cached"] == 3
    assert not shop.asked
    (tmp_path / "report.parquet").unlink()  # without the memory of what is gone, the pictures still count
    download_images(items.filter(pl.col("item_id") != "down"), tmp_path, FAST)
    assert {path for path, _ in shop.asked} == {"/gone/gone.jpg", "/page/page.jpg"}


def test_a_damaged_picture_is_fetched_again(shop: Shop, tmp_path: Path) -> None:
    download_images(table(shop, "ok"), tmp_path, FAST)
    (tmp_path / "ok.jpg").write_bytes(picture()[:300])
    assert outcome(download_images(table(shop, "ok"), tmp_path, FAST))["ok"][0] == "downloaded"
    assert (tmp_path / "ok.jpg").read_bytes() == picture()


def test_a_new_url_replaces_the_picture(shop: Shop, tmp_path: Path) -> None:
    for kind, file in (("ok", "x.jpg"), ("png", "x.png"), ("gone", None), ("ok", "x.jpg")):
        report = download_images(pl.DataFrame({"item_id": ["x"], "image_url": [shop.url(f"/{kind}/1")]}), tmp_path, FAST)
        assert report["file"].to_list() == [file], kind
    assert [path.name for path in tmp_path.iterdir() if path.suffix in images.IMAGE_SUFFIXES] == ["x.jpg"]


def test_tables_share_a_folder(shop: Shop, tmp_path: Path) -> None:
    download_images(table(shop, "ok", "gone"), tmp_path, FAST)
    download_images(table(shop, "png"), tmp_path, FAST)
    shop.asked.clear()
    assert summary(download_images(table(shop, "gone", "png", "ok"), tmp_path, FAST)) == {
        "downloaded": 0,
        "cached": 2,
        "missing": 1,
        "invalid": 0,
        "failed": 0,
    }
    assert not shop.asked
    assert len(pl.read_parquet(tmp_path / "report.parquet")) == 3


def test_slow_servers_time_out(shop: Shop, tmp_path: Path) -> None:
    started = time.monotonic()
    found = outcome(download_images(table(shop, "slow", "trickle"), tmp_path, DownloadConfig(**{**vars(FAST), "deadline": 0.8})))
    assert found["slow"][0] == found["trickle"][0] == "failed"
    assert "ReadTimeout" in (found["slow"][2] or "")
    assert "not complete after 0.8 s" in (found["trickle"][2] or "")
    assert shop.count("/slow/slow.jpg") == 3
    assert time.monotonic() - started < 20


def test_nobody_listening(tmp_path: Path) -> None:
    server = Shop()
    url = server.url("/ok/1")
    server.server_close()
    found = outcome(download_images(pl.DataFrame({"item_id": ["x"], "image_url": [url]}), tmp_path, FAST))["x"]
    assert found[0] == "failed"
    assert "(after 3 attempts)" in (found[2] or "")


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_kept(shop: Shop, tmp_path: Path, as_date: bool) -> None:
    shop.retry_after = formatdate(time.time() + 2, usegmt=True) if as_date else "1"
    assert outcome(download_images(table(shop, "wait"), tmp_path, FAST))["wait"][0] == "downloaded"
    first, second = shop.times("/wait/wait.jpg")
    assert second - first > 0.7


def test_a_server_that_wants_too_long_a_wait_has_failed(shop: Shop, tmp_path: Path) -> None:
    shop.retry_after = "3600"
    found = outcome(download_images(table(shop, "wait"), tmp_path, FAST))["wait"]
    assert found == ("failed", None, "HTTP 429; the server asks to wait 3600 s")
    assert shop.count("/wait/wait.jpg") == 1


def test_waits_double(monkeypatch: pytest.MonkeyPatch, shop: Shop, tmp_path: Path) -> None:
    waits: list[float] = []
    monkeypatch.setattr(download._Downloader, "_sleep", lambda self, seconds: waits.append(seconds))
    monkeypatch.setattr(download.random, "random", lambda: 0.5)
    download_images(table(shop, "down"), tmp_path, DownloadConfig(retries=3, backoff=0.5, requests_per_second=0))
    assert [wait for wait in waits if wait > 0] == [0.5, 1.0, 2.0]


def test_requests_are_spaced(shop: Shop, tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": list("abcdef"), "image_url": [shop.url(f"/ok/{name}") for name in "abcdef"]})
    started = time.monotonic()
    download_images(items, tmp_path, DownloadConfig(**{**vars(FAST), "requests_per_second": 10.0}))
    assert time.monotonic() - started >= 0.5
    assert len(shop.asked) == 6


def test_pictures_are_shrunken_upright(shop: Shop, tmp_path: Path) -> None:
    report = download_images(table(shop, "large", "transparent", "ok"), tmp_path, DownloadConfig(**{**vars(FAST), "longest_side": 64}))
    assert report["file"].to_list() == ["large.jpg", "transparent.png", "ok.jpg"]
    sizes = [Image.open(tmp_path / file).size for file in report["file"]]
    assert sizes == [(48, 64), (64, 48), (40, 20)]
    assert Image.open(tmp_path / "transparent.png").mode == "RGBA"
    assert (tmp_path / "ok.jpg").read_bytes() == picture()


def test_only_http_urls_are_asked_for(shop: Shop, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(picture())
    urls = [
        secret.as_uri(),
        str(secret),
        "ftp://127.0.0.1/x.jpg",
        "http://",
        "http://[::1",
        "",
        "javascript:alert(1)",
        shop.url("/scheme/x"),
    ]
    items = pl.DataFrame({"item_id": [f"i{row}" for row in range(len(urls))], "image_url": urls})
    report = download_images(items, tmp_path / "images", FAST)
    assert report["status"].unique().to_list() == ["invalid"]
    assert report["file"].null_count() == len(urls)
    assert len(shop.asked) == 1


def test_too_many_pixels_are_not_decoded(shop: Shop, tmp_path: Path) -> None:
    report = download_images(table(shop, "large"), tmp_path, DownloadConfig(**{**vars(FAST), "max_megapixels": 0.1}))
    assert report["reason"].to_list() == ["640 × 480 pixels, more than 0.1 megapixels"]


def test_an_interrupted_run_keeps_what_it_has(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = table(shop, "gone", "ok", "slow")
    one = DownloadConfig(**{**vars(FAST), "workers": 1, "timeout": 5.0})
    run = download._Downloader.run

    def interrupted(self: download._Downloader, rows: list[tuple[str, str | None, bool]]) -> Iterator[tuple[str, object]]:
        results = run(self, rows)
        yield next(results)
        yield next(results)
        shop.released.set()
        results.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(download._Downloader, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download_images(items, tmp_path, one)
    monkeypatch.undo()
    assert pl.read_parquet(tmp_path / "report.parquet")["status"].to_list() == ["missing", "downloaded"]
    shop.asked.clear()
    assert summary(download_images(items.head(2), tmp_path, FAST))["cached"] == 1
    assert not shop.asked


@pytest.mark.parametrize("item_id", ["B001", "ünder-x_1.2", "a/b", "..", ".hidden", "a:b*c?", "x" * 300, "ü" * 300, "a%2Fb"])
def test_file_names_are_safe_and_found_again(item_id: str, shop: Shop, tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": [item_id, "other"], "image_url": [shop.url("/ok/1"), shop.url("/ok/2")]})
    files = download_images(items, tmp_path / "images", FAST)["file"]
    assert (tmp_path / "images" / files[0]).read_bytes() == picture()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
    assert summary(download_images(items, tmp_path / "images", FAST))["cached"] == 2


def test_names_stay_apart() -> None:
    ids = ["a/b", "a%2Fb", "a\\b", "x" * 300, "x" * 301, ".a", "%2Ea"]
    assert len({file_stem(item_id) for item_id in ids}) == len(ids)
    assert file_stem("B000142FVW") == "B000142FVW"


def test_many_at_once(shop: Shop, tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": [f"i{row}" for row in range(200)], "image_url": [shop.url(f"/ok/{row}") for row in range(200)]})
    assert summary(download_images(items, tmp_path, FAST))["downloaded"] == 200
    assert sorted(int(path.split("/")[2]) for path, _ in shop.asked) == list(range(200))


def test_a_table_of_any_format(shop: Shop, tmp_path: Path) -> None:
    pl.DataFrame({"item_id": [7, 8], "picture": [shop.url("/ok/1"), " "]}).write_csv(tmp_path / "items.csv")
    assert download_table(str(tmp_path / "items.csv"), tmp_path / "images", "picture", FAST)["downloaded"] == 1
    assert (tmp_path / "images" / "7.jpg").is_file()
    with pytest.raises(CEMGError, match=r"column image_url is missing \(present: item_id, picture\)"):
        download_table(str(tmp_path / "items.csv"), tmp_path / "images", config=FAST)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"item_id": ["a"]}, "column image_url is missing"),
        ({"item_id": ["a", None], "image_url": ["x", "y"]}, "column item_id, row 2: the value is empty"),
        ({"item_id": ["a", "a"], "image_url": ["x", "y"]}, "'a' stands there more than once"),
    ],
)
def test_bad_tables(items: dict[str, list[str | None]], message: str, tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match=message):
        download_images(pl.DataFrame(items), tmp_path)


@pytest.mark.parametrize("change", [{"workers": 0}, {"timeout": -1.0}, {"retries": -1}, {"requests_per_second": -1.0}, {"longest_side": 2}])
def test_bad_settings(change: dict[str, float]) -> None:
    with pytest.raises(CEMGError, match=next(iter(change))):
        DownloadConfig(**change)  # type: ignore[arg-type]


def test_a_picture_that_cannot_be_written_is_said(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / ".ok.jpg.partial").mkdir()
    with pytest.raises(CEMGError, match=r"ok\.jpg: cannot be written"):
        download_images(table(shop, "ok"), tmp_path, FAST)


def test_folders_that_do_not_do(tmp_path: Path, shop: Shop) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CEMGError, match="cannot be made"):
        download_images(table(shop, "ok"), tmp_path / "file" / "images", FAST)
    (tmp_path / "report.parquet").write_text("x")
    with pytest.raises(CEMGError, match="not a report of downloads"):
        download_images(table(shop, "ok"), tmp_path, FAST)
