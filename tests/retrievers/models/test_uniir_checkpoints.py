"""UniIR's released files: OpenAI's CLIP written down, weights in UniIR's layout, our vectors."""

from collections import OrderedDict

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Stack

from augment.errors import DataError, MismatchError
from retrievers.models import load as loading
from retrievers.models.clip import ClipFeatureFusion, ClipScoreFusion
from retrievers.models.fusion_layers import FusionLayers
from retrievers.models.load import load, load_weights, read_checkpoint
from retrievers.training.module import Contrastive
from tests.retrievers.models.test_retriever import batch_of, make_config

CONFIG = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 128, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
KINDS = ["t", "i", "it"]


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width, mask=None):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        layers = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", QuickGELU()),
                  ("c_proj", nn.Linear(4 * width, width))]  # fmt: skip
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.mask = mask

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=self.mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width, mask=None):
        super().__init__()
        self.resblocks = nn.Sequential(Block(width, mask), Block(width, mask))

    def forward(self, x):
        return self.resblocks(x.permute(1, 0, 2)).permute(1, 0, 2)


class Visual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 128, 8, 8, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(128) / 10)
        self.positional_embedding = nn.Parameter(torch.randn(5, 128) / 10)
        self.ln_pre, self.ln_post = nn.LayerNorm(128), nn.LayerNorm(128)
        self.transformer = Transformer(128)
        self.proj = nn.Parameter(torch.randn(128, 64) / 10)

    def tokens(self, x):
        x = self.conv1(x).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1)
        x = self.transformer(self.ln_pre(x + self.positional_embedding))
        return self.ln_post(x) @ self.proj


class OpenAIClip(nn.Module):
    """With the names, order and heads (of 64) of OpenAI's."""

    def __init__(self):
        super().__init__()
        self.visual = Visual()
        self.transformer = Transformer(64, torch.full((77, 77), -torch.inf).triu(1))
        self.token_embedding = nn.Embedding(49408, 64)
        self.positional_embedding = nn.Parameter(torch.randn(77, 64) / 10)
        self.ln_final = nn.LayerNorm(64)
        self.text_projection = nn.Parameter(torch.randn(64, 64) / 10)
        self.logit_scale = nn.Parameter(torch.tensor(4.0))

    def tokens(self, text):
        x = self.token_embedding(text) + self.positional_embedding
        return self.ln_final(self.transformer(x))


class UniIR(nn.Module):
    """CLIP-SF, or CLIP-FF if it has T5 layers."""

    def __init__(self, features):
        super().__init__()
        self.clip_model = OpenAIClip()
        if features:
            config = T5Config(
                num_layers=2, num_heads=12, d_model=64, d_kv=64, vocab_size=2,
                is_encoder_decoder=False, use_cache=False,
            )  # fmt: skip
            self.t5_layers = T5Stack(config)
            del self.clip_model.text_projection

    def forward(self, text, image, text_mask, image_mask):
        clip = self.clip_model
        states, patches = clip.tokens(text), clip.visual.tokens(image)
        if hasattr(self, "t5_layers"):
            fused = self.t5_layers(inputs_embeds=torch.cat([states, patches], 1))
            return fused.last_hidden_state.mean(1)
        pooled = states[torch.arange(len(text)), text.argmax(-1)] @ clip.text_projection
        return pooled * text_mask + patches[:, 0] * image_mask


def released(path, features, **changed):
    """A file as UniIR's training writes it, in half precision, and the model in it."""
    torch.manual_seed(0)
    model = UniIR(features).half()
    state = {n: v for n, v in model.state_dict().items() if "embed_tokens" not in n}
    config = OmegaConf.create({"model": {"size": "Large", "path": "${seed}"}, "seed": 2023})
    saved = {"model": state | changed, "optimizer": {"state": {}}, "config": config, "epoch": 19,
             "scheduler": {"last_epoch": 7}, "scaler": {"scale": 65536.0}}  # fmt: skip
    saved["model"] = {n: v for n, v in saved["model"].items() if v is not None}
    torch.save(saved, path)
    return model.float().eval()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return make_config(tmp_path_factory.mktemp("uniir"), CONFIG, "uniir-tiny")


@pytest.mark.parametrize("features", [False, True])
def test_released_files_give_uniirs_vectors(config, tmp_path, features, monkeypatch):
    path = tmp_path / "released.pth"
    model = released(path, features)
    monkeypatch.setitem(loading._UNIIR_MODELS, (128, 8), config)
    retriever = load(path)
    assert type(retriever) is (ClipFeatureFusion if features else ClipScoreFusion)
    assert retriever.trained_on is None
    examples, inputs = batch_of(retriever, KINDS)
    texts = retriever.collator().tokenize([e.text or "" for e in examples])
    zeros = torch.zeros(3, 16, 16)
    images = torch.stack([zeros if e.image is None else e.image for e in examples])
    masks = [torch.tensor([[float(letter in kind)] for kind in KINDS]) for letter in "ti"]
    with torch.no_grad():
        want = functional.normalize(model(texts, images, *masks), dim=-1)
        ours = retriever.encode(inputs, "query").vectors
    torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-5)


def test_initial_weights_and_what_does_not_fit(config, tmp_path):
    path = tmp_path / "released.pth"
    model = released(path, True)
    retriever = ClipFeatureFusion(config)  # masked attention, their weights
    Contrastive(retriever, init_from=str(path)).setup("fit")
    own = retriever.state_dict()
    assert torch.equal(own["clip.visual.proj"], model.clip_model.visual.proj)
    assert own["t5_layers.block.0.layer.0.SelfAttention.q.weight"].dtype == torch.float32
    with pytest.raises(MismatchError, match=r"missing: clip\.text_projection; unexpected: t5_lay"):
        load_weights(ClipScoreFusion(config), path)
    small = ClipFeatureFusion(config, fusion=FusionLayers(1, 12))
    with pytest.raises(MismatchError, match=r"unexpected: t5_layers\.block\.1.* and \d+ more"):
        load_weights(small, path)
    released(path, False, **{"clip_model.visual.proj": torch.zeros(128, 32)})
    with pytest.raises(MismatchError, match=r"visual\.proj \(128, 32\), wanted \(128, 64\)"):
        load_weights(ClipScoreFusion(config), path)
    with pytest.raises(DataError, match="of a size that UniIR did not release"):
        load(path)
    released(path, False, **{"clip_model.visual.conv1.weight": None})
    with pytest.raises(DataError, match=r"no clip_model\.visual\.conv1\.weight"):
        read_checkpoint(path)


class Evil:
    """Would run a function of whoever wrote the file."""

    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_of_the_file_is_executed(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"model": {}, "config": OmegaConf.create({}), "more": Evil()}, path)
    with pytest.raises(DataError, match=r"asks for .*print, which could run code"):
        read_checkpoint(path)
    assert capsys.readouterr().out == ""
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="no checkpoint of this package"):
        read_checkpoint(path)
    torch.save([1], path)
    with pytest.raises(DataError, match="holds a list"):
        read_checkpoint(path)
