"""Slice-based latent diffusion (SBLDM) for joint FLAIR + tumour-mask synthesis."""

__version__ = "0.1.0"
