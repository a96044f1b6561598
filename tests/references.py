"""Losses and metrics from their definitions, one term at a time; and batches to try losses on."""

import math

import numpy as np
import torch
from torch.nn import functional

from retrievers.data.examples import NO_ID, Groups, Labels
from retrievers.training.objective import Distillation, Objective

OBJECTIVES = [
    *(
        Objective(symmetric=symmetric, several=several, margin=margin)
        for symmetric in (False, True)
        for several in ("ignore", "average", "sum")
        for margin in (None, 0.1)
    ),
    *(
        Objective("siglip", several=several, margin=margin)
        for several in ("ignore", "average")
        for margin in (None, 0.1)
    ),
    Objective(symmetric=True, matryoshka=(2, 4), matryoshka_weight=0.5),
    Objective(distillation=Distillation("kl", 0.7, 0.3)),
    Objective(distillation=Distillation("margin_mse", 2.0, 1.5)),
    Objective(distillation=Distillation("kl", 0.7, 0.3, alone=True)),
]


def make_batch(seed, batch=6, extra=3, distinct=5, dim=6):
    random = torch.Generator().manual_seed(seed)
    queries, candidates = (
        functional.normalize(torch.randn(n, dim, generator=random, dtype=torch.float64), dim=1)
        for n in (batch, batch + extra)
    )
    labels = Labels(
        torch.randint(0, batch - 1, (batch,), generator=random),
        torch.randint(0, distinct, (batch + extra,), generator=random),
        torch.randint(-1, distinct + 4, (batch, 2), generator=random),
    )
    return queries, candidates, labels


def make_groups(seed, batch, extra):
    """Every query's own candidate and up to two of the further ones, some without a score."""
    random = torch.Generator().manual_seed(100 + seed)
    rows = torch.full((batch, 3), -1)
    rows[:, 0] = torch.arange(batch)
    for row in range(batch):
        count = int(torch.randint(0, 3, (), generator=random)) if extra else 0
        rows[row, 1 : 1 + count] = batch + torch.randperm(extra, generator=random)[:count]
    scores = torch.rand(batch, 3, generator=random, dtype=torch.float64)
    unknown = (torch.rand(batch, 3, generator=random) < 0.15) | (rows < 0)
    return Groups(rows, scores.masked_fill(unknown, float("nan")))


def is_known(labels, i, j, batch):
    wanted = {int(p) for p in labels.positives[i] if p != NO_ID} | {int(labels.candidates[i])}
    same_query = j < batch and int(labels.queries[i]) == int(labels.queries[j])
    return int(labels.candidates[j]) in wanted or same_query


def loop_info_nce(queries, candidates, labels, scale, symmetric, several, margin):
    batch = len(queries)
    cosine = [[q @ c for c in candidates] for q in queries]

    def one(pairs, own, known):
        positives = [own] if several == "ignore" else [p for p in pairs if known(p)]
        limit = float("inf") if margin is None else cosine[own[0]][own[1]].detach() + margin
        negatives = [p for p in pairs if not known(p) and cosine[p[0]][p[1]].detach() <= limit]
        exps = {p: torch.exp(scale * cosine[p[0]][p[1]]) for p in {*positives, *negatives}}
        against = sum((exps[p] for p in negatives), torch.zeros((), dtype=torch.float64))
        if several == "sum":
            together = sum(exps[p] for p in positives)
            return -torch.log(together / (together + against))
        return sum(-torch.log(exps[p] / (exps[p] + against)) for p in positives) / len(positives)

    def known(pair):
        return is_known(labels, pair[0], pair[1], batch)

    forward = sum(
        one([(i, j) for j in range(len(candidates))], (i, i), known) for i in range(batch)
    )
    if not symmetric:
        return forward / batch
    back = sum(one([(i, j) for i in range(batch)], (j, j), known) for j in range(batch))
    return (forward + back) / (2 * batch)


def loop_siglip(queries, candidates, labels, scale, bias, several, margin):
    total, batch = torch.zeros((), dtype=torch.float64), len(queries)
    for i in range(batch):
        own = (queries[i] @ candidates[i]).detach()
        for j in range(len(candidates)):
            cosine = queries[i] @ candidates[j]
            known = is_known(labels, i, j, batch)
            positive = i == j or (known and several != "ignore")
            if known and not positive:
                continue
            if not known and margin is not None and cosine.detach() > own + margin:
                continue
            z = 1 if positive else -1
            total = total - torch.log(1 / (1 + torch.exp(z * (-scale * cosine - bias))))
    return total / batch


def loop_distillation(kind, queries, candidates, groups, scale, temperature):
    total, counted = torch.zeros((), dtype=torch.float64), 0
    for query, rows, scores in zip(queries, groups.rows, groups.scores, strict=True):
        pairs = [
            (candidates[int(row)] @ query, score, place)
            for place, (row, score) in enumerate(zip(rows, scores, strict=True))
            if row >= 0 and not torch.isnan(score)
        ]
        if len(pairs) < 2 or (kind == "margin_mse" and pairs[0][2] != 0):
            continue
        counted += 1
        if kind == "kl":
            teacher = torch.softmax(torch.stack([s / temperature for _, s, _ in pairs]), 0)
            ours = torch.softmax(torch.stack([scale * c for c, _, _ in pairs]), 0)
            total = total + sum(t * (t.log() - o.log()) for t, o in zip(teacher, ours, strict=True))
        else:
            (cosine, score, _), others = pairs[0], pairs[1:]
            total = total + sum(
                ((cosine - c) - (score - s) / temperature) ** 2 for c, s, _ in others
            ) / len(others)
    return total / max(counted, 1)


def loop_objective(objective, queries, candidates, labels, groups, scale, bias):
    def contrastive(q, c):
        if objective.kind == "siglip":
            return loop_siglip(q, c, labels, scale, bias, objective.several, objective.margin)
        return loop_info_nce(
            q, c, labels, scale, objective.symmetric, objective.several, objective.margin
        )

    every = candidates
    if objective.distillation.alone:
        candidates = candidates[: len(queries)]
        labels = labels._replace(candidates=labels.candidates[: len(queries)])
    total = contrastive(queries, candidates)
    for dim in objective.matryoshka:
        short = [v[:, :dim] / v[:, :dim].norm(dim=1, keepdim=True) for v in (queries, candidates)]
        total = total + objective.matryoshka_weight * contrastive(*short)
    distil = objective.distillation
    if distil.kind != "none":
        total = total + distil.weight * loop_distillation(
            distil.kind, queries, every, groups, scale, distil.temperature
        )
    return total


# Retrieval metrics on one ranking: the definitions, written to be read.


def ranked(hits):
    """Candidate ids, best first: by single-precision score, ties by id in descending order."""
    by_id = sorted(hits, key=lambda hit: hit.did, reverse=True)
    return [hit.did for hit in sorted(by_id, key=lambda hit: -np.float32(hit.score))]


def success_at_k(ranking, relevant, k):
    """1 if any relevant candidate is among the first ``k``, else 0; M-BEIR's papers' "Recall@k"."""
    return float(any(did in relevant for did in ranking[:k]))


def recall_at_k(ranking, relevant, k):
    """Share of the relevant candidates among the first ``k``; 0 if there are none."""
    found = sum(did in relevant for did in ranking[:k])
    return found / len(relevant) if relevant else 0.0


def precision_at_k(ranking, relevant, k):
    """Relevant candidates among the first ``k``, divided by ``k`` however many were found."""
    return sum(did in relevant for did in ranking[:k]) / k


def mrr(ranking, relevant, k=None):
    """1 / rank of the first relevant candidate, 0 if it is not among the first ``k`` (all)."""
    for rank, did in enumerate(ranking[:k], start=1):
        if did in relevant:
            return 1.0 / rank
    return 0.0


def average_precision(ranking, relevant, k=None):
    """Mean, over all relevant candidates, of the precision at their ranks; 0 if not found.

    trec_eval's ``map`` (``map_cut`` with ``k``): the divisor counts relevant candidates that were
    not found.
    """
    found, total = 0, 0.0
    for rank, did in enumerate(ranking[:k], start=1):
        if did in relevant:
            found += 1
            total += found / rank
    return total / len(relevant) if relevant else 0.0


def average_precision_capped(ranking, relevant, k):
    """CIRCO's: precisions at the ranks of relevant candidates, over as many as k ranks can hold."""
    precisions = [
        precision_at_k(ranking, relevant, rank)
        for rank, did in enumerate(ranking[:k], start=1)
        if did in relevant
    ]
    return sum(precisions) / min(k, len(relevant)) if relevant else 0.0


def ndcg_at_k(ranking, grades, k=None):
    """Normalised discounted cumulative gain: gain = grade, discount = log2(rank + 1).

    Linear gain and clipping of negative grades at 0 follow trec_eval's ``ndcg_cut``.
    """
    gains = [max(grades.get(did, 0), 0) for did in ranking[:k]]
    ideal = sorted((max(grade, 0) for grade in grades.values()), reverse=True)[:k]
    best = dcg(ideal)
    return dcg(gains) / best if best else 0.0


def dcg(gains):
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))
