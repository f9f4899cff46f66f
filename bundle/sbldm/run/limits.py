"""What is taken at all: words to choose from, and the largest numbers; more is a slip of the hand, said at once."""

from typing import Literal

__all__ = [
    "CLEANEST",
    "LARGEST",
    "MOST_BATCH",
    "MOST_ITERATIONS",
    "MOST_MINUTES",
    "MOST_PAIRS",
    "MOST_PROCESSES",
    "MOST_SEED",
    "NOISIEST",
    "Channel",
    "Group",
    "Guide",
    "Own",
    "Sampler",
    "Spacing",
]

Channel = Literal["flair", "t1", "t1ce", "t2"]
Sampler = Literal["ddim", "ddpm", "dpm_solver", "unipc", "heun"]
Spacing = Literal["karras", "logsnr"]  # of the times of the solvers
Guide = Literal["early", "unasked"]  # what guidance leads away from
Own = Literal["kept", "healed"]  # what becomes of a receiver's own tumour
Group = Literal[
    "similarity", "distribution", "channels", "tumours", "tissues", "slices", "seam", "copies", "requests", "fit"
]

LARGEST = 1e6  # of a request, in ml, mm2 or mm: keeps the arithmetic finite
MOST_SEED = 2**32 - 1  # torch heeds no more
MOST_PAIRS = 1_000_000  # their names have six digits
MOST_PROCESSES = 1024
MOST_BATCH = 1024
MOST_ITERATIONS = 100_000_000  # nnU-Net's own 250,000 take a day on a GPU
MOST_MINUTES = 365 * 24 * 60
NOISIEST, CLEANEST = 40.0, 0.03  # sigma / alpha where the solvers begin and whence they leap unless told
