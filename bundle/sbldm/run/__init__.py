"""What a run is made of: typed values, and (beside this package, in `sbldm.runs`) the paths of its folder."""
