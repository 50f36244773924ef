"""Workers killed at random moments, for as long as you like; every result must be right.

python -m tests.kills [KILLS [SEED]]     # 30 kills take about two minutes
"""

import random
import sys
import tempfile
from pathlib import Path

from tests.test_workers import expected, kill_at_random


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6)
    n_tasks = 2 * kills
    with tempfile.TemporaryDirectory() as folder:
        found = kill_at_random(Path(folder), n_tasks, kills, seed)
    wrong = [i for i, result in expected(n_tasks).items() if found[i] != result]
    assert not wrong, f"seed {seed}: tasks {wrong} have wrong results"
    print(f"{kills} kills, {n_tasks} tasks, all right (seed {seed})")


if __name__ == "__main__":
    main()
