"""A local stand-in of the Hugging Face Hub's HTTP API for uploads."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HubServer(ThreadingHTTPServer):
    """Keeps what is uploaded.

    Attributes:
      files: contents of the committed files by path.
      requests: method and path of every request.
      token: the token of the last request.
      refuses: answer every request with status 401.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.blobs = {}, [], {}
        self.token, self.refuses = None, False

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of `create_repo` and `upload_folder`."""

    def log_message(self, *args):
        pass

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def record(self):
        self.server.requests.append(f"{self.command} {self.path}")
        self.server.token = self.headers.get("Authorization") or self.server.token

    def do_GET(self):
        self.record()
        if self.server.refuses:
            return self.answer({"error": "Invalid username or password."}, 401)
        if "/api/models/" in self.path:
            return self.answer({"id": "owner/net", "sha": "c0ffee", "siblings": [], "tags": []})
        return self.answer({"error": "unknown path"}, 404)

    def do_PUT(self):
        self.record()
        self.server.blobs[self.path.split("/")[-1]] = self.body()
        self.answer({})

    def do_POST(self):
        self.record()
        server, body = self.server, self.body()
        if server.refuses:
            return self.answer({"error": "Invalid username or password."}, 401)
        if self.path.endswith("/api/repos/create"):
            return self.answer({"url": f"{server.address}/owner/net", "id": "owner/net"})
        if "/preupload/" in self.path:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {
                    **entry,
                    "actions": {"upload": {"href": f"{server.address}/blobs/{entry['oid']}"}},
                }
                for entry in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    server.files[value["path"]] = base64.b64decode(value["content"])
                if entry["key"] == "lfsFile":
                    server.files[value["path"]] = server.blobs[value["oid"]]
            return self.answer(
                {
                    "success": True,
                    "commitOid": "c0ffee",
                    "commitUrl": f"{server.address}/owner/net/commit/c0ffee",
                    "hookOutput": "",
                }
            )
        if self.path.endswith("/api/validate-yaml"):
            return self.answer({"errors": [], "warnings": []})
        return self.answer({"error": "unknown path"}, 404)


@contextmanager
def hub_server():
    """Runs a server in a thread."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
