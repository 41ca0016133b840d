"""How a teacher cache grows: bytes, writing, finishing, opening and reading, and its layout beside LMDB."""
