"""``python -m tests.hostile``: read many damaged files, see `tests.hostile.campaign`."""

from tests.hostile.campaign import main

raise SystemExit(main())
