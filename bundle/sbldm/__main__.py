"""`python -m sbldm` is another way to type `sbldm`."""

import sys

from sbldm.cli import main

if __name__ == "__main__":
    sys.exit(main())
