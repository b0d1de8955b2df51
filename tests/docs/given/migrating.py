from types import SimpleNamespace
from unittest.mock import Mock

from windback import Windback

posthog = Mock()
user = SimpleNamespace(id=7, email="jane@example.com")
client = Windback()
