"""The settings of the server."""

import subprocess
import sys
from typing import get_args

from candid.config.fallbacks import Fallback
from candid.runs.fallback import FALLBACKS


def test_settings_load_without_torch():
    """The process that starts workers only needs the settings, and torch costs it 200 MB."""
    program = (
        "import sys, candid.serve.config, candid.serve.update_log, candid.serve.http.middleware\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_each_name_of_a_fallback_has_a_baseline():
    assert set(get_args(Fallback)) == set(FALLBACKS)
