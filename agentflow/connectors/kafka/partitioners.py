"""How Kafka clients spread keys over partitions; a job has to agree with those that feed it."""

from __future__ import annotations

import zlib
from collections.abc import Callable

Partitioner = Callable[[bytes, int], int]
"""(key, number of partitions) → partition."""

_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(key: bytes, partitions: int) -> int:
    """Return the partition that Java clients choose.

    Source: org.apache.kafka.common.utils.Utils.murmur2, after Austin Appleby's MurmurHash2.
    """
    length = len(key)
    hashed = (0x9747B28C ^ length) & _MASK
    whole = length & ~3
    for start in range(0, whole, 4):
        k = int.from_bytes(key[start : start + 4], "little") * _M & _MASK
        k = (k ^ (k >> 24)) * _M & _MASK
        hashed = (hashed * _M & _MASK) ^ k
    rest = key[whole:]
    if rest:
        hashed = (hashed ^ int.from_bytes(rest, "little")) * _M & _MASK
    hashed = (hashed ^ (hashed >> 13)) * _M & _MASK
    hashed ^= hashed >> 15
    return (hashed & 0x7FFFFFFF) % partitions


def crc32(key: bytes, partitions: int) -> int:
    """Return the partition that librdkafka's `consistent_random` chooses for a key."""
    return zlib.crc32(key) % partitions


PARTITIONERS: dict[str, Partitioner] = {"murmur2": murmur2, "crc32": crc32}
