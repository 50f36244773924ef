"""Write the health figures that the two embedding caches carry to a file of metrics."""

from pathlib import Path

from pipeline.images.embeddings import read_health
from stages import run, write_json


def main(unaligned: Path, aligned: Path, metrics: Path) -> str:
    write_json(metrics, {path.stem: read_health(path) for path in (unaligned, aligned)})
    return str(metrics)


if __name__ == "__main__":
    run(main)
