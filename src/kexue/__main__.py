"""`python -m kexue`: the command line, where no `kexue` is on the path."""

import sys

from kexue.cli import main

sys.exit(main())
