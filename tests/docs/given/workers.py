import sys

import windback
from windback import context

email, plan = "jane@example.com", "pro"
