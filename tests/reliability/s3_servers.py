"""The S3 servers of the integration tests, for the tests of this folder."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_INTEGRATION = Path(__file__).parents[1] / "integration"


def _module() -> ModuleType:
    """Return tests/integration/conftest.py as a module of its own: pytest has one of that name for each folder."""
    if str(_INTEGRATION) not in sys.path:
        sys.path.append(str(_INTEGRATION))
    found = importlib.util.spec_from_file_location(
        "integration_servers", _INTEGRATION / "conftest.py"
    )
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


servers = sys.modules.get("integration_servers") or _module()
S3Server, MotoServer = servers.S3Server, servers.MotoServer
