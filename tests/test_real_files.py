"""Published files as they are, where the environment variable ALIGNED_EEG_REAL_FILES names a folder of them.

    things/image_metadata.npy           of THINGS-EEG2 (OSF y63gw), CC BY 4.0
    things/item_names.tsv               the 1,854 concepts in THINGS' order (LukasMut/VICE, data/files)
    things/Categories_final_20200131.tsv   THINGS' categories (ViCCo-Group/THINGS-data, MRI/data), CC0
    things/file_names_THINGS.txt        the file names of THINGS, sorted by path (ViCCo-Group/dimension_encoding, data/66d)
    human/vice_things_1854x42.npy       VICE, people's similarity of them (LukasMut/VICE, embeddings/things), GPL-3.0
    nice/clip_feature_maps_test.npy     CLIP ViT-L/14's features of the 200 test images (eeyhsong/NICE-EEG, dnn_feature)
    glocal/<model>__<module>.npz        gLocal's transforms (LukasMut/gLocal)

None of them is in this project: VICE's licence is another one.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.human import find_rows, read_categories, triplet_similarity
from pipeline.datasets.known_files import HUMAN_SIMILARITY, THINGS_CATEGORIES
from pipeline.datasets.things_eeg2 import read_metadata
from pipeline.explain.near_misses import (
    measure_near_misses,
    percentiles,
    retrieved_instead,
)
from pipeline.explain.rsa import cosine_similarity
from pipeline.files import sha256
from pipeline.images.embeddings import read_embeddings, write_embeddings
from pipeline.images.health import agreement_with_people
from pipeline.images.models.glocal import read_transform, write_aligned
from pipeline.images.models.table import IMAGE_MODELS

VARIABLE = "ALIGNED_EEG_REAL_FILES"
FILES = Path(os.environ.get(VARIABLE, "/nowhere"))
pytestmark = pytest.mark.skipif(
    VARIABLE not in os.environ, reason=f"{VARIABLE} names no folder of published files"
)

TRANSFORMS = {
    "clip_vitl14": "clip_ViT-L__14__visual",
    "open_clip_vitl14_laion400m": "OpenCLIP_ViT-L-14_laion400m_e32__visual",
    "open_clip_vitl14_laion2b": "OpenCLIP_ViT-L-14_laion2b_s32b_b82k__visual",
    "dino_vitb16": "dino-vit-base-p16__norm",
    "dino_vitb8": "dino-vit-base-p8__norm",
    "dinov2_vitb14": "dinov2-vit-base-p14__norm.first-upload-d1860d3",
    "dinov2_vitl14": "dinov2-vit-large-p14__norm",
}


@pytest.mark.parametrize("backbone", TRANSFORMS)
def test_each_transform_is_the_published_one_and_is_read(backbone: str) -> None:
    path = FILES / f"glocal/{TRANSFORMS[backbone]}.npz"
    [known] = [file for file in IMAGE_MODELS[backbone].published if file.root == "glocal"]
    assert sha256(path) == known.sha256
    transform = read_transform(path)
    size = 1024 if backbone == "dinov2_vitl14" else 768
    assert transform.weights.shape == (size, size)
    assert abs(transform.mean) < 0.1 and 0.4 < transform.std < 3


def pairs(similarity: np.ndarray) -> np.ndarray:
    return similarity[np.triu_indices(len(similarity), 1)]


def rows_of_vice(things_concepts: list[str]) -> np.ndarray:
    """The rows of VICE of these concepts, which are called as in `00010_aircraft_carrier`.

    They are in the order of THINGS' files. That is the order of the indices in the triplets that it was learned from,
    and not that of THINGS' list of concepts: in that, 21 rows would be another concept's, such as chicken wire between
    shrimps and croissants.
    """
    files = (FILES / "things/file_names_THINGS.txt").read_text().split()
    concepts = list(dict.fromkeys(file.rpartition("_")[0] for file in files))
    return np.array([concepts.index(concept.partition("_")[2]) for concept in things_concepts])


def test_the_rows_of_spose_are_found_by_the_published_words(tmp_path: Path) -> None:
    """The words of SPoSE's rows, to the last byte, and the concepts of THINGS-EEG2 among them."""
    things = [
        line.split("\t") for line in (FILES / "things/item_names.tsv").read_text().splitlines()[1:]
    ]
    words = [word for word, *_ in things]
    file = tmp_path / "names_1854.csv"
    file.write_bytes("\r\n".join(words).encode("utf-8-sig"))  # the last line has no end
    known = HUMAN_SIMILARITY["names_1854.csv"]
    assert (file.stat().st_size, sha256(file)) == (known.size, known.sha256)

    images = read_metadata(FILES / "things/image_metadata.npy")
    concepts = sorted({*images["train"]["things_concept"], *images["test"]["things_concept"]})
    rows = find_rows(words, concepts, file)
    ids = [row[-1] for row in things]
    assert [ids[row] for row in rows] == [concept.partition("_")[2] for concept in concepts]

    # The numbers in front of the names are another order.
    numbers = np.array([int(concept.partition("_")[0]) - 1 for concept in concepts])
    assert len(numbers) == 1854 and (numbers != rows).sum() == 20
    test = images["test"]["things_concept"].tolist()
    wrong = [c for c in test if int(c[:5]) - 1 != find_rows(words, [c], file)[0]]
    assert wrong == ["00820_ice_cube", "00821_ice_pack", "01150_pepper1"]


def test_the_categories_are_found_by_the_names_of_all_concepts() -> None:
    file = FILES / "things/Categories_final_20200131.tsv"
    known = THINGS_CATEGORIES[file.name]
    assert (file.stat().st_size, sha256(file)) == (known.size, known.sha256)
    words, categories, category = read_categories(file)
    assert category.shape == (1854, 53) and category.sum() == 2355

    things = (FILES / "things/item_names.tsv").read_text().splitlines()[1:]
    names = [line.split("\t")[-1] for line in things]
    assert (find_rows(words, names, file) == np.arange(1854)).all()
    of = {name: {*np.array(categories)[row]} for name, row in zip(names, category, strict=True)}
    assert of["bat1"] == {"animal", "mammal"} and of["bat2"] == {"sports equipment", "weapon"}
    assert (~category.any(axis=1)).sum() == 406

    test = read_metadata(FILES / "things/image_metadata.npy")["test"]["things_concept"].tolist()
    of_test = category[find_rows(words, test, file)]
    assert (len(test), of_test.any(axis=1).sum(), (of_test.sum(1) > 1).sum()) == (200, 194, 122)


def test_gLocal_brings_real_features_nearer_to_people(tmp_path: Path) -> None:
    """Of the judgements that it was fitted on, so that this tests the path and not gLocal."""
    images = read_metadata(FILES / "things/image_metadata.npy")["test"]
    features = np.load(FILES / "nice/clip_feature_maps_test.npy")[:, 0]
    about = {"backbone": "clip_vitl14", "tokens": "cls"}
    blocks = [("last", features, {"feature": "CLS token, projected"})]
    write_embeddings(tmp_path / "unaligned.h5", [*images["image_ids"]], blocks, about)
    vice = np.load(FILES / "human/vice_things_1854x42.npy").astype(float)
    rows = rows_of_vice([*images["things_concept"]])
    human = vice[rows] @ vice[rows].T
    assert len(pairs(human)) == 19_900

    transform = FILES / f"glocal/{TRANSFORMS['clip_vitl14']}.npz"
    write_aligned(tmp_path / "unaligned.h5", transform, tmp_path / "aligned.h5")
    aligned = read_embeddings(tmp_path / "aligned.h5", "last")
    assert [*aligned.image_ids] == [*images["image_ids"]]
    embeddings = {"unaligned": features, "clip_vitl14": aligned.values}

    # Transforms of the same size that belong to other models
    for name in TRANSFORMS.keys() - {"clip_vitl14", "dinov2_vitl14"}:
        of_another = read_transform(FILES / f"glocal/{TRANSFORMS[name]}.npz")
        embeddings[name] = of_another(features)

    agreement = {name: agreement_with_people(values, human) for name, values in embeddings.items()}
    print({name: round(float(value), 4) for name, value in agreement.items()})  # by pytest -rP
    # As the similarity of SPoSE is computed, and not its argument, the dot product
    chosen = triplet_similarity(vice, rows)
    probability = {
        name: agreement_with_people(embeddings[name], chosen)
        for name in ("unaligned", "clip_vitl14")
    }
    print(probability)
    assert probability["unaligned"] == pytest.approx(0.394, abs=5e-4)
    assert probability["clip_vitl14"] == pytest.approx(0.838, abs=5e-4)
    # And before any EEG, the five images nearest to each are nearer for people
    near = {}
    for name in probability:
        nearest = retrieved_instead(cosine_similarity(embeddings[name]))
        near[name] = measure_near_misses(nearest, percentiles(chosen)).retrieved
    print(near)
    assert near["unaligned"] == pytest.approx(0.889, abs=5e-4)
    assert near["clip_vitl14"] == pytest.approx(0.942, abs=5e-4)
    assert agreement.pop("unaligned") == pytest.approx(0.407, abs=5e-4)
    assert agreement.pop("clip_vitl14") == pytest.approx(0.847, abs=1e-3)
    assert max(agreement.values()) < 0.45  # those of other models
