"""What people read: datasheets, tables, figures, reports."""

from sbldm.pages.sheets import show_pairs

__all__ = ["show_pairs"]
