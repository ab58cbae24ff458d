"""Changed copies of nested values."""

import copy


def with_value(value, path, new):
    """A copy of a value of dicts and lists with `new` at a path, a sequence of keys and indexes."""
    changed = copy.deepcopy(value)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return changed
