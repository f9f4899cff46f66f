"""What every command shares: typed values, progress, processes, limits, room on the disk."""
