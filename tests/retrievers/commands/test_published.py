"""Published models by name: the real classes and the real download, from a Hub on this machine."""

import hashlib
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.flagland.train_clip import build_tokenizer
from retrievers.models.load import CONFIG, WEIGHTS
from tests.tiny_vlms import pictures

CLIP, SIGLIP = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "timm/ViT-B-16-SigLIP2-256"
QWEN, BARE = "Qwen/Qwen3-VL-Embedding-2B", "nobody/without-weights"
PICKLED = "nobody/with-a-pickle"
#: Untrained and small, in the layouts of the published ones.
LAYOUTS = {
    CLIP: {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {
            "context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1,
        },
    },
    SIGLIP: {
        "embed_dim": 64, "init_logit_bias": -10, "custom_text": True,
        "vision_cfg": {
            "image_size": 64, "timm_model_name": "test_vit", "timm_model_pretrained": False,
            "timm_pool": "map", "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": 64, "vocab_size": 400, "hf_tokenizer_name": SIGLIP,
            "tokenizer_kwargs": {"clean": "canonicalize"}, "width": 64, "heads": 4, "layers": 1,
            "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"},
        },
    },
}  # fmt: skip
#: In a process of its own, since the Hub's address is read at import.
SCRIPT = """
import json, sys
import torch
from retrievers import quickstart
from retrievers.cli import main
from retrievers.models.load import load
folder, bare, pickled, models = *sys.argv[1:4], json.loads(sys.argv[4])
for name, local in models.items():
    found = quickstart(folder, model="scripted:", retriever=name, threads=1)
    (made,) = (found[one] for one in found if one != "bm25")
    here, there = load(local).state_dict(), load(name).state_dict()
    assert here.keys() == there.keys()
    assert all(torch.equal(here[key], there[key]) for key in here), name
    print("found", name, len({hit.id for hit in made.search("a red flag", k=4)}))
    root = f"{folder}-search/root"
    assert main(["search", "--root", root, "--checkpoint", name, "-k", "4", "a red flag"]) == 0
for told, name in (("without weights", bare), ("with a pickle", pickled)):
    print(told, main(["search", "--root", root, "--checkpoint", name, "x"]))
"""


@pytest.fixture
def hub(tmp_path, folders):
    """The models by name, and the address of a Hub that has them."""
    texts = ["a red flag", "which country has this flag?"] * 3
    for name, layout in LAYOUTS.items():
        folder = tmp_path / "hub" / name
        folder.mkdir(parents=True)
        if name == SIGLIP:
            build_tokenizer(texts, 400).save_pretrained(folder)
        config = json.dumps({"model_cfg": layout, "preprocess_cfg": {"mean": [0.5] * 3}})
        (folder / CONFIG).write_text(config)
        torch.manual_seed(0)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        save_file(model.state_dict(), folder / WEIGHTS)
    made = {name: tmp_path / "hub" / name for name in LAYOUTS} | {QWEN: folders["qwen3"]}
    others = {BARE: tmp_path / "bare", PICKLED: tmp_path / "pickled"}
    for folder in others.values():
        folder.mkdir()
        (folder / CONFIG).write_bytes((made[CLIP] / CONFIG).read_bytes())
    weights = load_file(made[CLIP] / WEIGHTS)
    torch.save(weights, others[PICKLED] / "open_clip_pytorch_model.bin")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler({**made, **others}))
    Thread(target=server.serve_forever, daemon=True).start()
    yield made, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def handler(repositories):
    """As the Hub answers: what a repository holds, and its files with their hashes."""

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self, body=True):
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                files = sorted(repositories.get("/".join(parts[2:4]), Path("-")).glob("*"))
                told = {"id": "/".join(parts[2:4]), "sha": "0" * 40,
                        "siblings": [{"rfilename": one.name} for one in files]}  # fmt: skip
                if parts[4:5] == ["tree"]:
                    told = [{"type": "file", "path": one.name, "size": one.stat().st_size,
                             "oid": "0" * 40} for one in files]  # fmt: skip
                known = files and parts[4:5] in ([], ["revision"], ["tree"]) and not parts[6:]
                return self.answer(json.dumps(told).encode() if known else None, body)
            folder = repositories.get("/".join(parts[:2]), Path("-"))
            path = folder / "/".join(parts[4:])
            asked = parts[2:3] == ["resolve"] and path.is_file()
            return self.answer(path.read_bytes() if asked else None, body)

        def do_HEAD(self):
            self.do_GET(body=False)

        def answer(self, content, body):
            self.send_response(200 if content is not None else 404)
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if body and content:
                self.wfile.write(content)

        def log_message(self, *_): ...

    return Hub


def test_published_models_by_name_are_fetched_and_searched_with(hub, tmp_path):
    made, address = hub
    (tmp_path / "photos").mkdir()
    photos = pictures(tmp_path / "photos", [(64, 64), (90, 60), (60, 90), (80, 80)])
    prefix = {name: "" if name == QWEN else "hf-hub:" for name in made}
    models = {prefix[name] + name: str(folder) for name, folder in made.items()}
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"),
                   "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(photos), f"hf-hub:{BARE}",
         f"hf-hub:{PICKLED}", json.dumps(models)],
        env=environment, cwd=Path(__file__).parents[3], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout.splitlines()
    assert [line for line in said if line.startswith("found")] == [
        f"found {name} 4" for name in models
    ]
    # open_clip would go on with random weights, and read the pickle.
    assert said[-2:] == ["without weights 2", "with a pickle 2"], done.stdout[-500:]
    assert "only safetensors are read" in done.stderr
