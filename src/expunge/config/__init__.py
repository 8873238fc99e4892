"""Recipes: the schema of a run and how a YAML file plus `a.b=c` overrides becomes one."""
