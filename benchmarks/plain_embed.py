"""Images embedded with `dreamsim` as a user's own script would: read, transform, embed, one batch after the other.

Run by its path, not as a module, so that nothing of this project sets how torch's threads wait; it answers each line
`<batch size> <image> <image> ...` on its input with `<seconds> <seconds of all cores> <file of the embeddings>`.
"""

import io
import sys
import time
import warnings
import zipfile
from pathlib import Path

import dreamsim
import numpy as np
import torch
from PIL import Image


@torch.no_grad()
def embed(
    model: torch.nn.Module,
    transform,
    archive: zipfile.ZipFile,
    names: list[str],
    size: int,
    device: str,
) -> np.ndarray:
    parts = []
    for start in range(0, len(names), size):
        images = [
            Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            for name in names[start : start + size]
        ]
        parts.append(
            model.embed(torch.cat([transform(image) for image in images]).to(device)).cpu().numpy()
        )
    return np.concatenate(parts)


def main(backbone: str, weights: str, images: str, device: str, out: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, about dreamsim's adapting twice
        model, transform = dreamsim.dreamsim(
            dreamsim_type=backbone, cache_dir=weights, normalize_embeds=False, device=device
        )
    with zipfile.ZipFile(images) as archive:
        for line in sys.stdin:
            size, *names = line.split()
            wall, work = time.perf_counter(), time.process_time()
            embeddings = embed(model, transform, archive, names, int(size), device)
            wall, work = time.perf_counter() - wall, time.process_time() - work
            np.save(Path(out), embeddings)
            print("done", wall, work, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
