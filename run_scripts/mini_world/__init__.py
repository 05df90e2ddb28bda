"""The small world: invented peoples, occupations and traits, and the sentences made of them (standard library only)."""
