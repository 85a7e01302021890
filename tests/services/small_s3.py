"""As much of S3 as the claim check asks for: put, get, list and delete, and URLs whose signatures are verified."""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, urlsplit

__all__ = ["SmallS3"]

KEY_ID, KEY, REGION = "small", "secret", "here-1"


class SmallS3:
    """A server in threads of the test; `objects` by path, `asked` the requests as (method, path, signed by URL)."""

    def __init__(self):
        self.objects = {}
        self.asked = []
        self.failures = 0  # so many requests are answered with 503
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.store = self
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def environment(self):
        """What whoever has the key is told."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": KEY,
            "AWS_REGION": REGION,
            "AWS_ALLOW_HTTP": "true",
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_any(self):
        store, url = self.server.store, urlsplit(self.path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        store.asked.append((self.command, url.path, "X-Amz-Signature" in query))
        if store.failures:
            store.failures -= 1
            self.answer(503)
        elif not self.allowed(url.path, query):
            self.answer(403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
        else:
            self.carry_out(store, url.path, query, body)

    def carry_out(self, store, path, query, body):
        match self.command:
            case "PUT":
                store.objects[path] = (body, datetime.now(UTC))
                self.answer(200, ETag='"x"')
            case "POST" if "delete" in query:
                keys = re.findall("<Key>([^<]*)</Key>", body.decode())
                for key in keys:
                    store.objects.pop(f"{path}/{key}", None)
                gone = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
                self.answer(200, f"<DeleteResult>{gone}</DeleteResult>".encode())
            case _ if "list-type" in query:
                self.answer(200, _listed(store, path, query.get("prefix", "")))
            case _ if path in store.objects:
                body, stored = store.objects[path]
                self.answer(200, body, ETag='"x"', Last_Modified=format_datetime(stored, usegmt=True))
            case _:
                self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def allowed(self, path, query):
        if "X-Amz-Signature" not in query:
            return KEY_ID in self.headers.get("Authorization", "")
        moment = datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if datetime.now(UTC) > moment + timedelta(seconds=int(query["X-Amz-Expires"])):
            return False
        given = query.pop("X-Amz-Signature")
        return hmac.compare_digest(given, _signature(self.command, path, query, self.headers["Host"]))

    do_PUT = do_GET = do_HEAD = do_POST = handle_any  # noqa: N815 (the server looks for these names)


def _listed(store, bucket, prefix):
    found = []
    for path, (body, stored) in store.objects.items():
        key = path.removeprefix(f"{bucket.rstrip('/')}/")
        if key.startswith(prefix):
            when = stored.strftime("%Y-%m-%dT%H:%M:%S.000Z")
            found.append(
                f"<Contents><Key>{key}</Key><LastModified>{when}</LastModified><Size>{len(body)}</Size></Contents>"
            )
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(found)}</ListBucketResult>".encode()


def _signature(method, path, query, host):
    """Signature Version 4 of a URL: https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html."""
    words = "&".join(f"{quote(name, safe='-_.~')}={quote(query[name], safe='-_.~')}" for name in sorted(query))
    request = f"{method}\n{path}\n{words}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
    scope = query["X-Amz-Credential"].partition("/")[2]
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{query['X-Amz-Date']}\n{scope}\n{digest}"
    key = f"AWS4{KEY}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
