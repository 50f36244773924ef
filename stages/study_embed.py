"""Embed every image once for the study: the stage `embed`, with the blocks of the study's grid."""

from pathlib import Path

from pipeline.errors import InputError
from pipeline.images.models.table import FeaturesFile, find_model
from pipeline.params import read_params
from stages import run
from stages.embed import Paths, embed
from stages.names import check_study


def main(
    params: Path,
    backbone: str,
    alignment: str,
    images: Path,
    image_table: Path,
    weights: Path,
    unaligned: Path,
    target: Path,
) -> str:
    p = read_params(params)
    check_study(p)

    blocks = [block for block in p.study.blocks if block != "mix"]  # mix is made of the others
    if not blocks:
        raise InputError(
            f"{params}: study.blocks is mix alone: name the blocks that it mixes beside it"
        )
    # A file of features has no other block; its cells are those of the block last.
    if isinstance(find_model(backbone).unaligned, FeaturesFile):
        blocks = ["last"]

    # All else as in the pipeline, so that both share the embeddings in the cache folder.
    parameters = p.embed.model_copy(update={"blocks": blocks})

    paths = Paths(images, image_table, weights, unaligned, target)
    return embed(parameters, backbone, alignment, paths)


if __name__ == "__main__":
    run(main)
