"""Raw recordings with every combination of options, against the plain program: the test suite tries a few.

python -m tests.raw_options
"""

import tempfile
import zipfile
from pathlib import Path

from tests.raw_eeg import make_raw_subject
from tests.test_things_eeg2_raw import EVERY, Z_SCORES, N, test_prepared_as_by_a_plain_program


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        subject = make_raw_subject(Path(folder), N, compression=zipfile.ZIP_DEFLATED)
        for options in [*EVERY, *Z_SCORES]:
            test_prepared_as_by_a_plain_program(options, subject)
    print(f"{len(EVERY) + len(Z_SCORES)} combinations of options: as the plain program")


if __name__ == "__main__":
    main()
