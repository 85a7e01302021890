"""The object store that large bodies wait in: a shared folder, S3 and what speaks it, Google's, or Azure's.

    file:///shared/folder
    s3://BUCKET/prefix        AWS_…, and AWS_ENDPOINT_URL for what only speaks S3, such as Oracle's
    gs://BUCKET/prefix        GOOGLE_…
    az://CONTAINER/prefix     AZURE_STORAGE_…

Credentials come from the environment or the machine's identity, as `obstore` finds them.
"""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

__all__ = ["NoPlace", "PayloadMissing", "PayloadStore", "StoreUnavailable", "StoredPayload"]

SCHEMES = ("file", "s3", "gs", "az")
_CONNECT_SECONDS = 5
_ANSWER_SECONDS = 30
_RETRIES = 3


class StoreUnavailable(Exception):
    """The object store can't be reached, or refuses us. Try again later."""


class NoPlace(Exception):
    """Nobody has a store that it could go to."""


class PayloadMissing(Exception):
    """There is nothing at that place."""


class StoredPayload(NamedTuple):
    path: str
    age_seconds: float


class PayloadStore:
    """Bodies by path. Raises ValueError for a URL that names no store; nothing is connected yet.

    A shared folder is made where it isn't there, if this side is the one that `makes_folder`; else it must be there.
    """

    def __init__(self, url: str, *, makes_folder: bool = True) -> None:
        import obstore  # noqa: PLC0415 (whoever has no store never pays for loading it)
        from obstore import store  # noqa: PLC0415 (likewise)

        scheme = urlsplit(url).scheme
        if scheme not in SCHEMES:
            raise ValueError(f"the payloads' URL begins with {scheme!r}; it must be one of {', '.join(SCHEMES)}")
        self._obstore = obstore
        self._errors = (obstore.exceptions.BaseError, OSError)
        self._folder = Path(unquote(urlsplit(url).path)) if scheme == "file" else None
        if self._folder and not makes_folder and not self._folder.is_dir():
            raise ValueError(f"there is no folder {self._folder}: it must be the one that the broker's processes have")
        settings: dict[str, Any] = {"mkdir": makes_folder} if scheme == "file" else _REMOTE
        try:
            self._store = store.from_url(url, **settings)
        except self._errors as error:
            raise ValueError(f"the payloads' URL can't be used: {_first_line(error)}") from None
        self.signs = scheme != "file"

    def check(self) -> None:
        """Raises StoreUnavailable unless a body can be stored, read again and deleted."""
        path, data = f"checks/{secrets.token_hex(8)}", secrets.token_bytes(8)
        self.put(path, data)
        try:
            if self.get(path, len(data)) != data:
                raise StoreUnavailable("what is read is not what was stored")
        except PayloadMissing as error:
            raise StoreUnavailable(str(error)) from None
        finally:
            self.delete([path])

    def put(self, path: str, data: bytes) -> None:
        """Returns when the store has it. Raises StoreUnavailable."""
        try:
            self._obstore.put(self._store, path, data)
        except self._errors as error:
            raise StoreUnavailable(f"the payload was not stored: {_first_line(error)}") from error

    def get(self, path: str, size_max: int) -> bytes:
        """At most so many bytes of it. Raises PayloadMissing or StoreUnavailable."""
        try:
            found = self._obstore.get(self._store, path)
            if found.meta["size"] > size_max:
                raise PayloadMissing(f"{path} has {found.meta['size']:,} bytes where {size_max:,} were announced")
            return bytes(found.bytes())
        except FileNotFoundError:
            raise PayloadMissing(f"{path} is not in the store") from None
        except self._errors as error:
            raise StoreUnavailable(f"the payload can't be read: {_first_line(error)}") from error

    def stored(self, folder: str, now: dt.datetime) -> Iterator[StoredPayload]:
        """Everything below a folder. Raises StoreUnavailable."""
        try:
            for found in self._obstore.list(self._store, folder):
                for each in found:
                    yield StoredPayload(each["path"], (now - each["last_modified"]).total_seconds())
        except self._errors as error:
            raise StoreUnavailable(f"the payloads can't be listed: {_first_line(error)}") from error

    def delete(self, paths: Sequence[str]) -> None:
        """Harmless for what isn't there. Raises StoreUnavailable."""
        try:
            if self.signs:
                self._obstore.delete(self._store, paths)
                return
            for path in paths:
                with suppress(FileNotFoundError):
                    self._obstore.delete(self._store, path)
        except self._errors as error:
            raise StoreUnavailable(f"payloads can't be deleted: {_first_line(error)}") from error

    def sign(self, method: str, path: str, seconds: int) -> str:
        """A URL that is good for this one request for so long; empty for a shared folder, which needs none."""
        if not self.signs:
            return ""
        try:
            return str(self._obstore.sign(self._store, method, path, dt.timedelta(seconds=seconds)))  # type: ignore[call-overload]  # only stores that sign get here
        except (*self._errors, ValueError) as error:
            raise StoreUnavailable(f"the store's key can't sign: {_first_line(error)}") from error


_REMOTE: dict[str, Any] = {
    "client_options": {
        "allow_http": True,  # only an endpoint that was set to http uses it
        "connect_timeout": dt.timedelta(seconds=_CONNECT_SECONDS),
        "timeout": dt.timedelta(seconds=_ANSWER_SECONDS),
    },
    "retry_config": {"max_retries": _RETRIES, "retry_timeout": dt.timedelta(seconds=_ANSWER_SECONDS)},
}


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
