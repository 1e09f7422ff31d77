"""One thread per process, so that the suite runs side by side; hypothesis without its clock; kernels compiled anew for
new sources."""

import os
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from tempfile import gettempdir

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("thriftgrad", deadline=None, print_blob=True)
settings.load_profile("thriftgrad")


def _cache_of_kernels() -> str:
    """A folder for numba's cache, by what is compiled: numba itself looks at one file and not at what it imports."""
    spec = find_spec("thriftgrad")
    assert spec is not None
    assert spec.origin is not None
    sources = sorted((Path(spec.origin).parent / "kernels").rglob("*.py"))
    digest = blake2b(b"".join(source.read_bytes() for source in sources), digest_size=8).hexdigest()
    return str(Path(gettempdir()) / f"thriftgrad-kernels-{os.getuid()}-{digest}")


os.environ.setdefault("NUMBA_CACHE_DIR", _cache_of_kernels())
