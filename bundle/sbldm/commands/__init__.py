"""What each command does, in values; `sbldm.cli` reads these from the command line."""
