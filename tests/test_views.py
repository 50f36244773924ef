from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import InputError
from pipeline.images.views import check_views, degrade

SIDE = 224
NOISY = torch.randint(
    0, 256, (3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)
GREY = torch.full((3, SIDE, SIDE), 128, dtype=torch.uint8)


@pytest.mark.parametrize(
    "view", ["original", "blur-0.1", "blur-8", "blur-64", "low-resolution-2", "low-resolution-223"]
)
@pytest.mark.parametrize("grey", [0, 7, 255])
def test_a_picture_of_one_colour_stays_the_same(view, grey):
    picture = torch.full((3, SIDE, SIDE), grey, dtype=torch.uint8)
    assert torch.equal(degrade(picture, view, "a.jpg"), picture)


@pytest.mark.parametrize("view", ["original", "blur-2.6", "low-resolution-22", "noise-0.1"])
def test_a_view_is_a_picture_and_leaves_the_original_alone(view):
    picture = NOISY.clone()
    degraded = degrade(picture, view, "a.jpg")
    assert degraded.shape == picture.shape and degraded.dtype == torch.uint8
    assert torch.equal(picture, NOISY) and torch.equal(degraded, picture) == (view == "original")


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize(
    ("view", "sd"), [("blur-1.7", 1.7), ("blur-2.6", 2.6), ("blur-8", 8.0), ("blur-9.8", 9.8)]
)
def test_the_steps_across_a_blurred_edge_are_a_gaussian_of_that_sd(view, sd, axis):
    """The difference of neighbours is a blurred impulse, with 255 levels to it; the kernel's end costs up to 4 %."""
    edge = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    edge.narrow(axis, SIDE // 2, SIDE // 2).fill_(255)
    impulse = np.diff(degrade(edge, view, "a.jpg").double().mean(dim=(0, 3 - axis)).numpy()) / 255
    at = np.arange(SIDE - 1)
    mean = impulse @ at
    assert impulse.sum() == pytest.approx(1, abs=1e-9) and mean == pytest.approx(
        SIDE // 2 - 1, abs=1e-9
    )
    assert 0.96 * sd < np.sqrt(impulse @ (at - mean) ** 2) < 1.002 * sd


# What OpenCV 4.10 and 5.0 make of a line of one pixel: half of the kernel, from its edge to its middle.
KERNELS = {
    "blur-0.8": [64, 128],
    "blur-1.1": [16, 64, 96],
    "blur-1.4": [8, 28, 56, 72],
    "blur-1.7": [4, 13, 30, 51, 60],
    "blur-2.6": [1, 3, 6, 12, 20, 30, 36, 40],
    "blur-7.1": [0, 0, 1, 0, 1, 0, 2, 1, 2, 3, 3, 5, 5, 6, 8, 9, 10, 11, 13, 13, 14, 14, 14],
}


@pytest.mark.parametrize("view", KERNELS)
def test_a_blurred_line_is_opencv_s_kernel(view):
    line = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    line[:, :, 112] = 255
    half = KERNELS[view]
    expected = [*half, *half[-2::-1]]
    blurred = degrade(line, view, "a.jpg")[:, 0, 113 - len(half) : 112 + len(half)]
    assert blurred.tolist() == [expected] * 3


def blurred_in_numpy(picture: np.ndarray, n_pixels: int) -> np.ndarray:
    """OpenCV's blur of 8-bit pictures (H, W, 3) by a kernel of n pixels, in whole numbers."""
    sd, middle = 0.15 * n_pixels + 0.35, n_pixels // 2
    weights = [np.exp(-(((i - middle) / sd) ** 2) / 2) for i in range(n_pixels)]
    kernel, left = [0] * n_pixels, 0.0
    for i in range(middle):
        left += 256 * weights[i] / sum(weights)
        kernel[i] = kernel[-1 - i] = round(left)
        left -= kernel[i]
    kernel[middle] = 256 - sum(kernel)

    wide = np.pad(picture.astype(np.int64), [(middle, middle), (middle, middle), (0, 0)], "reflect")
    rows = sum(value * wide[:, i : i + SIDE] for i, value in enumerate(kernel))
    return sum(value * rows[i : i + SIDE] for i, value in enumerate(kernel)) + 2**15 >> 16


def several_pictures() -> list[np.ndarray]:
    """Noise, squares of black and white, and something smooth."""
    rng = np.random.default_rng(0)
    squares = np.kron(rng.integers(0, 2, (28, 28, 3)), np.full((8, 8, 1), 255)).astype(np.uint8)
    colours = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    return [
        NOISY.permute(1, 2, 0).numpy(),
        squares,
        np.array(colours.resize((SIDE, SIDE), Image.Resampling.BICUBIC)),
    ]


def degraded(picture: np.ndarray, view: str) -> np.ndarray:
    return degrade(torch.from_numpy(picture).permute(2, 0, 1), view, "a").permute(1, 2, 0).numpy()


def name_of_blur(n_pixels: int) -> str:
    return f"blur-{0.15 * n_pixels + 0.35:.2g}"


PUBLISHED_KERNELS = [*range(3, 64, 6), 51]  # of the AAAI 2026 work and NeuroBridge; UBP


@pytest.mark.parametrize("n_pixels", [n for n in PUBLISHED_KERNELS if n > 9])
def test_a_wide_blur_is_opencv_s_formula(n_pixels):
    for picture in several_pictures():
        expected = blurred_in_numpy(picture, n_pixels)
        assert np.array_equal(degraded(picture, name_of_blur(n_pixels)), expected)


@pytest.mark.parametrize("n_pixels", [5, 7, *PUBLISHED_KERNELS])
def test_a_blur_is_opencv_s_own(n_pixels):
    cv2 = pytest.importorskip(
        "cv2", reason="OpenCV is not installed (pip install opencv-python-headless)"
    )
    for picture in several_pictures():
        expected = cv2.GaussianBlur(picture, (n_pixels, n_pixels), 0)
        assert np.array_equal(degraded(picture, name_of_blur(n_pixels)), expected)


def test_a_low_resolution_is_that_of_pillow():
    picture = Image.fromarray(NOISY.permute(1, 2, 0).numpy())
    bilinear = Image.Resampling.BILINEAR
    expected = np.array(picture.resize((22, 22), bilinear).resize((SIDE, SIDE), bilinear))
    got = degrade(NOISY, "low-resolution-22", "a.jpg").permute(1, 2, 0).numpy()
    assert np.abs(got.astype(int) - expected).max() <= 1, "both count in whole numbers"


def test_a_low_resolution_holds_nothing_finer_than_its_pixels():
    board = 255 * ((torch.arange(SIDE)[:, None] + torch.arange(SIDE)) % 2).to(torch.uint8).expand(
        3, -1, -1
    )
    inside = degrade(board, "low-resolution-112", "a.jpg")[:, 4:-4, 4:-4]
    assert set(inside.unique().tolist()) <= {127, 128}


@pytest.mark.parametrize("sd", [0.02, 0.098])
def test_noise_has_its_sd_in_each_pixel_and_colour_apart(sd):
    noise = (degrade(GREY, f"noise-{sd}", "a.jpg").double() - 128) / 255
    assert noise.std() == pytest.approx(
        np.hypot(sd, 1 / 255 / np.sqrt(12)), rel=0.01
    )  # and that of rounding
    assert abs(noise.mean()) < sd / 100
    assert np.abs(np.corrcoef(noise.flatten(1).numpy()) - np.eye(3)).max() < 0.02
    assert abs(np.corrcoef(noise[:, :, 1:].flatten(), noise[:, :, :-1].flatten())[0, 1]) < 0.02


def test_noise_is_the_image_s_own_whatever_else_is_drawn():
    first = degrade(GREY, "noise-0.1", "a.jpg")
    torch.manual_seed(7)
    with ThreadPoolExecutor(4) as pool:
        several = list(pool.map(lambda _: degrade(GREY, "noise-0.1", "a.jpg"), range(8)))
    assert all(torch.equal(first, again) for again in several)
    assert not torch.equal(first, degrade(GREY, "noise-0.1", "b.jpg"))
    state = torch.get_rng_state()
    degrade(GREY, "noise-0.1", "a.jpg")
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_stays_within_black_and_white():
    degraded = degrade(NOISY, "noise-1", "a.jpg")
    assert (degraded == 0).float().mean() > 0.2 and (degraded == 255).float().mean() > 0.2


@pytest.mark.parametrize(
    "view",
    [
        *(
            "",
            "blur",
            "blur-",
            "blur-0",
            "blur-8.0",
            "blur-08",
            "blur--8",
            "blur-65",
            "blur-1e1",
            "blur-８",
            "Blur-8",
        ),
        *(
            "low-resolution-1",
            "low-resolution-2.5",
            "low-resolution-224",
            "lowresolution-22",
            "low-22",
        ),
        *(
            "noise-0",
            "noise-1.1",
            "noise-.1",
            "noise-25",
            "noise-0.1\n",
            "original-1",
            "mosaic-5",
            "blur-8/last",
        ),
    ],
)
def test_a_wrong_name_is_told_in_one_sentence(view):
    for wrong in (lambda: check_views(["original", view]), lambda: degrade(GREY, view, "a.jpg")):
        with pytest.raises(InputError) as error:
            wrong()
        told = str(error.value)
        assert (
            f"embed.views has {view!r}: should be original, blur-<sd in pixels" in told
            and "\n" not in told
        )


def test_the_original_comes_first_and_no_view_twice():
    check_views(["original"])
    check_views(
        [
            "original",
            "blur-64",
            "blur-0.5",
            "low-resolution-223",
            "low-resolution-2",
            "noise-1",
            "noise-0.001",
        ]
    )
    with pytest.raises(
        InputError, match=r"embed.views is \['blur-8', 'original'\]: its first must be original"
    ):
        check_views(["blur-8", "original"])
    with pytest.raises(InputError, match="embed.views names a view twice"):
        check_views(["original", "blur-8", "blur-8"])
