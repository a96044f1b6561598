"""Training multimodal language models: what moves, chunks, the token loss, resuming."""

import json
import math
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch.nn import functional

import retrievers
from augment import corpus, queries
from augment.enrichment.pipeline import Options
from augment.errors import DataError, MismatchError
from benchmarks.flagland.__main__ import main as flagland_main
from retrievers.cli import main
from retrievers.data.examples import Candidate, PairCollator, PairExample
from retrievers.data.module import MBeirData, SearchConfig
from retrievers.export.folder import export, save
from retrievers.models.load import load
from retrievers.models.mllm.conversations import IGNORED
from retrievers.models.mllm.layout import CrossLayout, Layout
from retrievers.models.mllm.reasoning import Reasoning, reason
from retrievers.models.reranker import scorer
from retrievers.models.tuning import Tuning, merge
from retrievers.training.gradcache import encode_in_chunks
from retrievers.training.module import Contrastive, fit
from retrievers.training.objective import Distillation, Objective, Ranking, TokenLoss
from retrievers.training.optim import AdamWCosine
from retrievers.vectors.search import test as search
from tests.retrievers.mllms import FAMILIES, make, mixed, vectors
from tests.retrievers.models.test_retriever import make_root

LORA = Tuning("image", lora_rank=2, lora_alpha=4)
RERANKS = Layout(cross=CrossLayout(yes="a", no="e"))
CONFIGS = Path(retrievers.__file__).parent / "configs"
RECIPES = sorted(p.stem for d in ("mllm", "rge", "trace", "tte") for p in (CONFIGS / d).iterdir())
WRITTEN = ("", "a flag of three bands", "which", "")


def pairs(encoder, written=None, beside=(None,) * 4):
    """A batch of four pairs with pictures of every number on both sides."""
    examples = mixed(encoder.collator())
    if written is not None:
        examples = [e._replace(written=w) for e, w in zip(examples, written, strict=True)]
    rows = [
        PairExample(query, Candidate(other._replace(written=text), other.id), (other.id,))
        for query, other, text in zip(examples, examples[::-1], beside, strict=True)
    ]
    return PairCollator(encoder.collator())(rows)


def gradients(training, batch):
    training.zero_grad()
    loss = training.loss(batch)["loss"]
    loss.backward()
    found = {n: p.grad for n, p in training.encoder.named_parameters() if p.requires_grad}
    return loss.detach(), found


def still(family):
    """What no gradient can reach: the mark is never read before its own state is pooled."""
    row = "vlm.model.language_model.embed_tokens.token_adapter.trainable_tokens_delta.default"
    return {row} if family == "qwen2_5" else set()


class Keep(lightning.Callback):
    """What a kill after the second step would leave."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 2:
            trainer.save_checkpoint(self.path)


def adapted(encoder, **settings):
    """A training of low-rank updates that are not nought."""
    made = Contrastive(encoder, tuning=LORA, **settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in made.encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    made.encoder.train()
    return made


def close(one, other, atol=1e-5):
    torch.testing.assert_close(one[0], other[0], atol=atol, rtol=0)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], atol=atol, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", ["qwen3", "qwen2_5"])
def test_low_rank_updates_touch_the_language_model_and_the_marks_rows(folders, family):
    """A golden list of names; Qwen2.5's head is not tied and has rows of its own."""
    training = Contrastive(make(folders[family]), tuning=LORA)
    moves = {n for n, p in training.encoder.named_parameters() if p.requires_grad}
    parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
             "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]  # fmt: skip
    layer = "vlm.model.language_model.layers.{}.{}.lora_{}.default.weight"
    wanted = {layer.format(n, part, ab) for n in (0, 1) for part in parts for ab in "AB"}
    rows = ["vlm.model.language_model.embed_tokens"] + ["vlm.lm_head"] * (family == "qwen2_5")
    wanted |= {f"{row}.token_adapter.trainable_tokens_delta.default" for row in rows}
    assert moves == wanted
    frozen = training.tuning.digest(training.encoder)
    batch = pairs(training.encoder, WRITTEN)
    training.tokens = TokenLoss(1.0)
    training.encoder.train()
    optimizer = torch.optim.AdamW([p for p in training.parameters() if p.requires_grad], 1e-2)
    for _ in range(2):  # B is nought in the first step
        _, found = gradients(training, batch)
        optimizer.step()
    assert {name for name, gradient in found.items() if not gradient.any()} == still(family)
    assert training.tuning.digest(training.encoder) == frozen


@pytest.mark.parametrize("projector", [False, True])
def test_the_vision_tower_keeps_no_graph_and_the_projector_may_be_trained(folders, projector):
    tuning = Tuning("image", lora_rank=2, projector=projector)
    encoder = Contrastive(make(folders["qwen3"]), tuning=tuning).encoder.train()
    batch = encoder.collator()(mixed(encoder.collator()), "query")
    blocks, merged = [], []
    visual = encoder.vlm.model.visual
    visual.blocks[-1].register_forward_hook(lambda *args: blocks.append(args[2]))
    visual.merger.register_forward_hook(lambda *args: merged.append(args[2]))
    encoder.encode(batch, "query")
    assert not blocks[0].requires_grad
    assert merged[0].requires_grad == projector
    moves = [n for n, p in encoder.named_parameters() if p.requires_grad and ".visual." in n]
    assert all("merger" in name for name in moves)
    assert bool(moves) == projector


@pytest.mark.parametrize("family", ["qwen3", "qwen2_5"])
def test_chunks_and_checkpointing_give_the_gradients_of_the_whole_batch(folders, family):
    """Chunks cut between one, none, three and one picture; one forward has both losses."""

    def training(chunk=None, chunk_tokens=None, **settings):
        encoder = make(folders[family], **settings)
        return adapted(encoder, chunk=chunk, chunk_tokens=chunk_tokens, tokens=TokenLoss(0.5))

    whole = training()
    batch = pairs(whole.encoder, WRITTEN)
    wanted = gradients(whole, batch)
    assert {name for name, gradient in wanted[1].items() if not gradient.any()} == still(family)
    for chunk in (1, 3):
        close(gradients(training(chunk), batch), wanted)
    close(gradients(training(checkpointing=True), batch), wanted)
    most = int(batch.queries.lengths.max()) * 2
    close(gradients(training(chunk_tokens=most), batch), wanted)


def test_chunks_hold_as_many_tokens_as_they_may(folders):
    encoder = make(folders["qwen3"])
    batch = pairs(encoder).queries
    lengths = batch.lengths.tolist()
    for most in (1, min(lengths), sum(lengths[:2]), 3 * max(lengths), 10**6):
        seen = []

        def encode(chunk, side, seen=seen):
            seen.append(chunk)
            return torch.zeros(chunk.size, 1, requires_grad=True)

        assert len(encode_in_chunks(encode, batch, "query", None, tokens=most)) == batch.size
        assert [n for chunk in seen for n in chunk.lengths.tolist()] == lengths
        for chunk, following in zip(seen, [*seen[1:], None], strict=True):
            assert chunk.size == 1 or chunk.tokens.numel() <= most
            if following is not None:  # one more would have been too many
                longest = max(*chunk.lengths.tolist(), int(following.lengths[0]))
                assert (chunk.size + 1) * longest > most


@pytest.mark.parametrize("pooling", ["before", "at", "after"])
def test_the_token_loss_is_that_of_the_models_own_and_of_each_row_alone(folders, pooling):
    encoder = make(folders["qwen3"], layout=Layout(pooling=pooling, mark="<|emb|>"))
    batch = pairs(encoder, WRITTEN).queries
    assert ((batch.targets != IGNORED).sum(1) > 1).tolist() == [False, True, True, False]
    with torch.no_grad():
        vecs, first, rest = encoder.taught(batch)
        for row in range(batch.size):
            one = batch.rows(row, row + 1)
            output = encoder.vlm(
                input_ids=one.tokens, attention_mask=one.mask, mm_token_type_ids=one.kinds,
                **one.pictures(),
            )  # fmt: skip
            costs = functional.cross_entropy(
                output.logits[0, :-1], one.targets[0, 1:], reduction="none", ignore_index=IGNORED
            )
            costs = costs[one.targets[0, 1:] != IGNORED]
            torch.testing.assert_close(first[row], costs[0], atol=1e-4, rtol=0)
            torch.testing.assert_close(rest[row], costs[1:].sum(), atol=1e-4, rtol=0)
            state = encoder.states(one)[:, -2 if pooling == "before" else -1]
            torch.testing.assert_close(vecs[row], encoder.vector(state)[0], atol=1e-5, rtol=0)
    direct = encoder.collator()(mixed(encoder.collator()), "query")
    plain = encoder.encode(direct, "query").vectors
    still = [0, 3]  # what writes nothing has the vector of direct embedding
    torch.testing.assert_close(vecs[still], plain[still], atol=1e-5, rtol=0)


@pytest.mark.parametrize("per", ["sample", "token"])
def test_candidates_that_are_taught_to_write_count_as_queries_do(folders, per):
    encoder = make(folders["qwen3"])
    tokens = TokenLoss(0.5, per=per)
    training = Contrastive(encoder, tuning=Tuning("image"), tokens=tokens).eval()
    beside = ("two bands", "", "a star", "of it")
    batch = pairs(encoder, WRITTEN, beside)
    sides = [encoder.taught(side) for side in (batch.queries, batch.candidates)]
    tokenizer = encoder.collator().processor.tokenizer
    told = [
        tokens(first, rest, torch.tensor([len(tokenizer(text).input_ids) for text in texts]))
        for (_, first, rest), texts in zip(sides, (WRITTEN, beside), strict=True)
    ]
    parts = training.loss(batch)
    # The queries' own loss weighs what it weighs without the candidates', of how many there are.
    torch.testing.assert_close(parts["tokens"], told[0]["tokens"] + told[1]["tokens"])
    torch.testing.assert_close(parts["candidate_chain"], told[1]["chain"])
    vecs = (sides[0][0], sides[1][0])
    alone = training.objective(*vecs, batch.labels, batch.groups, encoder.scale(), None)
    torch.testing.assert_close(parts["contrastive"], alone["loss"])
    silent = training.loss(pairs(encoder, WRITTEN))["contrastive"]
    assert (silent - parts["contrastive"]).abs().item() > 1e-3


def test_a_few_pairs_are_learnt_by_heart_and_routes_are_those_that_were_taught(folders):
    encoder = make(folders["qwen3"], head=True)
    training = Contrastive(encoder, tuning=Tuning("image"), tokens=TokenLoss(1.0))
    batch = pairs(encoder, WRITTEN)
    optimizer = torch.optim.AdamW([p for p in encoder.parameters() if p.requires_grad], lr=0.01)
    encoder.train()
    for _ in range(40):
        optimizer.zero_grad()
        training.loss(batch)["loss"].backward()
        optimizer.step()
    encoder.eval()
    asked = encoder.collator()(mixed(encoder.collator()), "query")
    found = reason(encoder, asked, Reasoning("adaptive", max_tokens=12))
    decode = encoder.collator().processor.tokenizer.decode
    assert tuple(decode(row) for row in found.tokens) == WRITTEN
    assert [ending == "direct" for ending in found.endings] == [not text for text in WRITTEN]


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_without_the_token_loss_the_marks_rows_stay(folders, weight):
    encoder = make(folders["qwen2_5"])  # whose head is not tied
    training = Contrastive(encoder, tuning=Tuning("image"), tokens=TokenLoss(weight))
    training.loss(pairs(encoder, WRITTEN))["loss"].backward()
    head, embedding = encoder.vlm.lm_head.weight, encoder.vlm.get_input_embeddings().weight
    # The state before the mark is pooled, so that the mark itself is never read.
    assert float(embedding.grad[encoder.mark].abs().sum()) == 0
    moved = 0.0 if head.grad is None else float(head.grad[encoder.mark].abs().sum())
    assert (moved > 0) == bool(weight)


def test_the_token_losses_normalisers():
    first, rest = torch.tensor([1.0, 2, 3, 4]), torch.tensor([0.0, 6, 4, 0])
    counts = torch.tensor([0, 3, 1, 0])
    sample = TokenLoss(2.0, decision=0.5)(first, rest, counts)
    assert float(sample["tokens"]) == pytest.approx(2 * (0.5 * 2.5 + (6 / 3 + 4 / 1) / 2))
    token = TokenLoss(1.0, per="token")(first, rest, counts)
    assert float(token["tokens"]) == pytest.approx(2.5 + 10 / 4)
    assert float(TokenLoss(1.0)(first, rest * 0, counts * 0)["tokens"]) == pytest.approx(2.5)


@pytest.mark.parametrize("family", ["qwen3", "qwen2_5"])
@pytest.mark.parametrize("dora", [False, True])
def test_merged_saved_and_loaded_it_is_the_same(folders, family, dora, tmp_path):
    tuning = Tuning("image", lora_rank=2, lora_dropout=0.1, dora=dora)
    encoder = Contrastive(make(folders[family]), tuning=tuning).encoder.eval()
    plain = set(make(folders[family]).state_dict())
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    examples = mixed(encoder.collator())
    adapted = vectors(encoder, examples)
    assert (adapted - vectors(make(folders[family]), examples)).norm() > 0.01
    with pytest.raises(MismatchError, match="low-rank updates"):
        save(encoder, tmp_path)
    merge(encoder)
    torch.testing.assert_close(vectors(encoder, examples), adapted, atol=1e-4, rtol=0)
    assert set(encoder.state_dict()) == plain
    tied = encoder.vlm.lm_head.weight is encoder.vlm.get_input_embeddings().weight
    assert tied == (family == "qwen3")
    again = load(save(encoder, tmp_path / "folder"))
    assert torch.equal(vectors(again, examples), vectors(encoder, examples))
    assert again.fingerprint({}) == encoder.fingerprint({})
    assert again.mark == encoder.mark


def test_a_killed_fit_goes_on_as_if_undisturbed_and_its_checkpoint_is_small(folders, tmp_path):
    root = make_root(tmp_path / "root")
    data = MBeirData(str(root), batch_size=4)

    def run(out, resume=None, callbacks=()):
        training = Contrastive(
            make(folders["qwen3"]), chunk=3, optimizer=AdamWCosine(lr=1e-2),
            tuning=Tuning("image", lora_rank=2, lora_dropout=0.2),
        )  # fmt: skip
        return fit(
            training, data, out, max_steps=4, resume=resume, device="cpu", callbacks=callbacks,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip

    half, last = tmp_path / "half.ckpt", tmp_path / "whole" / "checkpoints" / "latest.ckpt"
    whole = run(tmp_path / "whole", callbacks=[Keep(half)])
    resumed = run(tmp_path / "rest", half)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    examples = mixed(whole.collator())
    start = vectors(make(folders["qwen3"]), examples)
    assert (vectors(whole, examples) - start).norm() > 1e-3
    saved = torch.load(last, weights_only=True)
    kept = sum(value.numel() for value in saved["state_dict"].values())
    assert kept < sum(p.numel() for p in whole.parameters()) / 10
    loaded = load(last)
    torch.testing.assert_close(vectors(loaded, examples), vectors(whole, examples))
    assert loaded.settings() == whole.settings()
    other = saved | {"retriever": saved["retriever"] | {"frozen": "0" * 16}}
    torch.save(other, last)
    with pytest.raises(MismatchError, match="this model is frozen otherwise"):
        load(last)  # adapter of another base


def test_in_bfloat16_it_learns_as_in_float32(folders, tmp_path):
    """LoRA, checkpointing and chunks as in the recipes; products in bfloat16, or weights as well.

    Twelve steps on one batch of six pairs. Of losses between 2.7 and 1.0 none was off by more than
    0.016 when this was written.
    """
    data = MBeirData(str(make_root(tmp_path / "root", items=3)), batch_size=6)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "device": "cpu"}

    def run(name, precision, dtype):
        encoder = make(folders["qwen3"], checkpointing=True, dtype=dtype)
        training = Contrastive(
            encoder, chunk=2, keep_chunks=1, tuning=Tuning("image", lora_rank=8, lora_alpha=16),
            optimizer=AdamWCosine(lr=5e-3, warmup_steps=2),
        )  # fmt: skip
        seen = []
        keep = LambdaCallback(on_train_batch_end=lambda *given: seen.append(given[2]["loss"]))
        fit(training, data, tmp_path / name, max_steps=12, precision=precision,
            callbacks=[keep], **quiet)  # fmt: skip
        loaded = load(tmp_path / name / "checkpoints" / "latest.ckpt")
        examples = mixed(encoder.collator())
        assert torch.equal(vectors(loaded, examples), vectors(encoder, examples))
        assert {str(p.dtype) for p in loaded.parameters()} == {f"torch.{dtype}"}
        return torch.stack(seen)

    with pytest.raises(DataError, match="bf16-true changes frozen weights"):
        run("true", "bf16-true", "float32")
    exact = run("float32", "32-true", "float32")
    assert exact[0] > 2.5 > math.log(6) > 1.3 > exact[-1], "better than by chance"
    for precision, dtype in (("bf16-mixed", "float32"), ("32-true", "bfloat16")):
        half = run(f"{precision} {dtype}", precision, dtype)
        assert half.dtype == torch.float32
        assert 1e-4 < float((half - exact).abs().max()) < 0.05


def test_settings_of_training_that_cannot_be_meant_are_refused(folders):
    plain = make(folders["qwen3"], layout=Layout())
    with pytest.raises(DataError, match="stands at a mark"):
        Contrastive(plain, tokens=TokenLoss(1.0))
    with pytest.raises(DataError, match="are for CLIPs"):
        Contrastive(plain, tuning=Tuning("image", unlock_image=1))
    with pytest.raises(DataError, match="where it begins"):
        Contrastive(plain, tuning=Tuning(lora_rank=1, dora=True), init_from="x")
    training = Contrastive(make(folders["qwen3"]), tokens=TokenLoss(1.0))
    with pytest.raises(ValueError, match="is not known of every item"):
        training.loss(pairs(training.encoder))


def lists(encoder, scores=(0.5, 0.25, math.nan, -1.0)):
    """Two queries: one with two positives and two negatives, one with a positive and a negative."""
    one, two, three, four = mixed(encoder.collator())
    known = [Candidate(e, e.id, s) for e, s in zip((four, one, two, three), scores, strict=True)]
    return PairCollator(encoder.collator())([
        PairExample(one, known[0], ("1:4", "1:1"), tuple(known[1:])),
        PairExample(two, known[3], ("1:3",), (known[1],)),
    ])  # fmt: skip


@pytest.mark.parametrize(("several", "kind", "alone"), [
    ("ignore", "margin_mse", False), ("average", "kl", False),
    ("sum", "margin_mse", False), ("sum", "kl", True)])  # fmt: skip
def test_an_encoder_learns_by_the_definition_of_each_loss(folders, several, kind, alone):
    """Vectors item by item, losses term by term; of several positives, towards a teacher."""
    objective = Objective(several=several, distillation=Distillation(kind, 0.7, 0.5, alone))
    plain = adapted(make(folders["qwen3"]), objective=objective)
    model, batch = plain.encoder, lists(plain.encoder)

    def embed(example, side):
        return model.encode(model.collator()([example], side), side).vectors[0]

    one, two, three, four = mixed(model.collator())
    asked = [embed(one, "query"), embed(two, "query")]
    a, b, c, d = (embed(example, "corpus") for example in (one, two, three, four))
    columns = [(d, 4), (c, 3)] if alone else [(d, 4), (c, 3), (a, 1), (b, 2), (c, 3), (a, 1)]
    read = [({4, 1}, [(d, 0.5), (a, 0.25), (c, -1.0)]), ({3}, [(c, -1.0), (a, 0.25)])]
    loss = sum(parameter.sum() for parameter in model.parameters() if parameter.requires_grad) * 0
    for query, (known, scored) in zip(asked, read, strict=True):
        own = [(20 * query @ shown).exp() for shown, n in columns if n in known]
        against = sum((20 * query @ shown).exp() for shown, n in columns if n not in known)
        own = {"ignore": [(20 * query @ scored[0][0]).exp()], "sum": [sum(own)]}.get(several, own)
        loss += sum((1 + against / each).log() for each in own) / len(own) / 2
        ours = torch.stack([query @ shown for shown, _ in scored])
        teacher = torch.tensor([score for _, score in scored]) / 0.5
        logs = teacher.log_softmax(0) - (20 * ours).log_softmax(0)
        margins = (ours[0] - ours[1:]) - (teacher[0] - teacher[1:])
        told = (teacher.softmax(0) * logs).sum() if kind == "kl" else (margins**2).mean()
        loss += 0.7 * told / 2
    loss.backward()
    moved = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    assert all(gradient.any() for name, gradient in moved.items() if "lora" in name)
    for chunk in (None, 1, 4):
        training = adapted(make(folders["qwen3"]), objective=objective, chunk=chunk)
        close(gradients(training, batch), (loss.detach(), moved), atol=1e-4)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("kind", ["pointwise", "pairwise", "listwise"])
def test_a_reranker_learns_by_the_definition_of_each_loss(folders, kind, chunk):
    """Scores by the model alone, each pair by itself; losses term by term."""
    model = make(folders["qwen3"], layout=RERANKS)
    training = Contrastive(model, tuning=LORA, ranking=Ranking(kind, 0.5), chunk=chunk)
    batch = lists(model)
    assert [" ".join(pair) for pair in batch.names] == [
        "1:1 1:4", "1:1 1:1", "1:1 1:2", "1:1 1:3", "1:2 1:3", "1:2 1:1"]  # fmt: skip
    one, two, three, four = mixed(model.collator())
    read = [[one, [four, one, two, three]], [two, [three, one]]]
    s = [scorer(model).score(query, own) for query, own in read]
    model.train()
    loss, found = gradients(training, batch)
    yes, no = (lambda x: -functional.logsigmoid(x)), (lambda x: -functional.logsigmoid(-x))
    teacher = [torch.tensor(t) / 0.5 for t in ([0.5, 0.25, -1.0], [-1.0, 0.25])]
    ours = [s[0][[0, 1, 3]], s[1]]
    terms = {
        "pointwise": [(yes(s[0][:2]).sum() + no(s[0][2:]).sum()) / 4,
                      (yes(s[1][0]) + no(s[1][1])) / 2],
        "pairwise": [sum(yes(s[0][p] - s[0][n]) for p in (0, 1) for n in (2, 3)) / 4,
                     yes(s[1][0] - s[1][1])],
        "listwise": [(t.softmax(0) * (t.log_softmax(0) - o.log_softmax(0))).sum()
                     for t, o in zip(teacher, ours, strict=True)],
    }[kind]  # fmt: skip
    assert float(loss) == pytest.approx(float(sum(terms)) / 2, abs=1e-5)
    assert any(gradient.abs().sum() > 0 for gradient in found.values())


def test_a_reranker_without_anything_to_learn_from_is_refused(folders):
    model = make(folders["qwen3"], layout=RERANKS)
    query, other = mixed(model.collator())[:2]
    lone = PairExample(query, Candidate(other, "1:2"), ("1:2",))
    with pytest.raises(ValueError, match="no query of the batch has a negative"):
        Contrastive(model).loss(PairCollator(model.collator())([lone]))
    with pytest.raises(ValueError, match="needs a teacher's scores"):
        Contrastive(model, ranking=Ranking("listwise")).loss(lists(model, (math.nan,) * 4))
    head = make(folders["qwen3"], layout=Layout(cross=CrossLayout(yes="", no="")))
    trained = Contrastive(head, tuning=LORA).encoder.named_parameters()
    assert {n for n, p in trained if p.requires_grad and "lora" not in n} == {
        f"vlm.score.{n}.{part}" for n in (0, 2) for part in ("weight", "bias")
    }


@pytest.fixture(scope="module")
def flagland(tmp_path_factory):
    """The smallest Flagland, and texts of its queries and candidates."""
    folder = tmp_path_factory.mktemp("flagland")
    root, options = folder / "root", Options(model="scripted:")
    asked = [f"--out={root}", "--countries=200", "--width=48", "--workers=1"]
    assert flagland_main(asked) == 0
    queries.run(root, folder / "store", options=options)
    corpus.run(root, folder / "store", options=options)
    return root, folder / "store"


@pytest.mark.parametrize("name", [name for name in RECIPES if "reranker" in name])
def test_packaged_rerankers_train_on_mined_lists_and_rerank(
    folders, flagland, name, tmp_path, capsys
):
    data = MBeirData(str(flagland[0]), tasks=[7], limit=4, test=SearchConfig(union=False))
    first = search(make(folders["qwen3"]), data, tmp_path / "first")
    assert first.rows
    root = [f"--data.root={flagland[0]}", "--data.tasks=[7]", "--data.limit=8"]
    mined = [*root, f"--out={tmp_path / 'mined'}", "--mining.relative_margin=null"]
    model = f"--model={save(make(folders['qwen3']), tmp_path / 'encoder')}"
    assert main(["mine", *mined, model]) == 0, capsys.readouterr().err
    given = [
        "--config", name, *root, f"--out={tmp_path / 'fit'}", "--data.batch_size=2",
        "--trainer.accelerator=cpu", "--trainer.precision=32-true", "--data.loader.workers=0",
        "--trainer.enable_progress_bar=false", f"--data.negatives.path={tmp_path / 'mined'}",
    ]  # fmt: skip
    if name.startswith("qwen3"):
        given += [f"--model.encoder.init_args.model_name={folders['qwen3']}",
                  "--model.encoder.init_args.layout.cross.yes=a",
                  "--model.encoder.init_args.layout.cross.no=e"]  # fmt: skip
    if "text" in name:
        given += [f"--data.{side}.store={flagland[1]}" for side in ("query", "corpus")]
    assert main(["fit", *given, "--trainer.max_steps=4"]) == 0, capsys.readouterr().err
    last = tmp_path / "fit" / "checkpoints" / "latest.ckpt"
    whole = torch.load(last, weights_only=True)["state_dict"]
    assert main(["fit", *given, "--trainer.max_steps=2"]) == 0, capsys.readouterr().err
    assert main(["fit", *given, "--trainer.max_steps=4", f"--ckpt_path={last}"]) == 0
    again = torch.load(last, weights_only=True)["state_dict"]
    assert all(torch.equal(value, again[key]) for key, value in whole.items())
    told = [f"--config={tmp_path / 'fit' / 'fit.yaml'}", f"--model={last}", "--depth=3"]
    told += [f"--run={tmp_path / 'first'}", f"--out={tmp_path / 'after'}"]
    assert main(["rerank", *told]) == 0
    assert main(["fit", *given, "--data.validation.queries=2"]) == 2
    assert "has no vectors to validate by" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "family"),
    [(name, "") for name in RECIPES if "reranker" not in name]
    + [("trace_qwen2_5_vl_7b", "qwen3")],  # as docs/trace.md says
)
def test_packaged_recipes_train_and_test(folders, flagland, name, family, tmp_path, capsys):
    """On models of their own families, or Qwen3-VL's."""
    other = [f"--model.encoder.init_args.layout.max_pixels={2**19}"] if family else []
    seen = [family for family in FAMILIES if f"{family}_vl" in name]
    family = family or ("qwen2" if name == "lamra" else (seen or FAMILIES)[0])
    given = [
        "--config", name, *other, f"--data.root={flagland[0]}", f"--out={tmp_path}",
        "--data.batch_size=4", "--trainer.max_steps=1", "--trainer.accelerator=cpu",
        "--trainer.precision=32-true",
        f"--model.encoder.init_args.model_name={folders[family]}", "--model.chunk=3",
        "--data.loader.workers=0", "--trainer.val_check_interval=1", "--data.instructions=true",
        "--trainer.enable_progress_bar=false", "--data.validation.queries=1",
        "--data.validation.pool=2",
    ]  # fmt: skip
    if writes := "trace" in name or "rge" in name:
        given += [f"--data.written.store={flagland[1]}",
                  "--model.encoder.init_args.reasoning.max_tokens=3"]  # fmt: skip
    if both := name == "flagland_trace":
        given += [f"--data.written.candidates={flagland[1]}"]
        given += ["--model.encoder.init_args.reasoning={when: always, candidates: true}"]
        said = [{"role": role, "content": "Red."} for role in ("user", "assistant")]
        (tmp_path / "again.jsonl").write_text(json.dumps({"messages": said}))
        given += [f"--model.rehearsal.path={tmp_path / 'again.jsonl'}", "--model.rehearsal.rows=5"]
    if "tte" in name:
        given += [f"--data.{side}.store={flagland[1]}" for side in ("query", "corpus")]
    assert main(["fit", *given]) == 0, capsys.readouterr().err
    given += ["--data.tasks=[3]", "--data.limit=4", "--data.test.union=false"]
    last = tmp_path / "checkpoints" / "latest.ckpt"
    assert main(["test", *given, f"--ckpt_path={last}"]) == 0, capsys.readouterr().err
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    loaded = load(last)
    kept = torch.load(last, weights_only=True)["retriever"]["training"]["rehearsal"]
    assert bool(kept["sha256"]) == both
    told = {key: value for key, value in loaded.trained_on.items() if key != "written"}
    assert metrics["made_by"] == loaded.fingerprint(told)
    assert bool(metrics["writing"]) == ("written" in loaded.trained_on) == writes
    assert (metrics["cost"].get("tokens_a_candidate", 0) > 0) == both
    assert metrics["cost"]["queries_per_second"] > 0
    if both:  # the folder, its card and what is compared are of the model that writes nothing
        export(str(tmp_path / "st"), last, "sentence_transformers")
        card = (tmp_path / "st" / "README.md").read_text()
        assert "'when': 'never'" in card
        assert "model-index" not in card, "figures of the test are of the model that writes"
        silent = ["--model.encoder.init_args.reasoning={when: never, candidates: false}"]
        assert (
            main(["test", *given, *silent, f"--ckpt_path={last}", f"--out={tmp_path / 's'}"]) == 0
        )
        export(str(tmp_path / "st2"), last, "sentence_transformers",
               metrics=tmp_path / "s" / "metrics.json")  # fmt: skip
        assert "model-index" in (tmp_path / "st2" / "README.md").read_text()
    given += ["--model.encoder.init_args.layout.max_pixels=4096", f"--ckpt_path={last}"]
    for verb in ("test", "fit") if name[:3] not in ("fla", "rge") else ():  # lack mark, have others
        assert main([verb, *given]) == 2
        assert "layout.max_pixels: trained with" in capsys.readouterr().err
