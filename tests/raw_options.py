"""Raw recordings with every combination of options, against the plain program: the test suite tries each seventh.

python -m tests.raw_options
"""

import tempfile
import zipfile
from pathlib import Path

from tests.raw_eeg import make_raw_subject
from tests.test_things_eeg2_raw import EVERY, N, test_prepared_as_by_a_plain_program


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        subject = make_raw_subject(Path(folder), N, compression=zipfile.ZIP_DEFLATED)
        for options in EVERY:
            test_prepared_as_by_a_plain_program(options, subject)
    print(f"{len(EVERY)} combinations of options: as the plain program")


if __name__ == "__main__":
    main()
