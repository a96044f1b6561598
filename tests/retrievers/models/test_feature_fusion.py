"""Feature fusion against transformers' T5, item by item without padding, and UniIR's own maths."""

import pytest
import torch
from torch.nn import functional
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Stack

from augment.errors import DataError, MismatchError
from retrievers.cli import USER_ERROR, main
from retrievers.models.clip import ClipFeatureFusion, ClipScoreFusion
from retrievers.models.fusion_layers import FusionLayers, T5Encoder
from retrievers.models.load import load
from retrievers.search.searcher import Searcher
from retrievers.training.optim import AdamWCosine
from tests.retrievers.models.test_retriever import CONFIG, batch_of, make_config, make_root
from tests.retrievers.test_cli_retrievers import options, plain_options

FUSION = FusionLayers(2, 4, 6, 20, 0.1)
KINDS = ["t", "i", "it", "t", "it", "i"]
#: A text tower of another width than the vectors, apart from the image tower, as in custom models.
SPLIT = {**CONFIG, "custom_text": True, "text_cfg": {**CONFIG["text_cfg"], "width": 16}}
#: As SigLIP: both directions, the last position is read, pooling by attention, no class token.
SIGLIP = {
    "embed_dim": 64,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1,
        "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    folder, given = tmp_path_factory.mktemp("models"), {"plain": CONFIG, "split": SPLIT}
    given["sigmoid"] = SIGLIP
    return {name: make_config(folder, one, f"fusion-{name}") for name, one in given.items()}


def make(configs, name="plain", **settings):
    torch.manual_seed(0)
    return ClipFeatureFusion(configs[name], fusion=FUSION, **settings).eval()


def inputs_for(retriever, kinds):
    examples, inputs = batch_of(retriever, kinds)
    side = retriever.clip.visual.image_size[0]
    return examples, inputs._replace(images=functional.interpolate(inputs.images, side))


def stack_of(encoder, width):
    """Transformers' T5 with our weights."""
    config = T5Config(
        num_layers=FUSION.layers, num_heads=FUSION.heads, d_model=width, d_kv=FUSION.head_width,
        d_ff=FUSION.feedforward, vocab_size=2, is_encoder_decoder=False, use_cache=False,
    )  # fmt: skip
    stack = T5Stack(config).eval()
    told = stack.load_state_dict(encoder.state_dict(), strict=False)
    assert told.missing_keys == ["embed_tokens.weight"]
    assert not told.unexpected_keys
    return stack


def test_encoder_equals_transformers_t5():
    encoder = T5Encoder(24, FUSION).eval()
    stack = stack_of(encoder, 24)
    x = torch.randn(3, 300, 24)
    mask = torch.rand(3, 300) > 0.3
    places = torch.arange(300)
    want = stack(inputs_embeds=x).last_hidden_state
    torch.testing.assert_close(encoder(x, places), want)
    want = stack(inputs_embeds=x, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(encoder(x, places, mask)[mask], want[mask])
    # What is masked may as well not be there.
    kept = encoder(x[:1, mask[0]], places[mask[0]])
    torch.testing.assert_close(kept[0], want[0][mask[0]])


def test_encoder_starts_as_transformers_t5_does():
    torch.manual_seed(0)
    ours = T5Encoder(256, FusionLayers()).state_dict()
    config = T5Config(num_layers=2, num_heads=12, d_model=256, d_kv=64, vocab_size=2)
    theirs = T5Stack(config).state_dict()
    for name, value in ours.items():
        assert value.std().item() == pytest.approx(theirs[name].std().item(), rel=0.1), name


def tokens_alone(retriever, tokens):
    """States of one text through its own tokens alone, and where they stand."""
    clip = retriever.clip
    tower = getattr(clip, "text", clip)
    end = int(tokens.argmax()) + 1
    if tower.attn_mask is None:  # sees its padding; the tokens' own end is the last thing it says
        x = tower.token_embedding(tokens)[None] + tower.positional_embedding
        states = tower.ln_final(tower.transformer(x))[0]
        columns = sorted({*range(end), len(tokens) - 1})
        return states[columns], columns
    x = tower.token_embedding(tokens[:end])[None] + tower.positional_embedding[:end]
    mask = torch.full((end, end), -torch.inf).triu(1)
    return tower.ln_final(tower.transformer(x, attn_mask=mask))[0], list(range(end))


def picture_tokens(retriever, image):
    visual = retriever.clip.visual
    if hasattr(visual, "trunk"):
        states = visual.trunk.forward_features(image[None])
        return torch.cat([visual(image[None])[:, None], states], 1)[0]
    x = visual.conv1(image[None]).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(1, 1, -1), x], 1) + visual.positional_embedding
    return (visual.ln_post(visual.transformer(visual.ln_pre(x))) @ visual.proj)[0]


def one_by_one(retriever, examples, inputs):
    """Each item alone: its tokens in a sequence of full length of which the rest is masked."""
    context = retriever.clip.context_length
    vectors = []
    for row, _ in enumerate(examples):
        part = inputs.rows(row, row + 1)
        states, places = [], []
        if len(part.texts):
            found, columns = tokens_alone(retriever, part.texts[0])
            states.append(retriever.text_adapter(found))
            places += columns
        if len(part.images):
            found = picture_tokens(retriever, part.images[0])
            states.append(retriever.image_adapter(found))
            places += range(context, context + len(found))
        x = torch.cat(states)
        whole = torch.full((1, max(places) + 1, x.shape[1]), 7.0)
        whole[0, places] = x
        mask = torch.zeros(whole.shape[:2])
        mask[0, places] = 1
        stack = stack_of(retriever.t5_layers, x.shape[1])
        out = stack(inputs_embeds=whole, attention_mask=mask).last_hidden_state[0, places]
        vectors.append(functional.normalize(out.mean(0), dim=0))
    return torch.stack(vectors)


@pytest.mark.parametrize("name", ["plain", "split", "sigmoid"])
def test_masked_equals_items_alone_without_padding(configs, name):
    retriever = make(configs, name)
    assert (name == "plain") == isinstance(retriever.text_adapter, torch.nn.Linear)
    examples, inputs = inputs_for(retriever, KINDS)
    with torch.no_grad():
        vectors = retriever.encode(inputs, "query").vectors
        want = one_by_one(retriever, examples, inputs)
    torch.testing.assert_close(vectors, want, rtol=1e-4, atol=1e-5)
    assert vectors.norm(dim=1).tolist() == pytest.approx([1.0] * len(KINDS))


def uniir(retriever, examples, images):
    """CLIPFeatureFusion.encode_multimodal_input, written down from its code."""
    clip, visual = retriever.clip, retriever.clip.visual
    tower = getattr(clip, "text", clip)
    txt_tensor = retriever.collator().tokenize([e.text or "" for e in examples])
    x = tower.token_embedding(txt_tensor) + tower.positional_embedding
    txt_feat = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask))
    x = visual.conv1(images).flatten(2).transpose(1, 2)
    cls = visual.class_embedding + torch.zeros(len(x), 1, x.shape[-1])
    x = visual.ln_pre(torch.cat([cls, x], dim=1) + visual.positional_embedding)
    img_feat = visual.ln_post(visual.transformer(x)) @ visual.proj
    combined = torch.cat([txt_feat, img_feat], dim=1)
    stack = stack_of(retriever.t5_layers, combined.shape[2])
    out = stack(inputs_embeds=combined, attention_mask=None, return_dict=True)
    return functional.normalize(torch.mean(out.last_hidden_state, dim=1), dim=-1)


@pytest.mark.parametrize("kinds", [KINDS, ["t", "t"], ["i"], ["it"]])
def test_uniir_attention_equals_the_original(configs, kinds):
    retriever = make(configs, "split", attention="uniir")
    examples, inputs = inputs_for(retriever, kinds)
    zeros = torch.zeros(3, 16, 16)
    images = torch.stack([zeros if e.image is None else e.image for e in examples])
    with torch.no_grad():
        ours = retriever.encode(inputs, "query").vectors
        torch.testing.assert_close(ours, uniir(retriever, examples, images), rtol=1e-4, atol=1e-5)
        other = make(configs, "split").encode(inputs, "query").vectors
    assert not torch.allclose(ours, other, atol=1e-3)


@pytest.mark.parametrize("name", ["plain", "sigmoid"])
@pytest.mark.parametrize("attention", ["masked", "uniir"])
def test_vectors_do_not_depend_on_the_batch(configs, name, attention):
    if (name, attention) == ("sigmoid", "uniir"):
        pytest.skip("UniIR has CLIP alone")
    retriever = make(configs, name, attention=attention)
    _, inputs = inputs_for(retriever, [*KINDS, "t"])
    with torch.no_grad():
        together = retriever.encode(inputs, "query").vectors
        for row in range(inputs.size):
            alone = retriever.encode(inputs.rows(row, row + 1), "corpus").vectors
            torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("score", [False, True])
def test_only_the_needed_tower_runs(configs, monkeypatch, score):
    def never(*args, **kwargs):
        raise AssertionError("ran a tower that no item needs")

    retriever = ClipScoreFusion(configs["plain"]) if score else make(configs)
    for kind, part in (("t", retriever.clip.visual), ("i", retriever.clip.transformer)):
        _, inputs = inputs_for(retriever, [kind])
        with monkeypatch.context() as patch:
            patch.setattr(part, "forward", never)
            retriever.encode(inputs, "query")
    with pytest.raises(ValueError, match="at least one"):
        retriever.encode(inputs.rows(0, 0), "query")


def test_fresh_layers_have_their_own_rate(configs):
    retriever = make(configs)
    settings = AdamWCosine(lr=1e-5, fresh_lr=5e-4, weight_decay=0.2, decay_fresh=True)
    optimizer, _ = settings.build(retriever.named_parameters(), 10, retriever.fresh)
    by_id = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in retriever.named_parameters():
        group = by_id[id(parameter)]
        fresh = name.startswith(("t5_layers", "text_adapter", "image_adapter"))
        assert group["lr"] == (5e-4 if fresh else 1e-5), name
        assert (group["weight_decay"] > 0) == (fresh or parameter.ndim > 1), name


def test_models_without_tokens_and_wrong_settings_are_told(tmp_path):
    convolutions = {**CONFIG, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}}
    with pytest.raises(MismatchError, match="ModifiedResNet image tower"):
        ClipFeatureFusion(make_config(tmp_path, convolutions, "fusion-resnet"))
    with pytest.raises(DataError, match=r"fusion\.heads must be at least 1"):
        FusionLayers(heads=0)
    with pytest.raises(DataError, match=r"attention must be masked or uniir"):
        ClipFeatureFusion(attention="open")


@pytest.mark.usefixtures("one_thread")
def test_fit_test_mine_and_search(tmp_path, capsys):
    world = make_root(tmp_path / "root"), make_config(tmp_path), tmp_path
    common = [
        "--config=flagland_ff", "--model.encoder.fusion.heads=2",
        "--model.encoder.fusion.feedforward=16",
        "--model.chunk=4", "--trainer.val_check_interval=2", "--trainer.max_steps=4",
    ]  # fmt: skip

    def run(command, out, *more):
        given = [o for o in options(world, tmp_path / out) if not o.startswith("--config")]
        return main([command, common[0], *given, *common[1:], *more])

    assert run("fit", "whole") == 0
    last = tmp_path / "whole" / "checkpoints" / "last.ckpt"
    told = torch.load(last, weights_only=True)["retriever"]
    assert told["class"] == "ClipFeatureFusion"
    assert told["settings"]["fusion"]["heads"] == 2
    kept = [f"--ckpt_path={last}", f"--embeddings={tmp_path / 'kept'}"]
    assert run("test", "whole", *kept) == 0
    mining = plain_options(world, tmp_path / "whole", f"--model={last}")
    assert main(["mine", *mining]) == 0
    assert (tmp_path / "whole" / "negatives.parquet").is_file()
    # The same weights with other attention are another model.
    assert run("test", "whole", *kept, "--model.encoder.attention=uniir") == USER_ERROR
    assert 'attention: "masked", now "uniir"' in capsys.readouterr().err
    searcher = Searcher.open(last, world[0], embeddings=tmp_path / "kept", device="cpu")
    found = searcher.search("red number 0", k=3)
    assert len(found) == 3
    retriever = load(last)
    assert isinstance(retriever, ClipFeatureFusion)
