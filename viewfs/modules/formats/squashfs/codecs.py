"""Decompressing blocks with each of the six algorithms of squashfs, never to more bytes than a block can have.

All of these libraries are imported at once, because the server is sealed off before it knows which one it needs; and
all of them let other threads run while they work.
"""

from __future__ import annotations

import lzma
import sys
from collections.abc import Callable

import deflate
import lz4.block
import lzallright

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from viewfs.modules.formats.squashfs.layout import Compression
from viewfs.modules.framework.damage import damaged

__all__ = ["Decompressor", "decompressor"]

#: (compressed bytes, maximum length of the content) → the content. Raises OSError(EUCLEAN).
Decompressor = Callable[[bytes, int], bytes | bytearray]

#: Bytes that the decompressor of an xz or lzma block may use: a dictionary is no larger than a block.
_LZMA_MEMORY = 32 << 20
#: A window of 1 << 21 bytes, which is twice the largest block.
_ZSTD_OPTIONS = {int(zstd.DecompressionParameter.window_log_max): 21}


def _gzip(data: bytes, limit: int) -> bytearray:
    return deflate.zlib_decompress(data, limit)


def _xz(data: bytes, limit: int) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, _LZMA_MEMORY).decompress(data, limit + 1)


def _lzma(data: bytes, limit: int) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_ALONE, _LZMA_MEMORY).decompress(data, limit + 1)


def _lzo(data: bytes, limit: int) -> bytes | bytearray:
    return lzallright.LZOCompressor.decompress(data, limit)


def _lz4(data: bytes, limit: int) -> bytes:
    content: bytes = lz4.block.decompress(data, uncompressed_size=limit)
    return content


def _zstd(data: bytes, limit: int) -> bytes:
    return zstd.ZstdDecompressor(options=_ZSTD_OPTIONS).decompress(data, limit + 1)


_CODECS: dict[Compression, Decompressor] = {
    Compression.GZIP: _gzip,
    Compression.LZMA: _lzma,
    Compression.LZO: _lzo,
    Compression.XZ: _xz,
    Compression.LZ4: _lz4,
    Compression.ZSTD: _zstd,
}


def decompressor(compression: Compression) -> Decompressor:
    """The function that decompresses a block."""
    decode = _CODECS[compression]

    def decompress(data: bytes, limit: int) -> bytes | bytearray:
        try:
            content = decode(data, limit)
        except MemoryError:
            raise
        # Each library has exceptions of its own, some derived directly from Exception; all mean the same here.
        except Exception as error:
            raise damaged(f"a block can't be decompressed: {error}") from None
        if len(content) > limit:
            raise damaged(f"a block has more than {limit} bytes once it is decompressed")
        return content

    return decompress
