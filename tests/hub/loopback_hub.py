"""A Hub on 127.0.0.1 that speaks as much of the Hub's HTTP as upload and download of models and Spaces need;
repositories live in memory.

`with LoopbackHub() as hub:` then run processes with `hub.environment(home)`. `hub.requests` lists what was asked ("PUT
/lfs/..."), `hub.break_next(prefix, times)` drops the connection in the middle of such requests.
"""

import base64
import hashlib
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from tests.patience import PATIENCE

TOKEN = "hf_" + "a" * 34


class LoopbackHub:
    def __init__(self):
        self.repos: dict[
            str, dict
        ] = {}  # id -> {"private", "branches": {branch: sha}, "commits": {sha: {path: bytes}}}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.breaks: dict[str, int] = {}
        self.lock = threading.Lock()

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home, token=TOKEN, **more):
        """Variables for a process that talks to this Hub and nothing else."""
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
        }
        hub = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_ETAG_TIMEOUT": str(int(PATIENCE)),  # 10 s otherwise, as the next one
            "HF_HUB_DOWNLOAD_TIMEOUT": str(int(PATIENCE)),
            "NO_PROXY": "*",
        }
        return kept | hub | ({"HF_TOKEN": token} if token else {}) | {key: str(value) for key, value in more.items()}

    def break_next(self, prefix, times=1):
        self.breaks[prefix] = times

    def count(self, prefix):
        return sum(request.startswith(prefix) for request in self.requests)

    def files(self, repo_id, revision="main"):
        """Path -> bytes at a branch."""
        repo = self.repos[repo_id]
        return repo["commits"][repo["branches"][revision]]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def answer(self):
        hub, url = self.hub, urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        line = f"{self.command} {path}"
        with hub.lock:
            hub.requests.append(line)
            broken = next((prefix for prefix, left in hub.breaks.items() if left and line.startswith(prefix)), None)
            if broken:
                hub.breaks[broken] -= 1
        if broken:
            self.rfile.read(min(64, int(self.headers.get("Content-Length") or 0)))
            self.connection.close()
            self.close_connection = True
            return
        body = self.read_body()
        parts = path.strip("/").split("/")
        writes = self.command in ("POST", "PUT", "DELETE") and parts[0] != "lfs"
        if writes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.send_json({"error": "Invalid credentials"}, 401)
        with hub.lock:
            self.route(path, parts, body)

    def route(self, path, parts, body):
        if path == "/api/whoami-v2":
            return self.send_json({"name": "user", "type": "user", "orgs": []})
        if path == "/api/validate-yaml":
            return self.send_json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if parts[0] == "lfs" and self.command == "PUT":
            if hashlib.sha256(body).hexdigest() != parts[1]:
                return self.send_json({"error": "wrong content"}, 400)
            self.hub.lfs[parts[1]] = body
            return self.send_json({})
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            return self.model_api("/".join(parts[2:4]), parts[4:], body)
        if parts[:2] == ["api", "spaces"] and len(parts) >= 4:
            return self.model_api("spaces/" + "/".join(parts[2:4]), parts[4:], body)
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.lfs_batch(json.loads(body))
        if len(parts) >= 5 and parts[2] == "resolve":
            return self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        if parts[0] == "spaces" and len(parts) >= 6 and parts[3] == "resolve":
            return self.resolve("/".join(parts[:3]), parts[4], "/".join(parts[5:]))
        self.send_json({"error": f"unknown route {path}"}, 404, {"X-Error-Code": "RepoNotFound"})

    def create(self, wanted):
        repo_id = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
        if wanted.get("type") == "space":
            if wanted.get("sdk") != "gradio":
                return self.send_json({"error": "a Space needs an sdk"}, 400)
            repo_id = f"spaces/{repo_id}"
        if repo_id in self.hub.repos:
            return self.send_json(
                {"url": f"{self.hub.url}/{repo_id}", "error": "You already created this model repo"}, 409
            )
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.hub.repos[repo_id] = {"private": private, "branches": {"main": "0" * 40}, "commits": {"0" * 40: {}}}
        self.send_json({"url": f"{self.hub.url}/{repo_id}", "id": repo_id, "name": repo_id})

    def model_api(self, repo_id, rest, body):
        repo = self.hub.repos.get(repo_id)
        if repo is None:
            return self.send_json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        action, revision = (rest + ["", ""])[:2]
        sha = repo["branches"].get(revision or "main", revision)
        if action == "branch":
            if revision in repo["branches"]:
                return self.send_json({"error": "Reference already exists"}, 409)
            repo["branches"][revision] = repo["branches"]["main"]
            return self.send_json({})
        if sha not in repo["commits"]:
            return self.send_json({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
        files = repo["commits"][sha]
        if action in ("", "revision"):
            siblings = [{"rfilename": name} for name in sorted(files)]
            about = {
                "id": repo_id,
                "modelId": repo_id,
                "sha": sha,
                "private": repo["private"],
                "siblings": siblings,
                "tags": [],
            }
            return self.send_json(about)
        if action == "tree":
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": _git_oid(data)}
                for name, data in sorted(files.items())
            ]
            return self.send_json(entries)
        if action == "preupload":
            return self.preupload(files, json.loads(body))
        if action == "commit":
            return self.commit(repo_id, repo, revision, files, body)
        self.send_json({"error": f"unknown action {action}"}, 404)

    def preupload(self, files, wanted):
        answers = []
        for file in wanted["files"]:
            mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
            known = files.get(file["path"])
            answers.append(
                {
                    "path": file["path"],
                    "uploadMode": mode,
                    "shouldIgnore": False,
                    "oid": _git_oid(known) if known is not None else None,
                }
            )
        self.send_json({"files": answers})

    def lfs_batch(self, wanted):
        objects = []
        for item in wanted["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.lfs:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}
            objects.append(answer)
        self.send_json({"transfer": "basic", "objects": objects}, content_type="application/vnd.git-lfs+json")

    def commit(self, repo_id, repo, branch, files, body):
        files = dict(files)
        for line in body.decode().splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    return self.send_json({"error": f"LFS object {value['oid']} was never uploaded"}, 400)
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif key == "deletedFile":
                files.pop(value["path"], None)
        sha = hashlib.sha1(f"{time.time_ns()}{len(repo['commits'])}".encode()).hexdigest()
        repo["commits"][sha] = files
        repo["branches"][branch] = sha
        self.send_json(
            {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}", "hookOutput": ""}
        )

    def resolve(self, repo_id, revision, name):
        repo = self.hub.repos.get(repo_id)
        if repo is None:
            return self.send_json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        sha = repo["branches"].get(revision, revision)
        data = repo["commits"].get(sha, {}).get(name)
        if data is None:
            return self.send_json(
                {"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
            )
        headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        status, asked = 200, self.headers.get("Range", "")
        if asked.startswith("bytes="):
            first, last = asked[6:].split("-")
            start = int(first) if first else len(data) - int(last)
            end = min(int(last), len(data) - 1) if first and last else len(data) - 1
            status, headers["Content-Range"] = 206, f"bytes {start}-{end}/{len(data)}"
            data = data[start : end + 1]
        self.send_bytes(data, status, headers, "application/octet-stream")

    def read_body(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def send_json(self, value, status=200, headers=None, content_type="application/json"):
        self.send_bytes(json.dumps(value).encode(), status, headers or {}, content_type)

    def send_bytes(self, data, status, headers, content_type):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _git_oid(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
