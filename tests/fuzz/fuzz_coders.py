"""Any bytes to every decoder, guided by coverage: symbols of the spec, or PayloadError. Not part of the test suite.

    pip install atheris
    PYTHONPATH=tests python tests/fuzz/fuzz_coders.py -max_total_time=60

The first byte of an input chooses the coder, the second one the spec, the third one how many symbols; the rest is the
stream. If the fuzzer's build lacks a package's coverage it still runs, only more blindly.
"""

from __future__ import annotations

import sys

ALPHABETS = (None, 1, 2, 3, 5, 15, 16, 255, 256, 1000, 1 << 15, 1 << 20, 1 << 40)


def main() -> None:
    """Fuzz until the time is up or something breaks."""
    import atheris

    with atheris.instrument_imports(include=["thriftgrad.wire"]):
        import thriftgrad.wire.coders as package

    import torch

    from coders.oracles import decoded_or_refused
    from thriftgrad import TensorSpec

    coders = (
        *(package.Elias(code, sparse) for code in ("gamma", "delta", "omega") for sparse in (False, True)),
        package.Huffman(),
        package.GolombRice(),
        package.ANS(),
        package.Zstd(),
    )

    def one(data: bytes) -> None:
        if len(data) < 3:
            return
        coder, kind, count = coders[data[0] % len(coders)], data[1], data[2]
        alphabet = ALPHABETS[kind % len(ALPHABETS)]
        dtype = torch.uint8 if alphabet is None or alphabet <= 256 else torch.int64
        model = alphabet is not None and alphabet <= 256 and kind % 2 == 1
        spec = TensorSpec(
            (count,),
            dtype,
            alphabet=alphabet,
            zero=(alphabet or 256) // 2 if kind < 128 or data[0] % len(coders) < 6 else None,
            probabilities=tuple(1.0 + i % 7 for i in range(alphabet or 0)) if model else None,
            variable=alphabet is None,
        )
        symbols = decoded_or_refused(coder, torch.tensor(list(data[3:]), dtype=torch.uint8), spec)
        if symbols is not None:
            stream = coder.encode(symbols, spec)
            assert len(stream) <= coder.limit_bytes(spec)
            assert torch.equal(coder.decode(stream, spec), symbols)

    torch.set_num_threads(1)
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
