"""The command `spectra-nn`, as `python -m spectra_nn`."""

import sys

from spectra_nn.cli import main

if __name__ == "__main__":
    sys.exit(main())
