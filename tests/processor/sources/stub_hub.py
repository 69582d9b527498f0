"""A stand-in for the Hub on loopback: serves data sets from a folder by the few calls that `datasets` makes."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "89abcdef0123456789abcdef0123456789abcdef"
COMMITS = {"main": COMMIT, COMMIT: COMMIT, "v1": OLDER, OLDER: OLDER}


class Handler(BaseHTTPRequestHandler):
    """Answers for `root/OWNER/NAME/FILES`, and for the tag v1 of `root/OWNER/NAME@v1/FILES`; `asked` collects paths."""

    root: Path
    asked: list[str]

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer()

    def do_POST(self):
        size = int(self.headers.get("Content-Length", 0))
        raw = self.rfile.read(size).decode()
        try:
            wanted = json.loads(raw).get("paths", [])
        except json.JSONDecodeError:
            from urllib.parse import parse_qs

            wanted = parse_qs(raw).get("paths", [])
        self.answer(wanted=[wanted] if isinstance(wanted, str) else wanted)

    def answer(self, body=True, wanted=None):
        path = unquote(urlsplit(self.path).path)
        self.asked.append(path)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "datasets"] and len(parts) >= 4:
            revision = parts[5] if len(parts) > 5 else "main"
            self.api("/".join(parts[2:4]), COMMITS.get(revision), parts[4:], wanted)
        elif parts[0] == "datasets" and len(parts) > 5 and parts[3] == "resolve":
            commit = COMMITS.get(parts[4])
            self.file(self.folder("/".join(parts[1:3]), commit) / "/".join(parts[5:]), commit, body)
        else:
            self.missing()

    def folder(self, name, commit):
        return self.root / (f"{name}@v1" if commit == OLDER else name)

    def api(self, name, commit, rest, wanted):
        folder = self.folder(name, commit)
        if commit is None or not folder.is_dir():
            return self.missing("RepoNotFound" if commit else "RevisionNotFound")
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": str(file.relative_to(folder))} for file in files]
            return self.send({"id": name, "sha": commit, "private": False, "tags": [], "siblings": siblings})
        entries = {str(file.relative_to(folder)): self.entry(file, folder) for file in files}
        folders = {parent for file in entries for parent in map(str, Path(file).parents) if parent != "."}
        entries.update({path: {"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders})
        if rest[0] == "paths-info":
            return self.send([entries[path] for path in wanted if path in entries])
        inside = "/".join(rest[2:])
        return self.send([entry for path, entry in entries.items() if not inside or path.startswith(inside + "/")])

    @staticmethod
    def entry(file, folder):
        data = file.read_bytes()
        return {
            "type": "file",
            "path": str(file.relative_to(folder)),
            "oid": hashlib.sha1(data).hexdigest(),
            "size": len(data),
        }

    def file(self, path, commit, body):
        if not path.is_file():
            return self.missing("EntryNotFound")
        data = path.read_bytes()
        start, end = 0, len(data)
        if wanted := self.headers.get("Range"):
            first, last = wanted.removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last) + 1, len(data)) if last else len(data)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(end - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if body:
            self.wfile.write(data[start:end])

    def send(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def missing(self, code="RepoNotFound"):
        data = b'{"error": "not found"}'
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def serve(root: Path):
    """Serve the data sets under `root`; yields the address and the list of paths asked for."""
    asked: list[str] = []
    handler = type("BoundHandler", (Handler,), {"root": root, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
