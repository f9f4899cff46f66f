"""nnU-Net on the datasets that SBLDM writes; it knows datasets, never the networks."""
