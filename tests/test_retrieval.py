import math
import statistics

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR

from pipeline.retrieval import (
    rank_of_match,
    retrieval_metrics,
    score_queries,
    symmetric_cross_entropy,
    weigh_queries,
)


def test_loss_by_hand():
    logits = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    rows = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-2))) / 2
    columns = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-3))) / 2
    assert symmetric_cross_entropy(logits).item() == pytest.approx((rows + columns) / 2, abs=1e-6)


def test_loss_of_equal_logits_is_that_of_chance():
    assert symmetric_cross_entropy(torch.zeros(200, 200)).item() == pytest.approx(
        math.log(200), abs=1e-5
    )


def test_the_loss_and_its_gradient_are_torchs_cross_entropy():
    logits = torch.randn(3, 20, 20, dtype=torch.float64, requires_grad=True)
    targets = torch.arange(20)
    expected = [
        (F.cross_entropy(one, targets) + F.cross_entropy(one.T, targets)) / 2 for one in logits
    ]
    losses = symmetric_cross_entropy(logits)
    torch.testing.assert_close(losses, torch.stack(expected))
    gradient = (
        torch.autograd.grad(each.sum(), logits)[0] for each in (losses, torch.stack(expected))
    )
    torch.testing.assert_close(*gradient)


def test_identity_is_perfect():
    metrics = retrieval_metrics(torch.eye(50), 100.0, [1, 3, 5])
    assert metrics["top1_acc"] == metrics["top3_acc"] == metrics["top5_acc"] == 1.0
    assert (metrics["matched_cosine"], metrics["mismatched_cosine"]) == (1.0, 0.0)
    assert metrics["nice_loss"] == pytest.approx(0.0, abs=1e-6)


def test_a_constant_embedding_scores_nothing():
    assert retrieval_metrics(torch.ones(10, 10), 1.0, [1, 5])["top5_acc"] == 0.0


def test_chance_is_k_of_n():
    generator = torch.Generator().manual_seed(0)
    scores = [
        retrieval_metrics(torch.randn(40, 40, generator=generator), 1.0, [1, 5]) for _ in range(300)
    ]
    assert sum(score["top1_acc"] for score in scores) / 300 == pytest.approx(1 / 40, abs=0.005)
    assert sum(score["top5_acc"] for score in scores) / 300 == pytest.approx(5 / 40, abs=0.01)


def test_ranks_equal_a_naive_loop():
    similarity = torch.randn(30, 30, generator=torch.Generator().manual_seed(1)).round(
        decimals=1
    )  # with ties
    naive = [
        1 + sum(1 for j in range(30) if j != i and similarity[i, j] >= similarity[i, i])
        for i in range(len(similarity))
    ]
    assert rank_of_match(similarity).tolist() == naive


def test_the_order_of_the_gallery_changes_nothing():
    generator = torch.Generator().manual_seed(2)
    similarity = torch.randn(25, 25, generator=generator, dtype=torch.float64)
    order = torch.randperm(25, generator=generator)
    before, after = (
        retrieval_metrics(s, 10.0, [1, 3, 5]) for s in (similarity, similarity[order][:, order])
    )
    assert before == pytest.approx(after, abs=1e-12)


def random_similarity(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    sides = (
        torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=1)
        for _ in range(2)
    )
    return next(sides) @ next(sides).T + 0.3 * torch.eye(n)


def naive_metrics(similarity: torch.Tensor, scale: float, top_k: list[int]) -> dict[str, float]:
    """Every definition written down as loops over pairs."""
    s = similarity.double().tolist()
    n = len(s)
    metrics = {}
    for direction, table in (
        ("", s),
        ("image_to_eeg_", [list(column) for column in zip(*s, strict=True)]),
    ):
        ranks = [sum(table[i][j] >= table[i][i] for j in range(n)) for i in range(n)]
        metrics |= {f"{direction}top{k}_acc": sum(rank <= k for rank in ranks) / n for k in top_k}
        metrics[f"{direction}mean_rank"] = sum(ranks) / n
        metrics[f"{direction}median_rank"] = statistics.median(ranks)
        metrics[f"{direction}mrr"] = sum(1 / rank for rank in ranks) / n
    losses = [
        math.log(sum(math.exp(scale * value) for value in row)) - scale * row[i]
        for i, row in enumerate(s)
    ]
    columns = zip(*s, strict=True)
    losses += [
        math.log(sum(math.exp(scale * v) for v in column)) - scale * column[i]
        for i, column in enumerate(columns)
    ]
    matched = [s[i][i] for i in range(n)]
    mismatched = [s[i][j] for i in range(n) for j in range(n) if i != j]
    difference = statistics.fmean(matched) - statistics.fmean(mismatched)
    sd = math.sqrt((statistics.pvariance(matched) + statistics.pvariance(mismatched)) / 2)
    return metrics | {
        "nice_loss": sum(losses) / (2 * n),
        "matched_cosine": statistics.fmean(matched),
        "mismatched_cosine": statistics.fmean(mismatched),
        "cosine_difference": difference,
        "cosine_effect_size": difference / sd,
    }


@pytest.mark.parametrize("n", [2, 9, 40])
def test_all_metrics_equal_naive_loops(n):
    similarity = random_similarity(n, n)
    assert retrieval_metrics(similarity, 5.0, [1, 3]) == pytest.approx(
        naive_metrics(similarity, 5.0, [1, 3]), abs=1e-9
    )


def test_ranks_and_accuracies_equal_torchmetrics():
    """One query a row; relevant is the diagonal. Scores at or below zero torchmetrics takes as not retrieved."""
    similarity = random_similarity(60, 3) + 2
    for direction, table in (("", similarity), ("image_to_eeg_", similarity.T)):
        metrics = retrieval_metrics(similarity, 1.0, [1, 3, 5])
        query = torch.arange(60).repeat_interleave(60)
        relevant = torch.eye(60, dtype=torch.bool).flatten()
        for k in (1, 3, 5):
            hits = RetrievalHitRate(top_k=k)(table.flatten(), relevant, query)
            assert metrics[f"{direction}top{k}_acc"] == pytest.approx(hits.item(), abs=1e-6)
        reciprocal = RetrievalMRR()(table.flatten(), relevant, query)
        assert metrics[f"{direction}mrr"] == pytest.approx(reciprocal.item(), abs=1e-6)


def test_many_galleries_at_once_are_scored_as_one_by_one():
    galleries = torch.stack([random_similarity(12, seed) for seed in range(3)])
    together = score_queries(galleries, 4.0)
    for i, gallery in enumerate(galleries):
        for name, values in score_queries(gallery, 4.0).items():
            assert together[name][i].tolist() == pytest.approx(values.tolist(), abs=1e-12), name


def test_the_mean_loss_of_the_queries_is_the_symmetric_cross_entropy():
    similarity = random_similarity(30, 1).double()
    loss = score_queries(similarity, 7.0)["nice_loss"].mean()
    assert loss.item() == pytest.approx(symmetric_cross_entropy(7.0 * similarity).item(), abs=1e-12)


def test_counting_images_is_repeating_them():
    queries = {
        name: values.numpy()
        for name, values in score_queries(random_similarity(11, 5), 3.0).items()
    }
    counts = np.random.default_rng(0).multinomial(11, np.full(11, 1 / 11), size=20).astype(float)
    weighed = weigh_queries(queries, counts, [1, 3])
    for b, count in enumerate(counts.astype(int)):
        repeated = {name: np.repeat(values, count) for name, values in queries.items()}
        plain = weigh_queries(repeated, np.ones((1, 11)), [1, 3])
        assert {name: values[b] for name, values in weighed.items()} == pytest.approx(
            {name: values[0] for name, values in plain.items()}, abs=1e-12
        )
        assert weighed["median_rank"][b] == np.median(repeated["rank"])


def test_the_effect_size_of_what_does_not_vary_is_undefined():
    assert math.isnan(retrieval_metrics(torch.ones(10, 10), 1.0, [1])["cosine_effect_size"])


def test_nan_is_the_worst_rank():
    similarity = torch.eye(4)
    similarity[2] = math.nan
    assert rank_of_match(similarity).tolist() == [1, 1, 4, 1]
