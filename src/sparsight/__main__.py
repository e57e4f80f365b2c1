"""`python -m sparsight` is the command `sparsight`."""

import sys

from .cli.main import main

sys.exit(main())
