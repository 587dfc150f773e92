"""One file over HTTP: resumed where it stopped, verified, and never waited for without end."""

import hashlib
import http.client
import os
import queue
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

# Longest wait for an answer, name lookup included, and for the next bytes. Both may come to pass in one download, and
# a user who has no network hears of it within half a minute.
TIMEOUT = 12.0


class DownloadError(OSError):
    """A file could not be had; the message says which and why."""


def download(url: str, path: Path, *, sha256: str, timeout: float = TIMEOUT) -> None:
    """Fetches `url` to `path`, unless it lies there already.

    What an interrupted call fetched is kept beside it as `.part`, and the next call goes on from there.

    Raises:
      DownloadError: no connection, a silence of `timeout` seconds, an early end, or a wrong checksum.
    """
    if path.exists() and _sha256(path) == sha256:
        return
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        resumed = part.exists()
        _fetch(url, part, timeout)
        if resumed and _sha256(part) != sha256:  # pieces of two files, or a damaged first piece
            part.unlink()
            _fetch(url, part, timeout)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DownloadError(f"{url}: {str(reason) or type(reason).__name__}") from error
    if _sha256(part) != sha256:
        part.unlink()
        raise DownloadError(f"{url}: what arrived has another checksum than {sha256}, and was deleted")
    os.replace(part, path)


def _fetch(url: str, part: Path, timeout: float) -> None:
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    try:
        response = _open(url, have, timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416:  # the part is as long as the file, or longer: start again
            raise
        part.unlink()
        have, response = 0, _open(url, 0, timeout)
    with response, open(part, "ab") as file:
        if response.status != 206:
            have = 0
            file.truncate(0)
        total = have + int(response.headers.get("Content-Length", 0))
        name = url.rsplit("/", 1)[-1]
        print(f"Downloading {url}" + (f", from byte {have:,} on" if have else ""), flush=True)
        with tqdm(
            desc=name, initial=have, total=total or None, unit="B", unit_scale=True, disable=not sys.stderr.isatty()
        ) as bar:
            while chunk := response.read(1 << 16):
                have += file.write(chunk)
                bar.update(len(chunk))
    if have < total:
        raise DownloadError(
            f"the connection ended after {have:,} of {total:,} bytes; the next start goes on from there"
        )


def _open(url: str, offset: int, timeout: float) -> http.client.HTTPResponse:
    """Opens the URL within `timeout` seconds, name lookup included, which urllib's own timeout leaves out."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
    answers: queue.Queue = queue.Queue()

    def work():
        try:
            answers.put(urllib.request.urlopen(request, timeout=timeout))
        except Exception as error:  # handed to the caller's thread
            answers.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        answer = answers.get(timeout=timeout)
    except queue.Empty:
        raise TimeoutError(f"no answer within {timeout:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
