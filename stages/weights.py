"""Get DreamSim's checkpoint of the backbone: the base weights and the LoRA that aligns them."""

from pathlib import Path

from pipeline.fetch.download import fetch_dreamsim
from pipeline.images.sample_checkpoints import make_checkpoint
from pipeline.params import read_params
from stages import run, show


def main(params: Path, weights: Path) -> str:
    p = read_params(params)
    if p.dataset == "sample":
        make_checkpoint(p.backbone, weights)
    else:
        fetch_dreamsim(p.download.dreamsim_releases, p.backbone, weights)
    files = sorted(weights.iterdir())
    show(f"{p.backbone}: checkpoint", [{"file": str(path), "MB": path.stat().st_size / 1e6} for path in files])
    return ", ".join(map(str, files))


if __name__ == "__main__":
    run(main)
