"""Pictures of items, downloaded by URL: each once, checked, atomically written, politely asked for, and with a report of what is missing.

A folder of downloads holds `<item_id>.jpg`, `.png`, …, `report.parquet` (what is known of every item ever asked for) and `report.json` (the
counts of the last run). Run again, pictures that are there are not asked for, nor are URLs that gave a final answer (gone, not an image);
what failed for now is. Requests go to the URLs of the table and where these redirect to, nowhere else.
"""

from __future__ import annotations

import hashlib
import logging
import random
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import polars as pl
import urllib3
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from ..artefacts import write_json
from ..errors import CEMGError
from . import parsing
from .images import IMAGE_SUFFIXES, UNREADABLE
from .readers import read_table

logger = logging.getLogger(__name__)

REPORT_FILE = "report.parquet"
COUNTS_FILE = "report.json"
STATUSES = ("downloaded", "cached", "missing", "invalid", "failed")
"""missing: no URL, or the server says there is no such picture; invalid: what came is no usable picture; failed: no answer, for now."""
FINAL = ("missing", "invalid")
REPORT_SCHEMA = {"item_id": pl.String, "image_url": pl.String, "status": pl.String, "file": pl.String, "reason": pl.String}

_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}
"""Formats that are decoded, no others: some of Pillow's start programs."""
_NOT_IN_NAMES = re.compile(r'[/\\:*?"<>|%\x00-\x1f]|^\.')
_LONGEST_NAME = 120
_RETRIED = frozenset({408, 425, 429, *range(500, 600)})
_CHUNK = 1 << 16


@dataclass(frozen=True)
class DownloadConfig:
    """How pictures are asked for, and which are taken."""

    workers: int = field(default=8, metadata={"help": "Downloads at the same time."})
    requests_per_second: float = field(default=20.0, metadata={"help": "Requests per second and host; 0: no limit."})
    timeout: float = field(default=15.0, metadata={"help": "Seconds to wait for a connection, and for the next bytes."})
    deadline: float = field(default=60.0, metadata={"help": "Seconds that one download may take."})
    retries: int = field(default=4, metadata={"help": "Further attempts after a lost connection, a time-out, 429 or 5xx."})
    backoff: float = field(default=1.0, metadata={"help": "Seconds before the second attempt, doubled with each one that follows."})
    longest_wait: float = field(
        default=120.0, metadata={"help": "Longest wait for a server that names one (Retry-After); beyond it: failed."}
    )
    max_megabytes: float = field(default=20.0, metadata={"help": "Largest download."})
    max_megapixels: float = field(default=60.0, metadata={"help": "Largest picture that is decoded."})
    min_side: int = field(default=8, metadata={"help": "Smallest side in pixels; below it is a placeholder, no picture."})
    longest_side: int | None = field(default=None, metadata={"help": "Shrink pictures to this many pixels; null: keep the file as it is."})
    user_agent: str = field(default="cemg-hf (research; item images)", metadata={"help": "What the program calls itself."})

    def __post_init__(self) -> None:
        positive = ("workers", "timeout", "deadline", "max_megabytes", "max_megapixels", "min_side")
        for name in positive:
            if getattr(self, name) <= 0:
                raise CEMGError(f"{name}: {getattr(self, name)} is not positive; give more than 0")
        for name in ("requests_per_second", "retries", "backoff", "longest_wait"):
            if getattr(self, name) < 0:
                raise CEMGError(f"{name}: {getattr(self, name)} is negative; give 0 or more")
        if self.longest_side is not None and self.longest_side < self.min_side:
            raise CEMGError(f"longest_side: {self.longest_side} is below min_side ({self.min_side}); give more, or leave it out")


class _Outcome(NamedTuple):
    status: str
    file: str | None
    reason: str | None


class _Failure(Exception):
    """Why there is no picture; `status` is one of STATUSES."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class _Again(Exception):
    """Worth another attempt, after `wait` seconds where the server named them."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


def download_images(items: pl.DataFrame, folder: str | Path, config: DownloadConfig | None = None) -> pl.DataFrame:
    """Download what is not yet in `folder`; interrupted, it keeps what it has, and the next call goes on from there.

    Args:
        items: item_id and image_url (null: no picture), one row per item.

    Returns:
        The items in their order, with status (one of STATUSES), file (name in `folder`, null without a picture) and reason (null with one).

    Raises:
        CEMGError: a column is missing, items are repeated, or `folder` cannot be written.
    """
    config = config or DownloadConfig()
    folder = Path(folder)
    _check(items)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CEMGError(f"{folder}: cannot be made ({error.strerror}); name another folder for the images") from error
    wanted = items.select(pl.col("item_id", "image_url").cast(pl.String))
    before = _read_report(folder)
    # The same URL that gave a final answer before is not asked again; a new URL makes the old picture out of date.
    known = wanted.join(before.rename({"image_url": "old_url"}), on="item_id", how="left", maintain_order="left")
    settled = pl.col("status").is_in(FINAL) & pl.col("image_url").eq_missing(pl.col("old_url"))
    known = known.with_columns(
        settled=settled.fill_null(False),
        stale=(pl.col("status").is_not_null() & pl.col("image_url").ne_missing(pl.col("old_url"))).fill_null(False),
    )
    outcomes = {
        item_id: _Outcome(status, None, reason)
        for item_id, status, reason in known.filter("settled").select("item_id", "status", "reason").iter_rows()
    }
    downloader = _Downloader(folder, config)
    open_rows = known.filter(~pl.col("settled")).select("item_id", "image_url", "stale")
    try:
        with tqdm(total=len(known), initial=len(outcomes), desc="images", unit="image") as progress:
            for item_id, outcome in downloader.run(list(open_rows.iter_rows())):
                outcomes[item_id] = outcome
                progress.update()
    finally:
        report = _report(wanted, outcomes)
        _write_report(folder, before, report)
    counts = summary(report)
    logger.info("%s: %s", folder, ", ".join(f"{count:,} {status}" for status, count in counts.items() if count))
    if counts["failed"]:
        logger.warning("%s: %d pictures failed for now; run the same command again to ask for them", folder, counts["failed"])
    return report


def download_table(items: str, folder: str | Path, url_column: str = "image_url", config: DownloadConfig | None = None) -> dict[str, int]:
    """`download_images` for a table in any format that `read_table` reads; returns its `summary`.

    Raises:
        CEMGError: as `read_table` and `download_images` do.
    """
    table = read_table(items, "items")
    missing = [name for name in ("item_id", url_column) if name not in table.columns]
    if missing:
        raise CEMGError(f"{items}: column {missing[0]} is missing (present: {', '.join(table.columns)}); name the URLs with --url-column")
    ids = parsing.identifiers(table["item_id"])
    return summary(download_images(pl.DataFrame({"item_id": ids, "image_url": parsing.texts(table[url_column])}), folder, config))


def summary(report: pl.DataFrame) -> dict[str, int]:
    """How many items there are of each status."""
    return {status: int((report["status"] == status).sum()) for status in STATUSES}


def file_stem(item_id: str) -> str:
    """Name of an item's file without suffix: the id, with what file systems do not allow percent-encoded, and cut where it is too long."""
    name = _NOT_IN_NAMES.sub(lambda found: "%2E" if found[0] == "." else quote(found[0], safe=""), item_id)
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    return f"{name.encode()[:_LONGEST_NAME].decode(errors='ignore')}-{hashlib.sha256(item_id.encode()).hexdigest()[:16]}"


class _Pace:
    """When the next request to one host may go out."""

    def __init__(self, per_second: float) -> None:
        self._interval = 1 / per_second if per_second else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def delay(self) -> float:
        """Take the next slot; seconds until it comes."""
        with self._lock:
            now = time.monotonic()
            slot = max(now, self._next)
            self._next = slot + self._interval
            return slot - now

    def hold(self, seconds: float) -> None:
        """No further slot before `seconds` are over: the host asked for it."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class _Downloader:
    def __init__(self, folder: Path, config: DownloadConfig) -> None:
        self.folder, self.config = folder, config
        self._files = {
            path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."
        }
        self._stop = threading.Event()
        self._paces: defaultdict[str, _Pace] = defaultdict(lambda: _Pace(config.requests_per_second))
        self._pools = _pools(config)

    def run(self, rows: list[tuple[str, str | None, bool]]) -> Iterator[tuple[str, _Outcome]]:
        """Item id and outcome, as they come; a bounded number of rows is in the air."""
        for host in {_host(url) for _, url, _ in rows if url is not None}:
            self._paces[host or ""]  # made here: threads only look them up
        pool = ThreadPoolExecutor(self.config.workers)
        running: dict[Future[_Outcome], str] = {}
        try:
            for item_id, url, stale in rows:
                if len(running) >= 4 * self.config.workers:
                    yield from self._finished(running)
                running[pool.submit(self._one, item_id, url, stale)] = item_id
            while running:
                yield from self._finished(running)
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)
            for manager in self._pools.values():
                manager.clear()

    def _finished(self, running: dict[Future[_Outcome], str]) -> list[tuple[str, _Outcome]]:
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        return [(running.pop(future), future.result()) for future in done]

    def _one(self, item_id: str, url: str | None, stale: bool) -> _Outcome:
        old = self._files.get(file_stem(item_id))
        try:
            if old is not None and not stale and self._is_valid(old):
                return _Outcome("cached", old.name, None)
            if url is None:
                raise _Failure("missing", "no URL")
            suffix, content = _checked(self._fetch(url), self.config)
        except _Failure as failure:
            return _Outcome(failure.status, None, failure.reason)
        path = self.folder / f"{file_stem(item_id)}{suffix}"
        scratch = path.with_name(f".{path.name}.partial")
        try:
            scratch.write_bytes(content)
            scratch.replace(path)
        except OSError as error:
            raise CEMGError(f"{path}: cannot be written ({error.strerror}); make room or name another folder, then run again") from error
        if old is not None and old != path:
            old.unlink(missing_ok=True)
        return _Outcome("downloaded", path.name, None)

    def _is_valid(self, path: Path) -> bool:
        try:
            with Image.open(path, formats=list(_SUFFIXES)) as image:
                image.load()
        except UNREADABLE:
            return False
        return True

    def _fetch(self, url: str) -> bytes:
        host = _host(url)
        if host is None:
            raise _Failure("invalid", f"not an http or https URL: {url[:100]}")
        pace = self._paces[host]
        for attempt in range(self.config.retries + 1):
            self._sleep(pace.delay())
            try:
                return self._attempt(url)
            except _Again as again:
                reason = again.reason
                if again.wait is not None and again.wait > self.config.longest_wait:
                    raise _Failure("failed", f"{reason}; the server asks to wait {again.wait:.0f} s") from again
                if again.wait is not None:
                    pace.hold(again.wait)
                elif attempt < self.config.retries:
                    # Spread over half to one and a half times, so that workers that failed together do not come back together.
                    self._sleep(self.config.backoff * 2**attempt * (0.5 + random.random()))
        raise _Failure("failed", f"{reason} (after {self.config.retries + 1} attempts)")

    def _attempt(self, url: str) -> bytes:
        manager = self._pools[_proxy_key(url)]
        limit = int(self.config.max_megabytes * 1e6)
        redirects_only = urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=5)
        started = time.monotonic()
        try:
            response = manager.request("GET", url, preload_content=False, retries=redirects_only)
            try:
                if response.status in _RETRIED:
                    raise _Again(f"HTTP {response.status}", _retry_after(response))
                if response.status != 200:
                    raise _Failure("missing", f"HTTP {response.status}")
                content = bytearray()
                # read1 returns what has come: a server that trickles cannot stretch one read beyond the deadline.
                while chunk := response.read1(_CHUNK):
                    content += chunk
                    if len(content) > limit:
                        raise _Failure("invalid", f"larger than {self.config.max_megabytes:g} MB")
                    if time.monotonic() - started > self.config.deadline or self._stop.is_set():
                        raise _Again(f"not complete after {self.config.deadline:g} s")
                return bytes(content)
            finally:
                response.close()
                response.release_conn()  # an abandoned body keeps its place in the pool otherwise
        except urllib3.exceptions.LocationValueError as error:
            raise _Failure("invalid", f"not a URL that can be asked for: {error}") from error
        except urllib3.exceptions.MaxRetryError as error:
            if isinstance(error.reason, urllib3.exceptions.ResponseError):
                raise _Failure("missing", "too many redirects") from error
            raise _Again(_named(error.reason or error)) from error
        except urllib3.exceptions.HTTPError as error:
            raise _Again(_named(error)) from error

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise _Failure("failed", "interrupted")


def _checked(content: bytes, config: DownloadConfig) -> tuple[str, bytes]:
    """Suffix and bytes of a picture to write: those that came, or the shrunken picture."""
    try:
        with Image.open(BytesIO(content), formats=list(_SUFFIXES)) as image:
            width, height = image.size
            if min(width, height) < config.min_side:
                raise _Failure("invalid", f"{width} × {height} pixels, a placeholder")
            if width * height > config.max_megapixels * 1e6:
                raise _Failure("invalid", f"{width} × {height} pixels, more than {config.max_megapixels:g} megapixels")
            image.load()
            if config.longest_side is None or max(width, height) <= config.longest_side:
                return _SUFFIXES[image.format or ""], content
            return _shrunken(image, config.longest_side)
    except UNREADABLE as error:
        raise _Failure("invalid", f"not a readable image: {_named(error)}") from error


def _shrunken(image: Image.Image, longest_side: int) -> tuple[str, bytes]:
    upright = ImageOps.exif_transpose(image)
    transparent = upright.has_transparency_data
    small = upright.convert("RGBA" if transparent else "RGB")
    small.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    if transparent:
        small.save(buffer, "PNG")
        return ".png", buffer.getvalue()
    small.save(buffer, "JPEG", quality=90)
    return ".jpg", buffer.getvalue()


def _pools(config: DownloadConfig) -> dict[str, urllib3.PoolManager]:
    """A connection pool without a proxy ("") and one for each proxy that the environment names."""
    options: dict[str, Any] = {
        "timeout": urllib3.Timeout(connect=config.timeout, read=config.timeout),
        "maxsize": config.workers,
        "headers": {"User-Agent": config.user_agent, "Accept": "image/*", "Accept-Encoding": "identity"},
    }
    proxies = {proxy for scheme, proxy in getproxies().items() if scheme in ("http", "https")}
    return {"": urllib3.PoolManager(**options), **{proxy: urllib3.ProxyManager(proxy, **options) for proxy in proxies}}


def _proxy_key(url: str) -> str:
    parts = urlsplit(url)
    return "" if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme.lower(), "")


def _host(url: str) -> str | None:
    """Host of an http or https URL, else None."""
    try:
        parts = urlsplit(url)
        return parts.netloc if parts.scheme.lower() in ("http", "https") and parts.hostname else None
    except ValueError:
        return None


def _retry_after(response: urllib3.BaseHTTPResponse) -> float | None:
    """Seconds that the server asks to wait; None where it does not say, or not legibly."""
    try:
        return urllib3.Retry().get_retry_after(response)
    except urllib3.exceptions.InvalidHeader:
        return None


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _check(items: pl.DataFrame) -> None:
    missing = [name for name in ("item_id", "image_url") if name not in items.columns]
    if missing:
        raise CEMGError(f"items: column {missing[0]} is missing (present: {', '.join(items.columns)}); it names the pictures to download")
    if items["item_id"].null_count():
        row = items.with_row_index(offset=1).filter(pl.col("item_id").is_null())["index"][0]
        raise CEMGError(f"items: column item_id, row {row}: the value is empty; correct or remove the row")
    if items["item_id"].n_unique() < len(items):
        repeated = items.filter(pl.col("item_id").is_duplicated())["item_id"][0]
        raise CEMGError(f"items: column item_id: {repeated!r} stands there more than once; keep one row per item")


def _report(wanted: pl.DataFrame, outcomes: dict[str, _Outcome]) -> pl.DataFrame:
    """Those of the wanted items that have an outcome, all of them unless interrupted."""
    found = pl.DataFrame(
        [(item_id, *outcome) for item_id, outcome in outcomes.items()],
        schema={name: dtype for name, dtype in REPORT_SCHEMA.items() if name != "image_url"},
        orient="row",
    )
    return wanted.join(found, on="item_id", how="inner", maintain_order="left").select(list(REPORT_SCHEMA))


def _read_report(folder: Path) -> pl.DataFrame:
    path = folder / REPORT_FILE
    if not path.is_file():
        return pl.DataFrame(schema=REPORT_SCHEMA)
    try:
        return pl.read_parquet(path, columns=list(REPORT_SCHEMA))
    except pl.exceptions.PolarsError as error:
        raise CEMGError(f"{path}: not a report of downloads; name another folder for the images, or remove that file") from error


def _write_report(folder: Path, before: pl.DataFrame, report: pl.DataFrame) -> None:
    """Keeps what earlier runs found out about other items: several tables may share a folder."""
    others = before.join(report.select("item_id"), on="item_id", how="anti", maintain_order="left")
    scratch = folder / f".{REPORT_FILE}.partial"
    pl.concat([report, others]).write_parquet(scratch)
    scratch.replace(folder / REPORT_FILE)
    write_json(folder / COUNTS_FILE, summary(report))
