"""The model that is trained: sharding, attention, heads, adapters, teachers."""
