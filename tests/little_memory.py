"""Models trained together in a process whose memory is limited: `python -m tests.little_memory MB`.

Prints how many models each group had, and whether all were trained. On a CPU; simulated.
"""

import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
import torch

from pipeline.errors import InputError
from pipeline.params import read_params
from pipeline.train import many
from pipeline.train.draws import derive_seeds
from pipeline.train.samples import Samples
from pipeline.train.training import Partition, Setup

N_MODELS = 12
N_SAMPLES = 512


def main(megabytes: int) -> None:
    """Train with so much more memory than the process has already."""
    torch.set_num_threads(1)
    recipe = read_params(Path("params.yaml")).train
    changes = {"epochs": 1, "device": "cpu", "select_on": "last"}
    samples = Samples(
        eeg=torch.randn(N_SAMPLES, 17, 100),
        image_row=torch.arange(N_SAMPLES),
        subject=np.full(N_SAMPLES, "sub-01", object),
        things_concept=np.arange(N_SAMPLES).astype(str),
        sfreq=100.0,
    )
    embeddings = torch.randn(N_SAMPLES, 64)
    setup = Setup(samples, embeddings, recipe.model_copy(update=changes), torch.device("cpu"))
    rows = np.arange(N_SAMPLES)
    partitions = [Partition(derive_seeds(seed, "pooled"), rows) for seed in range(N_MODELS)]

    # What the first training imports is no memory of a model
    many.train(setup, Partition(derive_seeds(0, "pooled"), rows[:8]))
    limit = psutil.Process().memory_info().vms + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with tempfile.TemporaryDirectory() as states:
        results = many.train_many(setup, partitions, Path(states))

    for result in {str(result) for result in results if isinstance(result, InputError)}:
        print(result)
    print(sum(not isinstance(result, InputError) for result in results), "trained")


if __name__ == "__main__":
    main(int(sys.argv[1]))
