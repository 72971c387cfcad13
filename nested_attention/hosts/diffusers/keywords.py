"""What `cross_attention_kwargs` hold for the attention processors that ours run."""

from __future__ import annotations

import inspect
from typing import Any

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def name_keywords(ours: Any, previous: Any) -> None:
    """Lets diffusers pass on the keywords that the previous processor takes (IP-Adapter: ip_adapter_masks).

    It drops those that the signature of `processor.__call__` does not name, `**kwargs` or not. So the object
    gets one with these names besides; what runs is the `__call__` of its class, as ever.
    """
    own, theirs = inspect.signature(ours.__call__), inspect.signature(previous.__call__)
    *first, last = own.parameters.values()  # `last` is **kwargs
    more = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in theirs.parameters.items()
        if parameter.kind in _NAMED and name not in own.parameters
    ]
    if not more:
        return

    def call(*args: Any, **kwargs: Any) -> Any:
        return type(ours).__call__(ours, *args, **kwargs)

    call.__signature__ = own.replace(parameters=[*first, *more, last])  # type: ignore[attr-defined]
    vars(ours)["__call__"] = call
