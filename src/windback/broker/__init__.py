"""Redis between applications and relays: what stands in its streams, who writes there and who reads."""
