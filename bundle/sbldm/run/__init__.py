"""What every command shares while it runs: how far it is, its processes, the room on the disk."""
