"""What the embedding caches say of themselves, as metrics."""

import json
from pathlib import Path

from pipeline.files import replacing
from pipeline.images.embeddings import read_health
from stages import run


def main(unaligned: Path, aligned: Path, metrics: Path) -> str:
    health = {path.stem: read_health(path) for path in (unaligned, aligned)}
    with replacing(metrics) as temporary:
        temporary.write_text(json.dumps(health, indent=2) + "\n")
    return str(metrics)


if __name__ == "__main__":
    run(main)
