"""Types that settings of several sections have."""

from typing import Annotated

from blockd.toml_decode import Range, SizeText

MiB = 1 << 20
Size = Annotated[int, SizeText()]
Seconds = Annotated[float, Range(0.0, 3600.0)]
Count = Annotated[int, Range(1, 1 << 20)]
