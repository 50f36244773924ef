"""Where the work is done: devices, cores and memory, workers and SLURM jobs, and what an interruption leaves."""
