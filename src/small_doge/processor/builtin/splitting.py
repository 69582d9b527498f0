"""Where a key falls in [0, 1): what is below the test share is test. Stable across machines, runs and growing data."""

import hashlib


def position(key: str) -> float:
    """The uniform hash of a key (a group, a problem's numbers) that `processor.documents.key_is_test` compares too."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, person=b"doge-test").digest()
    return int.from_bytes(digest, "big") / 2**64
