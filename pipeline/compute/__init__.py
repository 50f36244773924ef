"""Where and how work is done: devices, memory, workers, SLURM jobs, and interrupted work."""
