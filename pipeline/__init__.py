"""The library behind the stages; it knows no path, no command line and no DVC."""

import os

# Files appear whole, under their names, so that nobody needs HDF5's locks.
# Some network disks have none.
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
