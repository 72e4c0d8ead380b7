"""Words that options, plans and replicas share; imports nothing, so that the command line can."""

from __future__ import annotations

from typing import Literal

Task = Literal["panoptic", "instance", "semantic"]
"""What a checkpoint was trained for, and what is asked of it."""

Precision = Literal["fp32", "bf16", "auto"]
"""In which numbers the network computes; auto: bf16 on a GPU that has it, else fp32."""

Compression = Literal["zstd", "deflate"]
"""Of the label COGs."""
