"""A W&B server on the loopback: what real clients send it can be read back.

It answers as much of the GraphQL interface as `wandb sweep`, `wandb agent` and the start, the
resumption and the end of a run need; it keeps the file streams, counts uploads, and can be told to
stall or to fail.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

import yaml

#: A key of the right shape; the stub asks for none.
KEY = "0" * 40

_PROJECT = {
    "id": "p",
    "internalId": "p",
    "name": "genlab",
    "entityName": "me",
    "entity": {"id": "e", "name": "me", "__typename": "Entity"},
    "__typename": "Project",
}
_USER = {
    "id": "u",
    "entity": "me",
    "username": "me",
    "name": "me",
    "email": "me@localhost",
    "admin": False,
    "flags": "{}",
    "capabilities": [],
    "teams": {"edges": []},
    "organizations": [],
    "apiKeys": {"edges": []},
    "codeSavingEnabled": True,
    "deletedAt": None,
}


@dataclass
class StubRun:
    """The data that the server received about one run, over all of its starts.

    A run of a sweep is there before it is started: `sweep` is the name that the server gave it to.
    """

    sweep: str | None = None
    starts: list[dict[str, Any]] = field(default_factory=list)
    stream: dict[str, list[str]] = field(default_factory=dict)
    exit_code: int | None = None
    preempting: bool = False
    uploads: list[str] = field(default_factory=list)

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.get("wandb-history.jsonl", [])]

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.stream.get("wandb-summary.json", [])
        return dict(json.loads(lines[-1])) if lines else {}

    @property
    def config(self) -> dict[str, Any]:
        """Return the config as last sent, each key with its value."""
        sent = self.told("config")
        return {k: v["value"] for k, v in json.loads(sent).items()} if sent else {}

    def told(self, key: str) -> Any:
        """Return the last value sent under a name, such as `groupName`; None if there is none."""
        return next((s[key] for s in reversed(self.starts) if s.get(key)), None)


@dataclass
class StubSweep:
    """A sweep, what it hands out next, and the runs that have been handed out, each by its id."""

    config: dict[str, Any]
    points: list[dict[str, Any]]
    agents: list[str] = field(default_factory=list)
    handed_out: dict[str, dict[str, Any]] = field(default_factory=dict)


class WandbStub:
    """The server, from `with` to the end of the block, on a port of its own."""

    def __init__(self) -> None:
        self.runs: dict[str, StubRun] = {}
        self.sweeps: dict[str, StubSweep] = {}
        self.views: list[dict[str, Any]] = []  # as they were sent, one after the other
        self.kept: dict[str, dict[str, Any]] = {}  # by their ids, as they are now
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.behaviour: Literal["answer", "stall", "refuse"] = "answer"
        self.lock = threading.Lock()
        self.released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("H", (_Handler,), {"stub": self}))
        self._server.daemon_threads = True
        # a client that hangs up is a client's business
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a client that is to use this server."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def run(self, name: str) -> StubRun:
        return self.runs.setdefault(name, StubRun())

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """The data of a GraphQL answer, or None where the operation is not known."""
        for mark, respond in _ANSWERS.items():
            if mark in query:
                return respond(self, variables)
        return None

    def upsert_run(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables.get("name") or variables["id"]
        is_new = name not in self.runs
        self.run(name).starts.append(variables)
        bucket = {
            "id": f"run-{name}",
            "storageID": f"run-{name}",
            "name": name,
            "displayName": variables.get("displayName") or name,
            "config": "{}",
            "sweepName": self.run(name).sweep,
            "project": _PROJECT,
            "historyLineCount": len(self.run(name).history),
            "tags": [],
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": is_new}}

    def resume_status(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = next(str(variables[k]) for k in ("name", "runId", "run") if variables.get(k))
        if name not in self.runs:
            return {"model": {**_PROJECT, "bucket": None}}
        run = self.runs[name]
        count = {stem: len(run.stream.get(stem, [])) for stem in run.stream}
        bucket = {
            "id": f"run-{name}",
            "name": name,
            "displayName": name,
            "summaryMetrics": json.dumps(run.summary),
            "logLineCount": count.get("output.log", 0),
            "historyLineCount": count.get("wandb-history.jsonl", 0),
            "eventsLineCount": count.get("wandb-events.jsonl", 0),
            "historyTail": json.dumps(run.stream.get("wandb-history.jsonl", [])[-1:]),
            "eventsTail": "[]",
            "config": "{}",
            "wandbConfig": json.dumps({"t": 1} if run.starts else {}),
            "tags": [],
            "group": None,
        }
        return {"model": {**_PROJECT, "bucket": bucket}}

    def upsert_sweep(self, variables: dict[str, Any]) -> dict[str, Any]:
        config = yaml.safe_load(variables["config"])
        values = {key: given["values"] for key, given in config["parameters"].items()}
        grid = [dict(zip(values, v, strict=True)) for v in itertools.product(*values.values())]
        name = f"sweep{len(self.sweeps) + 1:03}"
        self.sweeps[name] = StubSweep(config, grid)
        sweep = {"name": name, "project": _PROJECT}
        return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}

    def sweep_with_runs(self, variables: dict[str, Any]) -> dict[str, Any]:
        sweep = self.sweeps.get(variables["sweep"])
        if sweep is None:
            return {"project": {"sweep": None}}
        config = yaml.safe_dump(sweep.config)
        return {"project": {"sweep": {"id": "s", "config": config, "runs": {"edges": []}}}}

    def create_agent(self, variables: dict[str, Any]) -> dict[str, Any]:
        agents = self.sweeps[variables["sweep"]].agents
        agents.append(f"{variables['sweep']}:{len(agents)}")
        return {"createAgent": {"agent": {"id": agents[-1]}}}

    def heartbeat(self, variables: dict[str, Any]) -> dict[str, Any]:
        """One run at a time, then the word to stop."""
        name = variables["id"].partition(":")[0]
        sweep, commands = self.sweeps[name], list[dict[str, Any]]()
        if not json.loads(variables["runState"]) and not sweep.points:
            commands.append({"type": "exit"})
        elif not json.loads(variables["runState"]):
            run_id = f"{name}run{len(sweep.handed_out) + 1}"
            point = sweep.handed_out[run_id] = sweep.points.pop(0)
            self.run(run_id).sweep = name
            args = {key: {"value": value} for key, value in point.items()}
            program = sweep.config["program"]
            commands.append({"type": "run", "run_id": run_id, "program": program, "args": args})
        agent = {"id": variables["id"]}
        return {"agentHeartbeat": {"agent": agent, "commands": json.dumps(commands)}}

    def upload_urls(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables.get("run") or variables.get("runName")
        files = [
            {"name": f, "uploadUrl": f"{self.url}/upload/{name}/{f}"} for f in variables["files"]
        ]
        return {"createRunFiles": {"runID": f"run-{name}", "uploadHeaders": [], "files": files}}

    def upsert_view(self, variables: dict[str, Any]) -> dict[str, Any] | None:
        self.views.append(variables)
        is_new = not variables.get("id")
        if not (is_new or variables["id"] in self.kept):
            return None
        view = {
            "id": variables.get("id") or f"VIEW{len(self.views):04}",
            "type": variables.get("type"),
            "name": variables.get("name"),
            "displayName": variables.get("displayName"),
            "description": variables.get("description") or "",
            "project": {**_PROJECT, "name": variables["projectName"]},
            "spec": variables.get("spec"),
            "updatedAt": "2026-01-01T00:00:00Z",
            "createdAt": "2026-01-01T00:00:00Z",
            "user": _USER,
            "previewUrl": None,
            "coverUrl": None,
            "viewCount": 0,
            "entityName": "me",
        }
        self.kept[view["id"]] = view
        return {"upsertView": {"view": view, "inserted": is_new}}

    def view_of_name(self, variables: dict[str, Any]) -> dict[str, Any]:
        found = [view for view in self.kept.values() if view["name"] == variables["viewName"]]
        return {"project": {"allViews": {"edges": [{"node": view} for view in found]}}}

    def take_stream(self, name: str, message: dict[str, Any]) -> None:
        run = self.run(name)
        for file, chunk in (message.get("files") or {}).items():
            lines = run.stream.setdefault(file, [])
            lines[chunk["offset"] :] = chunk["content"]
        run.preempting = run.preempting or bool(message.get("preempting"))
        if message.get("complete"):
            run.exit_code = message.get("exitcode")


def _server_info(stub: WandbStub, variables: dict[str, Any]) -> dict[str, Any]:
    versions = {"min_cli_version": "0.0.1", "max_cli_version": "99.0"}
    info = {"features": [], "cliVersionInfo": versions, "latestLocalVersionInfo": None}
    return {"serverInfo": info, "viewer": _USER, "QueryType": {"fields": []}}


def _projects(stub: WandbStub, variables: dict[str, Any]) -> dict[str, Any]:
    node = {**_PROJECT, "createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False, "user": _USER}
    page = {"endCursor": None, "hasNextPage": False, "__typename": "PageInfo"}
    return {"models": {"edges": [{"cursor": "c", "node": node}], "pageInfo": page}}


#: The first of these found in a query tells what is asked.
_ANSWERS: dict[str, Callable[[WandbStub, dict[str, Any]], dict[str, Any] | None]] = {
    "upsertSweep(": WandbStub.upsert_sweep,
    "sweep(sweepName": WandbStub.sweep_with_runs,
    "createAgent(": WandbStub.create_agent,
    "agentHeartbeat(": WandbStub.heartbeat,
    "upsertBucket": WandbStub.upsert_run,
    "createRunFiles": WandbStub.upload_urls,
    "serverInfo": _server_info,
    "GetProjects": _projects,
    "__type": lambda stub, v: {"__type": {"fields": []}, "TypeInfo": {"fields": []}},
    "upsertView": WandbStub.upsert_view,
    "allViews(": WandbStub.view_of_name,
    "view(id": lambda stub, v: {"view": stub.kept.get(v["reportId"])},
    "upsertModel": lambda stub, v: {"upsertModel": {"model": _PROJECT, "inserted": True}},
    "bucket(": WandbStub.resume_status,
    "viewer": lambda stub, v: {"viewer": _USER},
    "project(": lambda stub, v: {"project": _PROJECT},
}


class _Handler(BaseHTTPRequestHandler):
    stub: ClassVar[WandbStub]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the requests are kept."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _send(self, content: dict[str, Any], code: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _handle(self) -> None:
        stub, body = self.stub, self._body()
        if stub.behaviour == "stall":
            stub.released.wait()
            return
        if stub.behaviour == "refuse":
            self._send({"error": "out of order"}, 500)
            return
        with stub.lock:
            stub.requests.append(f"{self.command} {self.path}")
            self._send(self._answer(body))

    do_GET = do_PUT = do_POST = _handle  # noqa: N815 (the base class looks for these names)

    def _answer(self, body: bytes) -> dict[str, Any]:
        stub = self.stub
        if self.path == "/graphql":
            message = json.loads(body)
            answer = stub.answer(message["query"], message.get("variables") or {})
            if answer is None:
                stub.unknown.append(message["query"])
                return {"data": None, "errors": [{"message": "not known here"}]}
            return {"data": answer}
        if stream := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            stub.take_stream(stream[1], json.loads(body))
            return {"limits": {}}
        if upload := re.fullmatch(r"/upload/([^/]+)/(.+)", self.path):
            stub.run(upload[1]).uploads.append(upload[2])
        return {}
