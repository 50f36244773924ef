import math

import pytest
import torch

from pipeline.retrieval import rank_of_match, retrieval_metrics, symmetric_cross_entropy


def test_loss_by_hand():
    logits = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    rows = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-2))) / 2
    columns = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-3))) / 2
    assert symmetric_cross_entropy(logits).item() == pytest.approx((rows + columns) / 2, abs=1e-6)


def test_loss_of_equal_logits_is_that_of_chance():
    assert symmetric_cross_entropy(torch.zeros(200, 200)).item() == pytest.approx(math.log(200), abs=1e-5)


def test_identity_is_perfect():
    metrics = retrieval_metrics(torch.eye(50), 100.0, [1, 3, 5])
    assert metrics["top1_acc"] == metrics["top3_acc"] == metrics["top5_acc"] == 1.0
    assert (metrics["matched_cosine"], metrics["mismatched_cosine"]) == (1.0, 0.0)
    assert metrics["nice_loss"] == pytest.approx(0.0, abs=1e-6)


def test_a_constant_embedding_scores_nothing():
    assert retrieval_metrics(torch.ones(10, 10), 1.0, [1, 5])["top5_acc"] == 0.0


def test_chance_is_k_of_n():
    generator = torch.Generator().manual_seed(0)
    scores = [retrieval_metrics(torch.randn(40, 40, generator=generator), 1.0, [1, 5]) for _ in range(300)]
    assert sum(score["top1_acc"] for score in scores) / 300 == pytest.approx(1 / 40, abs=0.005)
    assert sum(score["top5_acc"] for score in scores) / 300 == pytest.approx(5 / 40, abs=0.01)


def test_ranks_equal_a_naive_loop():
    similarity = torch.randn(30, 30, generator=torch.Generator().manual_seed(1)).round(decimals=1)  # with ties
    naive = [
        1 + sum(1 for j in range(30) if j != i and similarity[i, j] >= similarity[i, i]) for i in range(len(similarity))
    ]
    assert rank_of_match(similarity).tolist() == naive


def test_the_order_of_the_gallery_changes_nothing():
    generator = torch.Generator().manual_seed(2)
    similarity = torch.randn(25, 25, generator=generator, dtype=torch.float64)
    order = torch.randperm(25, generator=generator)
    before, after = (retrieval_metrics(s, 10.0, [1, 3, 5]) for s in (similarity, similarity[order][:, order]))
    assert before == pytest.approx(after, abs=1e-12)
