import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.images.health import agreement_with_people, check, measure

RNG = np.random.default_rng(0)
SOUND = RNG.standard_normal((200, 16)).astype(np.float32)
ROWS = np.array([0, 7, 199])


def test_known_answers():
    health = measure(SOUND, ROWS, SOUND[ROWS])
    assert (health["rows"], health["dimensions"], health["non_finite"], health["duplicates"]) == (
        200,
        16,
        0,
        0,
    )
    assert abs(health["median_cosine"]) < 0.02 and health["reference_cosine"] == 1
    check(health, "x", tells_images_apart=True)
    at_right_angles = np.eye(4, dtype=np.float32)
    assert measure(at_right_angles, ROWS[:1], at_right_angles[:1])["median_cosine"] == 0
    assert measure(SOUND, ROWS, -SOUND[ROWS])["reference_cosine"] == -1


def test_a_pair_is_never_an_image_with_itself():
    opposite = np.array([[1, 2], [-1, -2]], dtype=np.float32)
    assert measure(opposite, ROWS[:1], opposite[:1])["median_cosine"] == -1


def test_centring_shows_the_error_that_a_common_part_hides():
    common = 100 * np.ones(16, dtype=np.float32)
    noisy = SOUND[ROWS] + RNG.standard_normal((3, 16)).astype(np.float32)
    health = measure(SOUND + common, ROWS, noisy + common)
    assert health["reference_cosine"] > 0.999 and health["reference_cosine_centred"] < 0.9


def broken(change) -> dict:
    values = SOUND.copy()
    change(values)
    return measure(values, ROWS, values[ROWS])


def collapse(values: np.ndarray) -> None:
    values += 1000


def repeat(values: np.ndarray) -> None:
    values[10:13] = values[9]


def blank(values: np.ndarray) -> None:
    values[:] = 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.__setitem__((5, 5), np.nan), "1 values are not finite"),
        (collapse, r"nearly the same \(median cosine 1.0000, expected at most 0.99\)"),
        (repeat, "3 of 200 embeddings repeat another one, expected at most 1%"),
        (blank, r"nearly the same \(median cosine nan"),
    ],
)
def test_what_is_out_of_bounds_is_told(change, message):
    with pytest.raises(InputError, match=message) as error:
        check(broken(change), "unaligned.h5: block last", tells_images_apart=True)
    assert str(error.value).startswith("unaligned.h5: block last: ") and "\n" not in str(
        error.value
    )


def test_a_recomputation_that_differs_is_told():
    with pytest.raises(InputError, match="set embed.precision to float32"):
        check(measure(SOUND, ROWS, SOUND[ROWS] + 1), "x", tells_images_apart=False)


def test_early_blocks_may_be_alike():
    check(broken(collapse), "x", tells_images_apart=False)


def test_agreement_with_people_is_the_order_of_all_pairs():
    pairs = np.triu_indices(200, 1)
    unit = SOUND / np.linalg.norm(SOUND, axis=1, keepdims=True)
    cosines = unit.astype(float) @ unit.T
    assert agreement_with_people(SOUND, np.exp(3 * cosines)) == 1
    assert agreement_with_people(7 * SOUND, -cosines) == -1  # the length of an embedding is nothing
    other = RNG.standard_normal((200, 200))
    assert abs(agreement_with_people(SOUND, other)) < 0.03
    # Only pairs of different images, each once
    people = np.zeros((200, 200))
    people[pairs] = cosines[pairs]
    assert agreement_with_people(SOUND, people) == 1
