import itertools

import numpy as np
import pytest
from scipy.stats import spearmanr

from pipeline.explain.rsa import (
    compare_geometries,
    crossnobis,
    embedding_distances,
    noise_ceiling,
    tabulate_rsa,
    variance_over_images,
)

N, R, C, T = 12, 6, 5, 8


def noise(seed: int, n: int = N, r: int = R) -> np.ndarray:
    """EEG (N, R, C, T) of noise alone, which channels share in part."""
    rng = np.random.default_rng([3, seed])
    mixing = np.eye(C) + 0.5 * rng.standard_normal((C, C))
    return np.einsum("nrct,cd->nrdt", rng.standard_normal((n, r, C, T)), mixing)


def planted(seed: int, latents: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """The same with responses that depend on the latents (N, L), in each subject in another way."""
    rng = np.random.default_rng([4, seed])
    patterns = latents @ rng.standard_normal((latents.shape[1], C * T))
    return noise(seed, len(latents)) + strength * patterns.reshape(-1, 1, C, T)


def draw(n: int, size: int, seed: int) -> np.ndarray:
    return np.random.default_rng([5, seed]).standard_normal((n, size))


def whole(eeg: np.ndarray) -> np.ndarray:
    return crossnobis(eeg, [slice(0, T)])[0]


def test_the_distance_equals_a_plain_loop_over_pairs_of_repetitions():
    """Each two different repetitions: the product of both differences, by the inverse covariance."""
    eeg = planted(0, draw(N, 3, 0))
    residuals = (eeg - eeg.mean(1, keepdims=True)).swapaxes(2, 3).reshape(-1, C)
    precision = np.linalg.inv(residuals.T @ residuals / (N * (R - 1) * T))

    windows = [slice(0, 1), slice(2, 7)]
    expected = []
    for window in windows:
        distances = []
        for i, j in itertools.combinations(range(N), 2):
            products = [
                (eeg[i, r, :, t] - eeg[j, r, :, t])
                @ precision
                @ (eeg[i, s, :, t] - eeg[j, s, :, t])
                for t in range(T)[window]
                for r, s in itertools.permutations(range(R), 2)
            ]
            distances.append(np.mean(products) / C)
        expected.append(distances)
    np.testing.assert_allclose(crossnobis(eeg, windows), expected, rtol=1e-9)
    assert crossnobis(eeg.astype(np.float32), windows) == pytest.approx(
        np.array(expected), rel=1e-3, abs=1e-4
    )


def test_the_distance_of_equal_responses_is_zero_on_average():
    """And not 2 / R, as without cross-validation: all but the share C / (N (R - 1) T) of that.

    So much the covariance of the noise knows of the trials that it whitens, the same for all pairs.
    """
    means = [whole(noise(seed)).mean() for seed in range(200)]
    error = 3 * np.std(means) / 200**0.5
    assert abs(np.mean(means)) < error + 2 / R * C / (N * (R - 1) * T)
    assert error < 0.02 * 2 / R


def test_what_a_session_adds_to_all_its_trials_cancels_out():
    """Channels and drift are independent of each other here, so that whitening only scales them."""
    rng = np.random.default_rng(0)
    eeg = rng.standard_normal((40, R, 1, T)) + 0.5 * rng.standard_normal((40, 1, 1, T))
    drift = 3 * rng.standard_normal((1, R, 1, T))
    # Scaled to white noise: with one channel, all distances change by one factor.
    ratio = whole(eeg + drift) / whole(eeg)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)


def test_a_direction_without_noise_is_left_out():
    """As after an average reference, whose channels sum to zero."""
    eeg = planted(2, draw(N, 3, 2))
    referenced = eeg - eeg.mean(2, keepdims=True)
    distances = whole(referenced)
    assert np.isfinite(distances).all()
    # One of C directions fewer, and else the same: any C - 1 of the channels say all.
    np.testing.assert_allclose(distances * C, whole(referenced[:, :, 1:]) * (C - 1), rtol=1e-6)


def test_a_geometry_is_found_by_its_own_encoder_and_not_by_an_unrelated_one():
    latents = draw(40, 6, 0)
    eeg = np.stack([whole(planted(seed, latents)) for seed in range(3)])
    own, unrelated = embedding_distances(latents), embedding_distances(draw(40, 6, 1))
    compared = compare_geometries(eeg, {"aligned": own, "unaligned": unrelated}, 40)

    assert compared["aligned"]["mean"] > 0.5
    assert compared["aligned"]["ci95"][0] > 0.3
    low, high = compared["unaligned"]["ci95"]
    assert low < 0 < high
    assert compared["difference"]["p"] < 0.001
    lower, upper = compared["noise_ceiling"]
    assert lower < upper <= 1


def test_the_correlation_is_that_of_scipy():
    eeg = np.stack([whole(planted(seed, draw(N, 3, 0), 0.3)) for seed in range(4)])
    distances = embedding_distances(draw(N, 3, 0))
    expected = np.mean([spearmanr(subject, distances).statistic for subject in eeg])
    compared = compare_geometries(eeg, {"aligned": distances}, N)
    assert compared["aligned"]["mean"] == pytest.approx(expected, abs=1e-12)
    assert "difference" not in compared


def test_images_in_another_order_give_nothing():
    """The mean over permutations of the images is zero, within its error."""
    latents = draw(20, 4, 0)
    eeg = whole(planted(0, latents))[None]
    rng = np.random.default_rng(0)
    found = []
    for _ in range(200):
        distances = embedding_distances(latents[rng.permutation(20)])
        found.append(compare_geometries(eeg, {"aligned": distances}, 20)["aligned"]["mean"])
    assert abs(np.mean(found)) < 3 * np.std(found) / 200**0.5


def test_the_noise_ceiling_of_equal_subjects_is_one():
    distances = whole(planted(0, draw(N, 3, 0)))
    assert noise_ceiling(np.stack([distances] * 3)) == pytest.approx((1, 1))
    # The scale of a subject is none of its order.
    assert noise_ceiling(np.stack([distances, 5 * distances + 2])) == pytest.approx((1, 1))
    assert np.isnan(noise_ceiling(distances[None])).all()


def test_the_noise_ceiling_is_that_of_nili():
    """By plain loops: each subject with the mean ranks of the others, and with those of all."""
    eeg = np.stack([whole(planted(seed, draw(N, 3, 0), 0.3)) for seed in range(4)])
    ranks = np.stack([np.argsort(np.argsort(subject)) for subject in eeg])
    lower = [spearmanr(eeg[s], np.delete(ranks, s, 0).mean(0)).statistic for s in range(4)]
    upper = [spearmanr(eeg[s], ranks.mean(0)).statistic for s in range(4)]
    assert noise_ceiling(eeg) == pytest.approx((np.mean(lower), np.mean(upper)))


def test_the_distances_of_embeddings():
    values = np.array([[1, 0], [2, 0], [0, 3], [-1, 0]], dtype=np.float32)
    np.testing.assert_allclose(embedding_distances(values), [0, 1, 2, 1, 2, 1], atol=1e-12)
    # Of a mix, the mean over its blocks
    mix = np.stack([values, values[[2, 1, 0, 3]]], 1)
    expected = (embedding_distances(values) + embedding_distances(values[[2, 1, 0, 3]])) / 2
    np.testing.assert_allclose(embedding_distances(mix), expected)


@pytest.mark.parametrize("kind", ["images", "pairs"])
def test_the_variance_over_images_is_the_one_that_other_images_would_show(kind):
    """Exact on average where an image adds the same to all of its pairs; a little more for noise of pairs."""
    n_images, rng = 30, np.random.default_rng(0)
    first, second = np.triu_indices(n_images, 1)
    means, variances = [], []
    for _ in range(4000):
        of_image = rng.standard_normal(n_images)
        values = of_image[first] + of_image[second]
        if kind == "pairs":
            values = rng.standard_normal(len(first))
        means.append(values.mean())
        variances.append(variance_over_images(values - values.mean(), n_images).value)
    ratio = np.mean(variances) / np.var(means)
    assert 0.95 < ratio < {"images": 1.05, "pairs": 1.4}[kind]


def test_a_bootstrap_over_images_would_give_the_noise_of_pairs_three_times_its_variance():
    """Pairs of an image with itself left out: why there is none."""
    n_images, rng = 40, np.random.default_rng(0)
    first, second = np.triu_indices(n_images, 1)
    variances = []
    for _ in range(60):
        counts = rng.multinomial(n_images, np.full(n_images, 1 / n_images), size=300)
        weights = counts[:, first] * counts[:, second]
        means = weights @ rng.standard_normal(len(first)) / weights.sum(1)
        variances.append(means.var(ddof=1))
    assert np.mean(variances) * len(first) == pytest.approx(3, abs=0.25)


def test_few_images_give_no_interval():
    eeg = np.random.default_rng(0).standard_normal((2, 6))
    compared = compare_geometries(eeg, {"aligned": np.arange(6.0)}, 4)
    assert np.isnan(compared["aligned"]["ci95"]).all()


def test_an_encoder_that_tells_no_image_apart_has_no_correlation():
    eeg = np.random.default_rng(0).standard_normal((2, 45))
    same = {"aligned": np.zeros(45), "unaligned": np.arange(45.0)}
    compared = compare_geometries(eeg, same, 10)
    assert np.isnan(compared["aligned"]["mean"])
    assert np.isfinite(compared["unaligned"]["mean"])
    summary, _ = tabulate_rsa([np.stack([x, x]) for x in eeg], same, [0.1], 10)
    assert "no difference between the encoders is shown" in summary["answer"]


def encoders(latents: np.ndarray) -> dict[str, np.ndarray]:
    other = draw(*latents.shape, 8)
    return {"unaligned": embedding_distances(other), "aligned": embedding_distances(latents)}


def test_the_table_has_a_row_a_window_and_the_summary_all_after_onset():
    latents = draw(30, 5, 0)
    windows = [slice(0, 4), slice(4, 8)]
    # Only the second window holds a response.
    subjects = []
    for seed in range(7):
        eeg = planted(seed, latents)
        eeg[..., :4] = noise(20 + seed, 30)[..., :4]
        subjects.append(crossnobis(eeg, [*windows, slice(4, 8)]))

    summary, table = tabulate_rsa(subjects, encoders(latents), [0.1, 0.3], 30)
    assert list(table["time"]) == [0.1, 0.3]
    before, after = table.to_dict("records")
    assert before["aligned_low"] < 0 < before["aligned_high"]
    assert after["aligned_low"] > 0.3
    assert after["difference_low"] > 0
    assert after["noise_ceiling_low"] > before["noise_ceiling_low"]
    assert summary["aligned"]["mean"] == pytest.approx(after["aligned"])
    assert summary["over"] == ["subjects", "test images"]
    assert summary["answer"].startswith(
        "The geometry of the aligned encoder is more like the EEG's than the unaligned one's: Spearman"
    )


def test_a_few_subjects_speak_for_themselves_alone():
    latents = draw(30, 5, 0)
    subjects = [crossnobis(planted(seed, latents), [slice(0, T)] * 2) for seed in range(2)]
    summary, _ = tabulate_rsa(subjects, encoders(latents), [0.1], 30)
    assert summary["over"] == ["test images"]
    assert summary["answer"].startswith("In these 2 subjects, too few to speak for others, the")

    alone, table = tabulate_rsa(
        subjects[:1], {"unaligned": encoders(latents)["unaligned"]}, [0.1], 30
    )
    assert "nothing to compare" in alone["answer"]
    assert not {"aligned", "difference"} & set(table)


def test_equal_encoders_are_seldom_told_apart():
    """Nothing planted: at most 5 % claims. More of it: benchmarks/explain.py calibration."""
    claims = []
    for number in range(200):
        latents = draw(20, 5, 1000 + number)
        eeg = np.stack([whole(planted(10 * number + seed, latents, 0.2)) for seed in range(2)])
        equal = {
            name: embedding_distances(np.hstack([latents, draw(20, 5, 5000 + 2 * number + i)]))
            for i, name in enumerate(("unaligned", "aligned"))
        }
        claims.append(compare_geometries(eeg, equal, 20)["difference"]["p"] <= 0.05)
    # 19 of 200 and more have a probability below 1 % where the rate is 5 %
    assert sum(claims) < 19
