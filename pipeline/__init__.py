"""The library behind the stages; it knows no path, no command line and no DVC."""
