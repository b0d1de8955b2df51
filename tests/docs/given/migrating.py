from types import SimpleNamespace

from windback import Windback

posthog = SimpleNamespace(capture=print)
user = SimpleNamespace(id=7, email="jane@example.com")
client = Windback()
