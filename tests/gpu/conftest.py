"""The kernels for the GPU against their definition, interpreted on the CPU: ``make test-gpu-interpreted``.

Triton's interpreter takes some eight seconds for a million elements, so tensors are small.
"""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["*.py"]
