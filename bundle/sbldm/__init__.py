"""Slice-based latent diffusion (SBLDM) for joint FLAIR + tumour-mask synthesis."""

import os

__version__ = "0.1.0"

# Threads that spin while they wait starve each other beside another busy process. OpenMP reads it when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
