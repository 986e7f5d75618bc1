"""What is pushed to the hub equals what is exported, on a local server that speaks the hub's API."""

import base64
import json
import re
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from huggingface_hub import ModelCard, constants
from peft import PeftModel
from transformers import AutoModelForCausalLM

import bora
from bora.commands import export as command_line
from bora.use.export import export
from tests.conftest import one_line
from tests.use.test_export import FOLDERS, IDS, TOKENIZER, our_logits

TOKEN = "hf_ann"


class Hub(ThreadingHTTPServer):
    """A hub with a user, Ann, whose repositories are folders below `root`; `commits` has the files of each commit."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.private, self.commits = root, {}, []


class Handler(BaseHTTPRequestHandler):
    """The endpoints that a push and a download use. Every file is a regular one, sent within the commit."""

    server: Hub

    def log_message(self, *_) -> None:
        pass

    def answer(self, body: object, status: int = 200, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle_request(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid credentials"}, 401)
        if path == "/api/whoami-v2":
            return self.answer({"name": "ann", "orgs": []})
        if path == "/api/validate-yaml":
            card = ModelCard(json.loads(body)["content"]).data.to_dict()
            named = re.fullmatch(r"[\w.-]+/[\w.-]+", card.get("base_model", "a/b"))  # the hub refuses an invalid name
            return self.answer({"errors": [] if named else [{"message": "base_model"}]}, 200 if named else 400)
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] != "ann":
                return self.answer({"error": "You don't have the rights to create a model under bo"}, 403)
            exists = repo in hub.private
            hub.private.setdefault(repo, asked.get("visibility") == "private")
            (hub.root / repo).mkdir(parents=True, exist_ok=True)
            return self.answer({"url": f"http://{self.headers['Host']}/{repo}"}, 409 if exists else 200)
        if found := re.fullmatch(r"/api/models/(\w+/\w+)(?:/(\w+)/main)?", path):
            return self.answer_repository(found[1], found[2], body)
        repo, file = re.fullmatch(r"/(\w+/\w+)/resolve/\w+/(.+)", path).groups()
        if not (hub.root / repo / file).is_file():
            return self.answer(b"", 404, X_Error_Code="EntryNotFound")
        content = (hub.root / repo / file).read_bytes()
        return self.answer(content, ETag=f'"{hash(content)}"', X_Repo_Commit=f"{len(hub.commits):040}")

    def answer_repository(self, repo: str, what: str | None, body: bytes) -> None:
        hub, folder = self.server, self.server.root / repo
        if repo not in hub.private:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif what is None:
            self.answer({"id": repo, "private": hub.private[repo], "sha": "0" * 40})
        elif what == "tree":
            files = [f for f in sorted(folder.rglob("*")) if f.is_file()]
            paths = [f.relative_to(folder).as_posix() for f in files]
            self.answer([{"type": "file", "path": path, "size": 1, "oid": ""} for path in paths])
        elif what == "preupload":
            asked = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]})
        else:
            _, *operations = map(json.loads, body.splitlines())
            hub.commits.append({o["value"]["path"]: o["key"] for o in operations})
            for o in operations:
                file = folder / o["value"]["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                if o["key"] == "file":
                    file.write_bytes(base64.b64decode(o["value"]["content"]))
                else:
                    file.unlink()
            url = f"http://{self.headers['Host']}/{repo}/commit/{'0' * 40}"
            self.answer({"commitUrl": url, "commitOid": "0" * 40, "success": True})

    do_GET = do_HEAD = do_POST = handle_request


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = Hub(tmp_path / "hub")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def files(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_a_pushed_repository_equals_the_exported_folder(trained, call, hub, tmp_path):
    run = trained("tau=100")
    code, out, _ = call(command_line.main, run, "--push-to-hub", "ann/loras", "--private")
    assert (code, out.splitlines()[-1]) == (0, f"repository: {constants.ENDPOINT}/ann/loras")
    assert hub.private == {"ann/loras": True}
    assert len(hub.commits) == 1
    export(run, tmp_path / "out")
    pushed, local = files(hub.root / "ann/loras"), files(tmp_path / "out")
    assert pushed.keys() == local.keys()
    assert {name for name in local if pushed[name] != local[name]} <= {name for name in local if "README" in name}
    # The lines in each card load its adapter.
    card = ModelCard(pushed["README.md"].decode())
    assert (card.data.base_model, card.data.library_name, card.data.tags) == (None, "peft", ["bora", "lora"])
    expected = our_logits(run)
    for task, folder in FOLDERS.items():
        named = ModelCard(pushed[f"{folder}/README.md"].decode()).content
        assert f'PeftModel.from_pretrained(base, "ann/loras", subfolder="{folder}")' in named
        base = AutoModelForCausalLM.from_pretrained(TOKENIZER, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, str(hub.root / "ann/loras"), subfolder=folder).eval()
        with torch.no_grad():
            torch.testing.assert_close(model(input_ids=IDS).logits, expected[task], rtol=0, atol=1e-5)


def test_the_index_lists_every_task(trained, tmp_path):
    run = trained("tau=100")
    export(run, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.base_model == str(TOKENIZER)
    perplexity = bora.load(run).per_task.set_index("task")["test_perplexity"]
    assert f"| a longer name | `a-longer-name` | {perplexity['a longer name']:.3f} |" in card.content
    assert rf"| ../b \| \<i\>\*x\* | `b-i-x` | {perplexity['../b | <i>*x*']:.3f} |" in card.content
    assert "| *the hierarchical mean Θ* | `hierarchical-mean` |  |" in card.content
    compile(re.search(r"```python\n(.*?)```", card.content, re.DOTALL)[1], "card", "exec")


def test_pushing_again_removes_tasks_no_longer_exported_and_keeps_other_files(trained, hub, monkeypatch):
    monkeypatch.setattr("bora.use.export.base_name", lambda *_: "facebook/opt-125m")
    run = bora.load(trained("tau=100"))
    assert run.push_to_hub("ann/loras") == f"{constants.ENDPOINT}/ann/loras"
    repository = hub.root / "ann/loras"
    assert ModelCard.load(repository / "README.md").data.base_model == "facebook/opt-125m"
    (repository / "a/notes.txt").write_text("of the task, so it goes with it")
    (repository / "LICENSE").write_text("")
    run.push_to_hub("ann/loras", "a longer name")
    assert len(hub.commits) == 2
    gone = {path for path, key in hub.commits[1].items() if key == "deletedFile"}
    assert {path.split("/")[0] for path in gone} == {"a", "b-i-x", "hierarchical-mean"}
    assert {path.split("/")[0] for path in files(repository)} == {"LICENSE", "README.md", "a-longer-name", "tasks.json"}
    run.push_to_hub("ann/loras", "a", merge=True)
    assert "model.safetensors" in files(repository)
    assert not {"a-longer-name/README.md", "tasks.json"} & files(repository).keys()


def test_an_impossible_push_is_refused_before_any_commit(trained, call, hub, monkeypatch):
    run = trained("tau=100")
    line = partial(call, command_line.main, run, "--push-to-hub")

    def refused(repo: str, *words: str, flags: tuple[str, ...] = ()) -> None:
        found = line(repo, *flags)
        one_line(found, *words)
        assert "hf_" not in found[2]
        assert hub.commits == []

    monkeypatch.setattr("bora.use.hub.export", lambda *_: pytest.fail("the work has begun"))
    refused("ann/lo ras", "'ann/lo ras' cannot name a repository")
    refused("loras", "NAMESPACE/NAME")
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_wrong")
        refused("ann/loras", "Invalid user token", "allowed to write to ann")
        patch.delenv("HF_TOKEN")
        patch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
        refused("ann/loras", "no token", "hf auth login")
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
        refused("ann/loras", "cannot be reached")
    monkeypatch.setattr("bora.use.hub.export", lambda *_: None)
    refused("bo/loras", "don't have the rights", "allowed to write to bo")
    hub.private["ann/loras"] = False
    refused("ann/loras", "is public already", flags=("--private",))
    code, _, err = call(command_line.main, run, "out", "--push-to-hub", "ann/loras")
    assert (code, "not allowed with argument" in err) == (2, True)
