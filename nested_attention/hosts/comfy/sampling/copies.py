"""Values that a deep copy shares."""

from __future__ import annotations

from typing import Any


class Shared:
    """A deep copy of it is itself.

    Other packs copy all of model_options while sampling. What we keep there are values, some of them large,
    and one run whoever asks.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self
