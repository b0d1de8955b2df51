import sys
from types import ModuleType

import windback

sys.modules["tasks"] = ModuleType("tasks")
sys.argv = ["rq", "--version"]


def charge():
    """Do what the page has no words for."""
