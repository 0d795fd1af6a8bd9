"""What the tests are written with, and no test: runs, packs, models, cases, a second reader, a browser, toys."""

import pytest

for _module in ("command_line", "method_cases", "page_driver", "places", "small_runs", "works"):
    pytest.register_assert_rewrite(f"{__name__}.{_module}")  # whose assertions say what they compared
