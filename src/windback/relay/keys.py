"""The keys of a relay for several projects."""

from __future__ import annotations

import os
from typing import Dict, List, Mapping, Tuple

from ..config import checked_slug, given_option
from ..errors import ConfigurationError
from ..secrets import Secret, checked_key, hidden, key_pairs, kind_of


def relay_keys(api_key: object, project_slug: object, api_keys: object) -> Dict[str, Secret]:
    """Return the keys of a relay by the slugs of their projects; see BrokerRelay. Raises ConfigurationError.

    The arguments are `hidden` already. The environment counts only if no key is given.
    """
    pairs: List[Tuple[object, object]] = []
    if api_keys is not None and not isinstance(api_keys, Mapping):
        raise ConfigurationError(
            f"api_keys must map the slugs of projects to keys, and is {kind_of(api_keys)}"
        )
    if api_keys is not None:
        pairs += api_keys.items()
    elif api_key is None:
        pairs += key_pairs(Secret(os.environ.get("WINDBACK_API_KEYS", "")), "WINDBACK_API_KEYS")
        api_key = hidden(os.environ.get("WINDBACK_API_KEY") or None)
    if api_key is not None:
        pairs.append((given_option({"project_slug": project_slug}, "project_slug") or "", api_key))
    found: Dict[str, Secret] = {}
    for slug, key in pairs:
        if slug in found:
            raise ConfigurationError(
                f"two keys for {f'the project {slug!r}' if slug else 'events without a project'}"
            )
        name = f"the key of {slug!r}" if slug else "api_key"
        found[checked_slug(slug) if slug else ""] = checked_key(name, key, "sk_", "pub_")
    if not found:
        raise ConfigurationError(
            "no API key: pass api_key='sk_…' or api_keys={…}, or set WINDBACK_API_KEY or WINDBACK_API_KEYS",
            code="MISSING_API_KEY",
        )
    return found
