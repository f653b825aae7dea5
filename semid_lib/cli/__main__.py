"""`python -m semid_lib.cli` and `torchrun -m semid_lib.cli` do what the command `semid` does."""

import sys

from semid_lib.cli import main

sys.exit(main())
